"""Which heads did a calibration of sinks keep? Its files, and what it did on held-out questions: a part of the page on sinks."""

from typing import TYPE_CHECKING

import streamlit as st
from chosen import LABELS_MB, beside, literal, sentence, told
from downloads import chart, mapped, table
from maps import head_map

from workbench import views
from workbench.errors import InputError
from workbench.labels import HeadLabels

if TYPE_CHECKING:
    import pandas as pd

    from workbench.calibration.reading import Found

ONE_HEAD = "app_pages/one_head.py"
UPLOAD = "calibration_files"
REPORT = ("calibration.csv", "calibration.heldout.csv")
"""The tables of a calibration that lies beside the labels."""
REPORTED = "from the report beside the labels"
FILES = "What `workbench calibrate` wrote: the labels (.json), the table of heads (.heads.csv), held-out answers (.heldout.csv)"


def uploader() -> None:
    """The control that takes the files of a calibration."""
    st.file_uploader(FILES, type=["json", "csv"], accept_multiple_files=True, key=UPLOAD, max_upload_size=LABELS_MB)


def calibration(found: HeadLabels) -> "tuple[Found | None, str]":
    """The calibration that was uploaded, that of the labels, or the one beside them; and where it comes from."""
    from workbench.calibration.reading import of_labels

    given = st.session_state.get(UPLOAD) or []
    if given:
        try:
            return _read(found, tuple((file.name, file.getvalue()) for file in given)), ", ".join(file.name for file in given)
        except InputError as error:
            st.error(sentence(error))
    if own := of_labels(found):
        return own, "in the labels"
    files = {name: content for name in REPORT if (content := beside(name)) is not None}
    if REPORT[0] not in files:
        return None, ""
    with told():
        return _read(found, tuple(files.items())), REPORTED
    raise AssertionError


def _read(found: HeadLabels, files: tuple[tuple[str, bytes], ...]) -> "Found":
    from workbench.calibration.reading import of_files

    return of_files(dict(files), found.card)


def calibrated_heads(found: HeadLabels) -> None:
    """The heads that a calibration kept, and what it did on held-out questions."""
    kept, source = calibration(found)
    if kept is None:
        st.info(
            f"There is no calibration of {literal(found.card.name)} beside the labels or in them. "
            "`workbench calibrate --out calibrated.json` makes one; give it above."
        )
        return
    every = found.card.shape.n_layers * found.card.shape.n_heads
    st.markdown(f"**{len(kept.kept)} of {every} heads are kept** ({literal(source)}): " + (", ".join(map(str, kept.kept)) or "none") + ".")
    for remark in kept.remarks:
        st.caption(remark)
    left, right = st.columns([2, 3], gap="large")
    with left:
        sent = views.gain_canvas(kept)
        if picked := head_map(sent, key="gain_map"):
            st.switch_page(ONE_HEAD, query_params={"head": picked})
        mapped(sent, "calibration-gain")
        st.caption(
            "Gain: the change of accuracy on the questions of the search when the head alone is calibrated. A head is kept if its gain is above 0. "
            "Grey ones were not measured."
        )
    with right:
        held_out(kept)
    if kept.measured is not None:
        measured(kept.measured)
    if source == REPORTED and (report := beside("calibration.md")):
        with st.expander("The report of this calibration"):
            st.markdown(report.decode("utf-8"))


def held_out(kept: "Found") -> None:
    """What calibrating the kept heads does on questions that chose none of them."""
    if kept.held_out is None:
        st.info("No file tells of held-out questions; `workbench calibrate` writes them as .heldout.csv.")
        return
    st.markdown(views.held_out_text(kept.held_out))
    alt = "Points with 95% intervals: change of accuracy for each way to calibrate"
    chart(views.held_out_figure(kept.held_out), "calibration-held-out", alt, kept.held_out)
    st.caption("95% intervals (paired bootstrap over the questions). An interval that holds 0 shows no effect that these questions could tell.")


def measured(rows: "pd.DataFrame") -> None:
    """The heads that were measured, and how well they had been chosen."""
    from workbench.calibration.search import COLUMNS

    left, right = st.columns([2, 3], gap="large")
    with left:
        st.markdown("**Can the screening be trusted?**")
        chart(views.screening_figure(rows), "calibration-screening", "Scatter plot: first-order and measured change of the loss of each head")
        st.caption("Each point is a head, calibrated alone, on the questions that it has seen; below 0 is better. Screening chooses by the first-order change.")
    with right:
        st.markdown("**The heads that were measured**")
        shown = {name: st.column_config.Column(help=meaning) for name, meaning in COLUMNS.items()}
        st.dataframe(rows.sort_values("gain", ascending=False), hide_index=True, column_config=shown, height=420)
        table(rows, "calibration-heads")
