"""What is computed in the background for a page? A button that starts a job, how far it is, a button that cancels it, and how it ended."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st
from chosen import literal, runs, sentence, told

from workbench import jobs
from workbench.errors import InputError

ALIVE = ("queued", "running")
SECONDS = 1.0
"""Between two looks at a job that runs."""


def start(label: str, arguments: Sequence[str], *, title: str, page: str, files: Mapping[str, bytes] | None = None) -> jobs.Job | None:
    """A button that starts `workbench` with these arguments, and the job if it was pressed just now; `page` is the file that shows it."""
    if not st.button(label, type="primary", key="start"):
        return None
    with told():
        return jobs.ask(runs(), arguments, title=title, files=files, shown={"page": page, "query": st.query_params.to_dict()})
    raise AssertionError


def placed(model: str) -> str:
    """A model's name as a job understands it, whose folder is another than the dashboard's."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def addressed() -> jobs.Job | None:
    """The job that the address names; None if it names none, or one that is not there, which is said."""
    name = st.query_params.get("job", "")
    try:
        return jobs.named(runs(), name) if name else None
    except InputError as error:
        st.warning(sentence(error))
        return None


def forget() -> None:
    """What a widget calls whose change asks another question than that of the job in the address."""
    st.query_params.pop("job", None)


def follow(job: jobs.Job) -> bool:
    """Show how far a job is, or how it ended; true if it is done, and its files are there."""
    state = job.state
    if state in ALIVE:
        _watch(job)
    elif state != "done":
        last = next((line for line in map(_bare, reversed(job.log().splitlines())) if line), "")
        say = st.error if state == "failed" else st.warning
        say(f"This job {jobs.STATES[state]}.{f' The last it said: {literal(last)}' if last and state == 'failed' else ''}")
    return state == "done"


@st.fragment(run_every=SECONDS)
def _watch(job: jobs.Job) -> None:
    """How far it is, looked at every second; the page runs again when it has ended."""
    state, progress = job.state, job.progress
    if state not in ALIVE:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.progress(progress.share if progress else 0.0, progress.words if progress else f"This job {jobs.STATES[state]}")
        if st.button("Cancel", key=f"cancel-{job.name}", width="content"):
            with told():
                job.cancel()
                st.rerun()


def _bare(line: str) -> str:
    """What a line says inside of a frame."""
    return line.strip("╭╮╰╯─│ ")
