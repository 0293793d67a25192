"""Memory or context? The view of the page Circuits about PH3: every head by both, a slider that prunes, and what answers become."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st
from chosen import BY_FINGERPRINT, beside, model, parsed, told
from downloads import chart, table
from maps import clicked, head_map
from patching import compute, forget

from workbench.circuits import compared
from workbench.circuits.sides import Sides, from_labels
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.views import following_figure
from workbench.views.conflicts import pruning_figure, sides_canvas, sides_figure

if TYPE_CHECKING:
    import pandas as pd

    from workbench.circuits.pruning_curve import Answer
    from workbench.circuits.tasks import Item, TaskSet
    from workbench.models import HFModel

ONE_HEAD = "app_pages/one_head.py"
FILE, TABLE = "ph3.json", "ph3.csv"
PRUNING = "pruning"
MOST, USUAL = 20, 5
OF_FILE, NOW = "of the file", "measured now"
STEERED = {"memory": "context", "context": "memory"}
"""What pruning the heads of a side steers to."""


def memory_or_context(found: HeadLabels) -> None:
    """Every head by both scores, the strongest of one side pruned, and how conflicts are answered then."""
    filed = sides_of_file(found)
    options = [NOW] if filed is None else [OF_FILE, NOW]
    scores = st.segmented_control("Scores", options, default=options[0], required=True, key="scores", bind="query-params", on_change=forget)
    picture = st.container()
    st.subheader("What pruning does")
    left, right = st.columns([1, 2], gap="large", vertical_alignment="bottom")
    side = left.segmented_control("Prune heads of", list(STEERED), default="memory", required=True, key="prune", bind="query-params")
    count = right.slider("Heads pruned", 0, MOST, min(MOST, filed.found[side]) if filed else USUAL, key=f"k_{side}", bind="query-params")
    sides = filed if scores == OF_FILE else None
    if sides is not None:
        with picture:
            drawn(sides, side, count, "PH3's importance, logits")
    left, right = st.columns(2, gap="large")
    with left:
        asked = conflicts_asked({} if filed is None else dict(filed.provenance))
        wanted = compute("Ask the model", PRUNING)
    if wanted:
        loaded = model(found)
        with right, told(), st.spinner(f"Looking for conflicts about {asked[0]} that the model knows", show_time=True):
            data, origin = _conflicts(loaded, *asked)
        if sides is None:
            with picture:
                with told(), st.spinner(f"Patching the paths of all heads on {len(data)} conflicts", show_time=True):
                    sides = _measured(loaded, *asked)
                drawn(sides, side, count, "fall of the answer's log-probability, nats")
        ranking = tuple(sides.ranked(side)[:MOST])
        with right:
            with told(), st.spinner(f"Answering {len(data)} conflicts with 0 to {len(ranking)} heads pruned", show_time=True):
                curve = _curve(loaded, ranking, *asked)
            chart(pruning_figure(curve, side, count), "pruning", f"Shares of answers against the number of {side} heads pruned", curve)
            st.caption(f"{len(data)} conflicts, {origin}; bands are 95% intervals (Wilson). Pruned heads write nothing, at all positions.")
        with left:
            example(loaded, data, ranking[:count], side)
    else:
        right.info("Nothing is computed yet. The button has the model answer conflicts with 0, 1, 2, … heads pruned: half a minute for eight on a CPU.")
    published(side)


def sides_of_file(found: HeadLabels) -> Sides | None:
    """PH3's scores in the labels shown, or in those of the same model that lie beside them; None if there are none."""
    if (sides := from_labels(found)) is not None:
        return sides
    content = beside(FILE)
    if content is None:
        return None
    with told():
        read = parsed(content, FILE)
        read.check_model(found.card)
        return from_labels(read)
    return None


def drawn(sides: Sides, side: str, count: int, unit: str) -> None:
    """Every head on the map and by both scores, with those marked that are pruned."""
    pruned = sides.ranked(side)[:count]
    left, right = st.columns([2, 3], gap="large")
    with left:
        head = head_map(sides_canvas(sides, pruned, f"{len(pruned)} {side} heads pruned"), key="sides")
        st.caption(f"Blue heads serve memory, orange ones context ({unit}). A click opens a head.")
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


def conflicts_asked(provenance: Mapping[str, Any]) -> tuple[str, int, dict[str, Any]]:
    """Which conflicts the model is asked, how many, and what they must be kept apart from."""
    from workbench.circuits.pruning_curve import searched_on
    from workbench.circuits.tasks.knowledge_conflict import RELATIONS

    with told():
        usual = searched_on(provenance)["relation"]
    names = list(RELATIONS)
    relation = st.selectbox("Facts", names, index=names.index(usual) if usual in names else 0, key="relation", bind="query-params", on_change=forget)
    items = st.slider("Conflicts", 4, 32, 8, key="items", bind="query-params", on_change=forget)
    return relation, items, dict(provenance)


def example(loaded: "HFModel", data: "TaskSet", heads: tuple[Head, ...], side: str) -> None:
    """One conflict, answered with all heads and without those that are pruned."""
    every = {item.clean: item for item in data.items}
    item = every[st.selectbox("One conflict", list(every), key="conflict", bind="query-params")]
    st.caption(f"The model knows **{item.right[0].strip()}** (memory); the text states **{item.wrong[0].strip()}** (context).")
    with told(), st.spinner("Answering"):
        found = _answer(loaded, item.clean, heads, item)
    whole, less = found.said["whole"], found.said["without"]
    st.markdown(f"With all heads: **{whole[0].strip()}** ({whole[1]}). Without {len(heads)} {side} heads: **{less[0].strip()}** ({less[1]}).")
    if heads:
        figure = following_figure(found.following, f"{len(heads)} {side} heads")
        chart(figure, "answer", "Bars: probability of the next token with and without the heads", found.following)
        st.caption("Probability of the next token behind the conflict. The control prunes as many other heads of the same layers (seed 0).")


@st.cache_resource(max_entries=4, show_spinner=False)
def _table(content: bytes, name: str) -> "pd.DataFrame":
    return compared.parse(content, name, ("way", "steer", "memory", "context", "other", "seed"))


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _conflicts(loaded: "HFModel", relation: str, items: int, provenance: dict[str, Any]) -> "tuple[TaskSet, str]":
    from workbench.circuits.pruning_curve import conflicts_of

    return conflicts_of(loaded, relation, items, provenance)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _measured(loaded: "HFModel", relation: str, items: int, provenance: dict[str, Any]) -> Sides:
    from workbench.circuits.pruning_curve import measured

    return measured(loaded, _conflicts(loaded, relation, items, provenance)[0])


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _curve(loaded: "HFModel", ranking: tuple[Head, ...], relation: str, items: int, provenance: dict[str, Any]) -> "pd.DataFrame":
    from workbench.circuits.pruning_curve import pruning_curve

    return pruning_curve(loaded, _conflicts(loaded, relation, items, provenance)[0], ranking)


@st.cache_resource(max_entries=64, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _answer(loaded: "HFModel", text: str, heads: tuple[Head, ...], _item: "Item") -> "Answer":
    from workbench.circuits.pruning_curve import answer

    return answer(loaded, _item, heads)
