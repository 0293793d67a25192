"""Which heads make a behaviour, and how far is that to be believed? A circuit and its faithfulness, patching, codes, methods, memory and context."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import streamlit as st
from background import forget
from chosen import beside, labels, sentence, told
from conflict import memory_or_context
from downloads import chart, files, mapped
from maps import clicked, head_map
from methods import methods
from patching import codes, patching
from uploads import uploader

from workbench.circuits import compared
from workbench.circuits.circuit import Circuit
from workbench.circuits.leaving import KINDS
from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.labels import HeadLabels
from workbench.views.circuit import COLOURS, EDGES_SHOWN, graph_figure
from workbench.views.circuit_tables import effects_canvas, faithfulness_figure, faithfulness_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

ONE_HEAD = "app_pages/one_head.py"
UPLOAD = "circuit_file"
CIRCUIT_MB = 5
FILES = ("circuit.json", "circuit_ioi.json")  # circuits that may lie beside the labels


def circuit(found: HeadLabels) -> None:
    """A circuit: its graph beside its faithfulness, every head's effect, its own heads, files."""
    drawn = chosen_circuit()
    if drawn is None:
        st.info(f"No circuit of {_plain(found.card.name)} lies beside the labels; `workbench circuit find` writes one, which can be opened here.")
        return
    made = drawn.made
    facts = made.provenance
    right = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in facts.get("accuracy", {}).items())
    st.caption(
        f"{len(made.heads)} heads for **{_plain(made.task)}** in {_plain(made.card.name)}, found by **{_plain(facts.get('method', '?'))}**; "
        f"metric: {_plain(facts.get('metric') or 'the task’s')}. Accuracy: {right or 'not told'}."
    )
    left, right = st.columns([3, 2], gap="large")
    with left:
        graph(drawn, found)
    with right:
        faithful(drawn)
    measures(drawn)
    left, right = st.columns([2, 3], gap="large")
    with left:
        if picked := head_map(drawn.effects, key="effects"):
            opened(picked, made.card, found)
        st.caption("What patching each head does to the metric: blue, it falls; orange, it rises; rings are the circuit's heads. A click opens a head.")
        mapped(drawn.effects, "circuit-effects")
    with right:
        heads(drawn, found)
    with st.expander("What made it"):
        st.json(dict(facts), expanded=1)


def chosen_circuit() -> "Drawn | None":
    """The circuit that was uploaded, if it is one, else one that lies beside the labels; None if there is none."""
    there = {name: content for name in FILES if (content := beside(name)) is not None}
    picked, upload = st.columns([3, 2], vertical_alignment="bottom")
    name = picked.selectbox("Circuit", list(there), key="circuit", bind="query-params") if there else None
    with upload.popover("Open a circuit"):
        given = uploader("A circuit of `workbench circuit find`", ["json"], UPLOAD, CIRCUIT_MB)
    if given is not None:
        try:
            made = _drawn(given.content, given.name)
            picked.caption(f"Shown is {_plain(given.name)}, until it is taken away or the page is reloaded.")
            return made
        except InputError as error:
            st.error(sentence(error))
    if name is None:
        return None
    with told():
        return _drawn(there[name], name)
    return None


def graph(drawn: "Drawn", found: HeadLabels) -> None:
    """Heads by layer and the edges measured between them."""
    made = drawn.made
    alt = f"Graph of {len(made.heads)} heads by layer with the edges measured between them"
    drawn_edges = "All are drawn" if len(made.edges) <= EDGES_SHOWN else f"The {EDGES_SHOWN} strongest are drawn"
    event = chart(drawn.graph, "circuit-graph", alt, made.edges, key="graph", on_select="rerun", selection_mode="points")
    if (name := clicked(event)) and name not in ("input", "logits"):
        opened(name, made.card, found)
    st.caption(
        f"Layers upwards, the input below, the logits above; a square is a head, at its number; {COLOURS}. {len(made.edges)} edges were measured one by one; "
        f"an edge to a KV head goes to each of its query heads. {drawn_edges}, wider the more they move the metric. Hovering tells numbers, a click on a head "
        "opens it."
    )


def faithful(drawn: "Drawn") -> None:
    """How much of the model's behaviour the circuit carries, by ablation."""
    if drawn.faithfulness is None:
        st.info("The file does not tell how faithful the circuit is; `workbench circuit evaluate` measures it.")
        return
    chart(drawn.faithfulness, "faithfulness", "Faithfulness of the circuit, its complement and random rivals, by ablation", drawn.made.faithfulness)


def measures(drawn: "Drawn") -> None:
    """The numbers behind it, as far as the file tells them."""
    measured = drawn.made.faithfulness
    if measured.empty:
        return
    turned = faithfulness_table(measured)
    st.table(turned.assign(measure=[name.replace("_", " ") for name in turned["measure"]]).set_index("measure"))
    st.caption("On prompts that it was not found on. 1 is the full model, 0 all heads ablated; in brackets 95% intervals over prompts.")
    from workbench.circuits.faithfulness import COLUMNS

    with st.popover("What the measures mean", type="tertiary"):
        st.table({name.replace("_", " "): COLUMNS.get(name, "") for name in turned["measure"]})


def heads(drawn: "Drawn", found: HeadLabels) -> None:
    """The circuit's heads with effects and minimality; choosing a row opens the head. And the circuit as files."""
    made, rows = drawn.made, drawn.heads
    numbers = {name: st.column_config.NumberColumn(format="%.3g") for name in rows.columns if name != "head"}
    chosen = st.dataframe(
        rows, hide_index=True, placeholder="–", column_config=numbers, height=500, on_select="rerun", selection_mode="single-row", key="heads"
    )
    st.caption(
        "effect: change of the metric when the head is patched, with its 95% interval; …_drop: what its leaving costs the circuit, as a share of the whole."
    )
    if picked := chosen.selection.rows:
        opened(rows["head"][picked[0]], made.card, found)
    given = found if _same(made.card, found) else None
    files(f"circuit-{_name(made.task)}", {ending: partial(kind.made, made, given) for ending, kind in KINDS.items()})
    st.caption("; ".join(f"`{ending}`: {kind.about}" for ending, kind in KINDS.items()) + ".")


def opened(head: str, card: ModelCard, found: HeadLabels) -> None:
    """Open a head, if it is one of the model that the other pages show."""
    if _same(card, found):
        st.switch_page(ONE_HEAD, query_params={"head": head})
    st.info(f"{head} is a head of {_plain(card.name)}; the other pages show {_plain(found.card.name)}, so that it cannot be opened there.")


def _same(card: ModelCard, found: HeadLabels) -> bool:
    try:
        found.check_model(card)
    except InputError:
        return False
    return True


def _plain(text: object) -> str:
    """A text of a file as it stands, whatever signs of Markdown are in it."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()#+-.!|<>~:$" else sign for sign in str(text))


def _name(task: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in task)


class Drawn(NamedTuple):
    """A circuit with its pictures and its table, made once for all."""

    made: Circuit
    graph: "go.Figure"
    faithfulness: "go.Figure | None"
    effects: bytes
    heads: "compared.pd.DataFrame"


@st.cache_resource(max_entries=8, show_spinner=False)
def _drawn(content: bytes, name: str) -> Drawn:
    made = Circuit.parse(content, name)
    faithfulness = None if made.faithfulness.empty else faithfulness_figure(made.faithfulness)
    return Drawn(made, graph_figure(made), faithfulness, effects_canvas(made), made.table)


VIEWS = {"Circuit": circuit, "Patching": patching, "Codes": codes, "Methods": methods, "Memory or context": memory_or_context}

shown = labels()
st.title("Circuits")
view = st.segmented_control(
    "View", list(VIEWS), default="Circuit", required=True, key="panel", bind="query-params", label_visibility="collapsed", wrap=True, on_change=forget
)
VIEWS[view](shown)
