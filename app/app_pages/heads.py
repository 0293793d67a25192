"""Which heads are of which kind? The map of any probe, its distribution, probes against each other, the table, files."""

from functools import partial
from typing import TYPE_CHECKING

import downloads
import streamlit as st
from chosen import file_name, labels, literal, scores
from exporting import export
from maps import head_map
from second import side_by_side

from workbench import views
from workbench.formats import Export
from workbench.labels import HeadLabels
from workbench.rules import rule_text
from workbench.scores import agreement

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ONE_HEAD = "app_pages/one_head.py"
ALONE = "The file has scores of one probe only."
VIEWS = ("Distribution", "Two probes", "Agreement", "Table", "Side by side", "Export", "Evidence")


def question(probe: str) -> str:
    """What a probe asks of a head."""
    from workbench.probes import PROBES

    return PROBES[probe].question if probe in PROBES else f"{literal(probe)} is no probe of this workbench; its scores come with the file."


def distribution(found: HeadLabels, probe: str) -> None:
    """The scores of all heads, and what the file tells of threshold and null."""
    behind = scores()
    null_LH = None if behind is None else behind.matrix(probe, "null")
    downloads.chart(views.distribution_figure(found, probe, null_LH), f"{probe}-distribution", f"Histogram of the {probe} scores of all heads")
    rules = [rule for rule in found.rules.values() if rule.probe == probe]
    for rule in rules:
        st.caption(f"**{literal(rule.label)}**: {rule_text(rule)}, and above the head's own null ({literal(rule.chance)}). Source: {literal(rule.source)}.")
    if not rules:
        st.caption("No rule labels heads by this score.")
    if behind is None:
        st.caption("A labels file holds scores, not the nulls and intervals behind them; `workbench score --out scores.parquet` writes those.")


def two_probes(found: HeadLabels, probe: str) -> None:
    """Two scores of every head."""
    others = [name for name in found.scores if name != probe]
    if not others:
        st.info(ALONE)
        return
    other = st.selectbox("Against", others, key="other", bind="query-params")
    downloads.chart(views.pair_figure(found, probe, other), f"{probe}-{other}", f"Scatter plot of {probe} against {other}")


def agreeing(found: HeadLabels, _probe: str) -> None:
    """How alike all probes rank the heads."""
    if len(found.scores) < 2:
        st.info(ALONE)
        return
    rows = _agreement(dict(found.scores))
    downloads.chart(views.agreement_figure(rows), "agreement", "Matrix of rank correlations between probes", rows)
    st.caption("Spearman's rank correlation of the scores of all heads; hovering tells how many of the ten strongest heads two probes share.")


def table(found: HeadLabels, probe: str) -> None:
    """Every head with its labels and scores; choosing a row opens the head."""
    rows = found.table.sort_values(probe, ascending=False, ignore_index=True)
    order = ["head", probe, "labels", "kv_head", *(name for name in found.scores if name != probe)]
    numbers = {name: st.column_config.NumberColumn(format="%.3f") for name in found.scores}
    chosen = st.dataframe(
        rows, column_order=order, column_config=numbers, hide_index=True, height=560, on_select="rerun", selection_mode="single-row", key="rows"
    )
    st.caption("A click on a heading sorts; choosing a row opens the head.")
    if picked := chosen.selection.rows:
        st.switch_page(ONE_HEAD, query_params={"head": rows["head"][picked[0]]})
    downloads.table(rows, f"{found.card.name}-heads")


def beside(found: HeadLabels, probe: str) -> None:
    """These labels beside those of another model or run."""
    side_by_side(found, probe, file_name())


def exported(found: HeadLabels, probe: str) -> None:
    """The labels as the file of any tool."""
    export(found, Export(probe=probe), f"Scores are those of **{probe}**, the probe shown.")


def evidence(found: HeadLabels, _probe: str) -> None:
    """How many tests there were, and what made the scores."""
    st.table(views.evidence_lines(found.evidence) or {"evidence": "the file tells none"})
    st.caption("What made the scores:")
    st.json(dict(found.provenance), expanded=False)


@st.cache_data(max_entries=8, show_spinner=False)
def _agreement(scores: "dict[str, np.ndarray]") -> "pd.DataFrame":
    return agreement(scores)


SHOWN = dict(zip(VIEWS, (distribution, two_probes, agreeing, table, beside, exported, evidence), strict=True))

found = labels()
st.title("Heads")
if not found.scores:
    st.info(f"The labels of {literal(found.card.name)} hold no scores, so that there is no map to show.")
    st.stop()

usual = list(found.scores).index(views.panel(found).title)
left, right = st.columns([2, 3], gap="large")
with left:
    probe = st.selectbox("Probe", list(found.scores), index=usual, key="probe", bind="query-params")
    shown = views.panel(found, probe)
    picked = head_map(views.head_canvas(found, shown), key="map")
    if picked:
        st.switch_page(ONE_HEAD, query_params={"head": picked})
    drawn, page = partial(views.panel_picture, found, shown), partial(views.head_map, found, probe)
    downloads.files(f"{found.card.name}-{probe}", {".svg": lambda: drawn().encode(), ".html": lambda: views.figure_bytes(page())})
with right:
    view = st.segmented_control("View", VIEWS, default=VIEWS[0], required=True, key="view", bind="query-params", label_visibility="collapsed", wrap=True)
    SHOWN[view](found, probe)

left.caption(question(probe))  # last, as reading the probes takes seconds, and the map is already there
