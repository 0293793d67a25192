"""Memory or context? The view of the page Circuits about PH3: every head by both, a slider that prunes, and what answers become."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st
from answered import Question, answered, arguments_of
from background import forget
from chosen import BY_FINGERPRINT, beside, model, parsed, told
from downloads import chart, mapped, table
from maps import clicked, head_map

from workbench.circuits import compared
from workbench.circuits.sides import Sides, from_labels
from workbench.formats import Export, as_bytes
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.views import following_figure
from workbench.views.conflicts import pruning_figure, sides_canvas, sides_figure

if TYPE_CHECKING:
    import pandas as pd

    from workbench.circuits.pruning_curve import Answer
    from workbench.circuits.tasks import Item
    from workbench.models import HFModel

ONE_HEAD = "app_pages/one_head.py"
FILE, TABLE = "ph3.json", "ph3.csv"
HEADS = "heads.json"
MOST, USUAL = 20, 5
OF_FILE, NOW = "of the file", "measured now"
STEERED = {"memory": "context", "context": "memory"}
"""What pruning the heads of a side steers to."""


def memory_or_context(found: HeadLabels) -> None:
    """Every head by both scores, the strongest of one side pruned, and how conflicts are answered then."""
    from workbench.circuits.pruned import Pruned

    labelled = filed(found)
    of_file = None if labelled is None else from_labels(labelled)
    options = [NOW] if of_file is None else [OF_FILE, NOW]
    scores = st.segmented_control("Scores", options, default=options[0], required=True, key="scores", bind="query-params", on_change=forget)
    picture = st.container()
    st.subheader("What pruning does")
    left, right = st.columns([1, 2], gap="large", vertical_alignment="bottom")
    side = left.segmented_control("Prune heads of", list(STEERED), default="memory", required=True, key="prune", bind="query-params")
    count = right.slider("Heads pruned", 0, MOST, min(MOST, of_file.found[side]) if of_file else USUAL, key=f"k_{side}", bind="query-params")
    if of_file is not None and scores == OF_FILE:
        with picture:
            drawn(of_file, side, count, "PH3's importance, logits")
    left, right = st.columns(2, gap="large")
    bottom = st.container()
    with bottom:
        published(side)
    with left:
        question = asked(found, labelled, {} if of_file is None else of_file.provenance, scores == NOW)
        result = answered(question, Pruned.load, found, right, "The button has the model answer conflicts with 0, 1, 2, … heads pruned, in a minute on a CPU.")
    if result is None:
        return
    if scores == NOW:
        with picture:
            drawn(result.sides, side, count, "fall of the answer's log-probability, nats" if result.now else "PH3's importance, logits")
    with right:
        curve = result.curves[side]
        chart(pruning_figure(curve, side, count), "pruning", f"Shares of answers against the number of {side} heads pruned", curve)
        st.caption(f"{len(result.items)} conflicts, {result.origin}; bands are 95% intervals (Wilson). Pruned heads write nothing, at all positions.")
    with left:
        example(found, result.items, tuple(result.sides.ranked(side)[:count]), side)


def filed(found: HeadLabels) -> HeadLabels | None:
    """The labels with PH3's scores: those shown, or those of the same model that lie beside them; None if there are none."""
    if from_labels(found) is not None:
        return found
    content = beside(FILE)
    if content is None:
        return None
    with told():
        read = parsed(content, FILE)
        read.check_model(found.card)
        return read if from_labels(read) is not None else None
    return None


def drawn(sides: Sides, side: str, count: int, unit: str) -> None:
    """Every head on the map and by both scores, with those marked that are pruned."""
    pruned = sides.ranked(side)[:count]
    left, right = st.columns([2, 3], gap="large")
    with left:
        sent = sides_canvas(sides, pruned, f"{len(pruned)} pruned")
        head = head_map(sent, key="sides")
        st.caption(f"Blue heads serve memory, orange ones context ({unit}). A click opens a head.")
        mapped(sent, "sides-map")
    with right:
        alt = "Scatter plot of memory against context, a point for each head"
        event = chart(sides_figure(sides, pruned, unit), "sides", alt, sides.table, key="scatter", on_select="rerun", selection_mode="points")
        st.caption(
            "A point is a head; those with a rim are pruned. In a file of `workbench ph3` both scores are one number, the change of "
            "logit(memory) − logit(context) when the head's path carries another prompt, so that a head has one of them only; measured now, each answer is "
            "taken by itself."
        )
    if opened := head or clicked(event):
        st.switch_page(ONE_HEAD, query_params={"head": opened})
    if pruned:
        st.caption(f"Pruned: {', '.join(map(str, pruned))}.")


def published(side: str) -> None:
    """What the file of the benchmark tells of pruning, beside its controls."""
    content = beside(TABLE)
    if content is None:
        return
    with told():
        rows = compared.steered(_table(content, TABLE), STEERED[side])
    with st.expander(f"Measured before, steering to {STEERED[side]}: means over {rows['seeds'].max()} seeds", expanded=True):
        numbers = {name: st.column_config.NumberColumn(format="%.3g") for name in rows.columns if name != "way"}
        st.dataframe(rows, hide_index=True, column_config=numbers, placeholder="–")
        st.caption(
            "memory, context, other: shares of answers to conflicts kept out of the search; clean: closed-book queries answered rightly; random: as many heads "
            "of the same layers; gradient: heads that first-order effects rank first; instruction and contrastive prune nothing. Intervals are 95%, "
            "from the lowest end of a seed's to the highest."
        )
        table(rows, "steered")


def asked(found: HeadLabels, labelled: HeadLabels | None, provenance: Mapping[str, Any], now: bool) -> Question:
    """Which conflicts the model is asked, how many, and by whose scores heads are pruned."""
    from workbench.circuits.pruning_curve import searched_on
    from workbench.circuits.tasks.knowledge_conflict import RELATIONS

    with told():
        usual = searched_on(provenance)["relation"]
    names = list(RELATIONS)
    relation = st.selectbox("Facts", names, index=names.index(usual) if usual in names else 0, key="relation", bind="query-params", on_change=forget)
    items = st.slider("Conflicts", 4, 32, 8, key="items", bind="query-params", on_change=forget)
    title = f"Pruning, scores {NOW if now else OF_FILE}: {found.card.name}, {items} conflicts about {relation}"
    if labelled is None:
        return Question("Ask the model", title, arguments_of("prune", found, {"relation": relation, "items": items}))
    options = {"labels": HEADS, "measure": now or None, "relation": relation, "items": items}
    return Question("Ask the model", title, arguments_of("prune", found, options), {HEADS: as_bytes(labelled, "workbench", Export())[1]})


def example(found: HeadLabels, items: "Sequence[Item]", heads: tuple[Head, ...], side: str) -> None:
    """One conflict, answered with all heads and without those that are pruned."""
    every = {item.clean: item for item in items}
    item = every[st.selectbox("One conflict", list(every), key="conflict", bind="query-params")]
    st.caption(f"The model knows **{item.right[0].strip()}** (memory); the text states **{item.wrong[0].strip()}** (context).")
    loaded = model(found)
    with told(), st.spinner("Answering"):
        made = _answer(loaded, item.clean, heads, item)
    whole, less = made.said["whole"], made.said["without"]
    st.markdown(f"With all heads: **{whole[0].strip()}** ({whole[1]}). Without {len(heads)} {side} heads: **{less[0].strip()}** ({less[1]}).")
    if heads:
        figure = following_figure(made.following, f"{len(heads)} {side} heads")
        chart(figure, "answer", "Bars: probability of the next token with and without the heads", made.following)
        st.caption("Probability of the next token behind the conflict. The control prunes as many other heads of the same layers (seed 0).")


@st.cache_resource(max_entries=4, show_spinner=False)
def _table(content: bytes, name: str) -> "pd.DataFrame":
    return compared.parse(content, name, ("way", "steer", "memory", "context", "other", "seed"))


@st.cache_resource(max_entries=64, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _answer(loaded: "HFModel", text: str, heads: tuple[Head, ...], _item: "Item") -> "Answer":
    from workbench.circuits.pruning_curve import answer

    return answer(loaded, _item, heads)
