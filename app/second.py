"""Which other labels are compared with those shown? A file that is given on the page, or what a job computed."""

import downloads
import streamlit as st
from chosen import LABELS_MB, cells, literal, parsed, runs, sentence
from maps import head_map
from uploads import uploader

from workbench import jobs, views
from workbench.comparing import common, compared
from workbench.errors import InputError
from workbench.labels import HeadLabels

ENDINGS = (".json", ".parquet")
NONE = "none"
NOTHING = "Give a second labels or scores file, of another model, another run, or the same model quantised, or choose what a job on the page Runs computed."


def second() -> tuple[HeadLabels, str] | None:
    """The other labels and their name; None if none are chosen, or if they cannot be used, which is said."""
    made = {f"{job.asked['title']}: {path.name} ({job.name})": path for job in jobs.find(runs()) if job.state == "done" for path in _files(job)}
    made |= {f"of the sweep: {what}": path for what, path in cells().items()}
    name = st.selectbox("Computed by a job, or of the sweep", [NONE, *made], key="second", bind="query-params") if made else NONE
    upload = uploader("Second file", [ending[1:] for ending in ENDINGS], "second_file", LABELS_MB)
    try:
        if upload is not None:
            return parsed(upload.content, upload.name), upload.name
        if name != NONE:
            return parsed(made[name].read_bytes(), made[name].name), name
    except (InputError, OSError) as error:
        st.error(sentence(error) if isinstance(error, InputError) else f"The file cannot be read: {error.strerror}.")
        return None
    st.info(NOTHING)
    return None


def side_by_side(found: HeadLabels, probe: str, name: str) -> None:
    """The labels shown beside others: a map of the difference where heads are the same, scores against each other, depth, and labels."""
    chosen = second()
    if chosen is None:
        return
    other, its = chosen
    try:
        both = common(found, other)
    except InputError as error:
        st.error(sentence(error))
        return
    if probe not in both:
        st.info(f"{literal(its)} has no scores of {probe}; {both[0]} is compared.")
        probe = both[0]
    result, names = compared(found, other, probe), (f"{found.card.name} ({name})", f"{other.card.name} ({its})")
    if result.difference_LH is None:
        st.caption(f"{literal(names[1])} has other numbers of layers or heads, so that heads are not compared one by one.")
        shown = views.panel(other, probe)
        head_map(views.head_canvas(other, shown), key="second_map")
        downloads.panel(other, shown, f"{probe}-second")
    else:
        sent = views.difference_canvas(found, other, result)
        head_map(sent, key="difference")
        downloads.mapped(sent, f"{probe}-difference")
        words = ", ".join(f"{what.replace('_', ' ')} {value:.2f}" for what, value in result.agreement.items())
        st.caption(f"Orange: higher in {literal(names[1])}; blue: lower. Agreement over all heads: {words} (Spearman −1 to 1, overlap 0–1).")
        downloads.chart(views.versus_figure(found, other, result, names), f"{probe}-versus", f"Scatter plot of {probe} in both files", key="versus")
    downloads.chart(views.depth_figure(result, names), f"{probe}-depth", f"Lines of {probe} over depth in both files", key="depth")
    headings = {"first": names[0], "second": names[1], "jaccard": "Jaccard index"}
    st.dataframe(result.labels.rename(columns=headings), hide_index=True, column_config={"Jaccard index": st.column_config.NumberColumn(format="%.2f")})
    st.caption("Heads by label. The Jaccard index is the share of heads labelled in either file that are labelled in both, 0–1; empty where heads differ.")
    downloads.table(result.labels.rename(columns=headings), "labels-side-by-side")


def _files(job: jobs.Job) -> list:
    return [path for path in job.results if path.suffix in ENDINGS and path.stat().st_size <= LABELS_MB * 2**20]
