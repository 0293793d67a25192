"""What is shown? The labels and the model that all pages share, and how they say what went wrong."""

import os
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import addresses
import streamlit as st

from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels, label
from workbench.scores import HeadScores

if TYPE_CHECKING:
    from workbench.models import HFModel
    from workbench.plan import Sketch

UPLOAD = "labels_file"
CELL = "cell"
LABELS_MB = 20
TABLE = ".parquet"
"""The ending of a table of scores, which is labelled by the rules when it is read."""
BUNDLED = Path(__file__).resolve().parent.parent / "reports" / "smollm2-135m" / "heads.json"


BY_FINGERPRINT: dict[str | type[Any], Callable[[Any], Any]] = {"workbench.models.HFModel": lambda loaded: loaded.fingerprint}
"""How a cache of Streamlit tells one model from another."""


@contextmanager
def told() -> Generator[None]:
    """Say in a sentence what cannot be used, and leave the rest of the page."""
    try:
        yield
    except InputError as error:
        st.error(sentence(error))
        addresses.say()
        st.stop()


def scores() -> HeadScores | None:
    """The scores behind the labels, with nulls and intervals: those that were uploaded or lie beside the labels as `scores.parquet`, if they are the same."""
    upload = st.session_state.get(UPLOAD)
    if upload is not None and not refused():
        return _scored(upload.getvalue(), upload.name) if upload.name.endswith(TABLE) else None
    path = _default() if _default().suffix == TABLE else _default().with_name("scores.parquet")
    try:
        found = _scored(path.read_bytes(), path.name)
        return found if labels().backed_by(found) else None
    except (OSError, InputError):
        return None


def refused() -> str:
    """Why the uploaded file cannot be used, as a sentence; empty if it can, or if there is none."""
    upload = st.session_state.get(UPLOAD)
    try:
        if upload is not None:
            parsed(upload.getvalue(), upload.name)
    except InputError as error:
        return sentence(error)
    return ""


def labels() -> HeadLabels:
    """The labels that were uploaded, if they can be used, else those that the dashboard was started with, else those that come with it."""
    upload = st.session_state.get(UPLOAD)
    if upload is not None and not refused():
        return parsed(upload.getvalue(), upload.name)
    with told():
        try:
            return parsed(_default().read_bytes(), str(_default()))
        except OSError as error:
            raise InputError(f"cannot read {_default()}: {error.strerror}") from error
    raise AssertionError


def file_name() -> str:
    """The file that the labels come from."""
    upload = st.session_state.get(UPLOAD)
    return upload.name if upload is not None and not refused() else _default().name


def beside(name: str) -> bytes | None:
    """A file that lies beside the labels which the dashboard was started with, if those are of the model that is shown; None if there is none."""
    path = path_beside(name)
    return path.read_bytes() if path is not None and path.is_file() else None


def path_beside(name: str) -> Path | None:
    """The same as a path, of a folder too."""
    try:
        parsed(_default().read_bytes(), str(_default())).check_model(labels().card)
    except (OSError, InputError):
        return None
    path = _default().with_name(name)
    return path if path.exists() else None


def head_of(text: str, found: HeadLabels) -> Head:
    """A head by its name. Says so where the model has none of that name."""
    with told():
        head = Head.parse(text)
        found.card.shape.check(head)
        return head
    raise AssertionError


def model(found: HeadLabels) -> "HFModel":
    """The model of the labels, loaded once for all. Only models of the catalogue are, and the one that the dashboard was started with."""
    name = model_name(found)
    with told():
        with st.spinner(f"Loading {name}"):
            loaded = _model(name)
        found.check_model(loaded.card)
        return loaded
    raise AssertionError


def model_name(found: HeadLabels) -> str:
    """What the model of the labels is loaded by: its name in the catalogue, or what the dashboard was started with."""
    from workbench.sources import CATALOGUE

    started = os.environ.get("WORKBENCH_APP_MODEL") or None
    with told():
        if started is None and found.card.name not in CATALOGUE:
            raise InputError(
                f"these labels are of {found.card.name!r}, which is none of the models that the dashboard loads by itself ({', '.join(CATALOGUE)}); "
                "start it with `make app MODEL=…` to name another"
            )
    return started or found.card.name


def sketch(found: HeadLabels) -> "Sketch":
    """The model of the labels without its weights, for what a computation would cost."""
    with told():
        return sketched(model_name(found))
    raise AssertionError


def runs() -> Path:
    """The folder of the runs, which `WORKBENCH_RUNS` names."""
    return Path(os.environ.get("WORKBENCH_RUNS") or "runs")


def sentence(error: InputError) -> str:
    """What went wrong, as a sentence. It may repeat what others wrote, of which no picture and no link is made."""
    text = literal(str(error).removesuffix(".")) + "."
    first, _, rest = text.partition(" ")
    return f"{first.capitalize()} {rest}" if first.isalpha() and first.islower() else text


def literal(text: str) -> str:
    """A text that Streamlit shows as it is, but for what stands in backticks: nothing in it is fetched, linked or set in another way."""
    parts = re.split(r"(`[^`\n]*`)", text)
    return "".join(part if number % 2 else re.sub(r"([\[\]$*~])", r"\\\1", part) for number, part in enumerate(parts))


def cells() -> dict[str, Path]:
    """The tables of the sweep that the dashboard was started with, by what each is; none where it was started with a file. Says so if none is finished."""
    started = _started()
    if not started.is_dir():
        return {}
    with told():
        return _cells(str(started), (started / "cells").stat().st_mtime_ns if (started / "cells").is_dir() else 0)
    raise AssertionError


def _started() -> Path:
    return Path(os.environ.get("WORKBENCH_APP_LABELS") or BUNDLED)


def _default() -> Path:
    """The file that the dashboard was started with, or the chosen cell of the sweep that it was started with."""
    swept = cells()
    return swept.get(st.session_state.get(CELL) or "", next(iter(swept.values()))) if swept else _started()


@st.cache_data(max_entries=4, show_spinner=False)
def _cells(root: str, changed: int) -> dict[str, Path]:
    from workbench.sweeping import Dataset

    del changed  # a part of the cache's key
    found = Dataset(Path(root)).named()
    if not found:
        raise InputError(f"{root} has no finished cell of a sweep; `workbench sweep --out` makes them")
    return {what: Path(root) / "scores" / f"{cell}.parquet" for what, cell in found.items()}


@st.cache_resource(max_entries=8, show_spinner=False)
def parsed(content: bytes, name: str) -> HeadLabels:
    """The labels of a file's bytes, a table of scores labelled by the rules; kept for all who ask. Raises `InputError`."""
    return label(_scored(content, name)) if name.endswith(TABLE) else HeadLabels.parse(content, name)


@st.cache_resource(max_entries=8, show_spinner=False)
def _scored(content: bytes, name: str) -> HeadScores:
    return HeadScores.parse(content, name)


@st.cache_resource(max_entries=1, show_spinner=False)
def _model(name: str) -> "HFModel":
    from workbench.models import load

    return load(name)


@st.cache_resource(max_entries=1, show_spinner=False)
def sketched(name: str) -> "Sketch":
    """A model without its weights, by its name."""
    from workbench.plan import sketch
    from workbench.sources import locate

    return sketch(locate(name))
