"""What is computed for the page Circuits? A job for each question: a button that starts it, how far it is, and the file that it wrote."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import streamlit as st
from background import ALIVE, addressed, follow, placed, start
from chosen import literal, model_name, runs, told

from workbench import jobs
from workbench.heads import ModelCard
from workbench.labels import HeadLabels

PAGE = "app_pages/circuits.py"
OUT = "answer.json"


class Answer(Protocol):
    """What a file of such a job holds, of one model."""

    @property
    def card(self) -> ModelCard:
        """The model."""
        ...


Some = TypeVar("Some", bound=Answer)


def arguments_of(command: str, found: HeadLabels, options: Mapping[str, object]) -> list[str]:
    """The arguments of `workbench circuit` that ask a question, with those options that are given."""
    chosen = [part for name, value in options.items() if value is not None for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]
    return ["circuit", command, "--model", placed(model_name(found)), *chosen, "--out", OUT]


class Question(NamedTuple):
    """What a view asks: the words of its button, the title of its job, the arguments of `workbench`, and the files that they name."""

    label: str
    title: str
    arguments: Sequence[str]
    files: Mapping[str, bytes] | None = None


def answered(asked: Question, read: Callable[[Path], Some], found: HeadLabels, where: Any, nothing: str) -> Some | None:
    """What the question's job found, or the job of this command that the address names; None before it is done.

    A button starts it; how far it is, what went wrong, and that there is `nothing` yet, is shown `where`.
    """
    label, title, arguments, files = asked
    mine, named = jobs.same(runs(), arguments, files), addressed()
    if mine is None or mine.state not in (*ALIVE, "done"):
        again = "" if mine is None else " again"
        if made := start(f"{label}{again}", arguments, title=title, page=PAGE, files=files):
            st.query_params["job"] = made.name
            st.rerun()
    with where, told():
        job = named if named is not None and named.asked["arguments"][:2] == list(arguments[:2]) else mine
        if job is None:
            st.info(f"Nothing is computed yet. {nothing}")
            return None
        if job != mine:
            st.subheader(literal(job.asked["title"]))
        if not follow(job):
            return None
        path = job.folder / OUT
        answer: Some = _kept(read, str(path), path.stat().st_mtime_ns if path.exists() else 0)
        found.check_model(answer.card)
        return answer
    return None


@st.cache_resource(max_entries=16, show_spinner=False)
def _kept(_read: Callable[[Path], Any], path: str, changed: int) -> Any:
    """The answer of a file, which says what it is; read once until it changes."""
    return _read(Path(path))
