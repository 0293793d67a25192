"""Which results lie there? Every file of a folder, known by what is in it and not by its name, or the reason why it cannot be shown."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from workbench.circuits.circuit import SCHEMA as CIRCUIT
from workbench.circuits.circuit import Circuit
from workbench.errors import InputError
from workbench.jobs import STATES, Job
from workbench.labels import SCHEMA as LABELS
from workbench.labels import HeadLabels
from workbench.runs import Run
from workbench.scores import HeadScores

MOST_BYTES = 50 * 2**20
"""Larger files are named, not read."""

TABLES: Mapping[str, frozenset[str]] = {
    "methods": frozenset({"seed", "part", "method", "measure", "value", "low", "high"}),
    "recovery": frozenset({"what", "beta", "leak", "seed", "method", "auroc", "average_precision", "chance"}),
    "code_sizes": frozenset({"examples", "latents", "pairs", "seed", "model_seed", "auroc", "average_precision", "f1", "codes", "loss"}),
    "overlap": frozenset({"first_task", "second_task", "budget", "shared", "expected", "jaccard", "low", "high", "q_layer", "ceiling"}),
    "shared_heads": frozenset({"head", "circuits", "tasks", "labels"}),
    "transfer": frozenset({"circuit", "task", "budget", "kind", "value", "random_mean", "random_sd"}),
    "turned": frozenset({"heads turned", "to", "heads", "accuracy", "low", "high"}),
    "needles": frozenset({"kind", "phase", "condition", "seed", "test", "recall", "heads"}),
    "recall": frozenset({"variant", "draw", "heads", "test", "needle", "length", "depth", "recall", "word_recall"}),
    "policies": frozenset(
        {"policy", "budget", "seed", "full_heads", "kv_share", "recall", "kept", "kept_low", "kept_high", "tests", "perplexity", "agreement"}
    ),
    "streams": frozenset({"way", "stretch", "position", "nll", "tokens"}),
    "sinks": frozenset(
        {"layer", "head", "attention_sink", "attention_sink_random", "attention_sink_repeated", "later_sink_alpha_n", "later_sink_absolute"}
        | {"later_sink_uniform", "no_op", "no_op_mass", "text_first", "text_value_first", "text_value_rest", "text_key_first", "text_key_rest"}
    ),
    "search": frozenset({"head", "gain", "n", "fixed", "broken", "e_helps", "e_hurts", "stopped", "kept"}),
    "held_out": frozenset({"heads", "seed", "count", "task", "n", "accuracy", "difference", "difference_low", "difference_high", "p"}),
    "ph3": frozenset({"steer", "memory", "context", "other", "n", "heads"}),
    "successors": frozenset({"head", "layer", "index", "successor", "successor_null", "copy_suppression", "name_mover", "successor_raw"}),
    "steering": frozenset({"class", "direction", "scale", "moves", "success", "up", "down", "above"}),
    "presets": frozenset({"probe", "head", "quick", "paper"}),
}
"""The tables that have a section of their own, in this order, by the columns that each has."""

WORDS = {
    "labels": "head labels",
    "scores": "scores with intervals and nulls",
    "circuit": "a circuit",
    "run": "samples of a run",
    "needles": "needle tests with heads ablated",
    "recall": "needle recall without some heads",
    "policies": "what policies keep",
    "search": "heads searched for calibration",
    "held_out": "calibration on held-out questions",
    "ph3": "memory against context",
    "presets": "quick against paper preset",
    "sinks": "attention sinks by head",
    "successors": "successor heads with controls",
    "steering": "steering of a successor head",
    "methods": "methods that find circuits",
    "recovery": "methods where the circuit is known",
    "code_sizes": "codes where the circuit is known, by their settings",
    "overlap": "heads that circuits share",
    "shared_heads": "in how many circuits each head is",
    "transfer": "circuits on other tasks",
    "turned": "heads turned in another task",
    "streams": "loss with a short cache",
    "table": "a table",
    "map": "a map of one head's attention",
    "text": "a text",
    "picture": "a picture or page",
    "unread": "cannot be shown",
}
"""Every kind of result in words."""

ENDINGS = {".npz": "map", **dict.fromkeys((".png", ".svg", ".html", ".graphml"), "picture")}


@dataclass(frozen=True, eq=False)
class Result:
    """One file: its `name`, its `kind` (`WORDS`), the `value` that was read (of a text, what made it), its size in bytes and SHA-256.

    Or the `problem` why it cannot be shown.
    """

    name: str
    kind: str
    value: Any
    size: int
    sha256: str
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Results:
    """All results of one place, by name; `title` is what it is called, and of a job `remark` says which, and how far it is."""

    title: str
    files: tuple[Result, ...]
    remark: str = ""

    def of(self, *kinds: str) -> list[Result]:
        """The results of some kinds."""
        return [result for result in self.files if result.kind in kinds]

    def first(self, kind: str) -> Any:
        """The value of the first result of a kind, None if there is none."""
        return next((result.value for result in self.of(kind)), None)


def collect(source: str | Path, runs: Path | None = None) -> Results:
    """The results at a place: a folder, one file (with labels, the `scores.parquet` beside them), or the name of a run or job below `runs`.

    A run's or job's name is its fingerprint, or the beginning of only one. A file that cannot be read is there with its problem; what a command of the
    workbench made for itself (`report.html` and the like) is left out. Raises `InputError` where there is nothing by that name, or no result in it.
    """
    path = Path(source)
    if not path.exists():
        path = _named(str(source), runs)
    job = Job(path) if (path / "job.json").is_file() else None
    if path.is_dir():
        every = sorted(path.iterdir()) if job is None else job.results
        found = [_run(path)] if (path / "question.json").is_file() else [_read(one) for one in every if _counts(one)]
    else:
        beside = path.with_name("scores.parquet")
        found = [_read(path)]
        found += [_read(beside)] if found[0].kind == "labels" and beside.is_file() else []
    if not any(result.value is not None and result.kind != "text" for result in found):
        reasons = "; ".join(f"{result.name}: {result.problem}" for result in found if result.problem)
        raise InputError(f"there is no result to show in {source}" + (f" ({reasons})" if reasons else ""))
    remark = "" if job is None else f"Made by the job `{job.command}`, which {STATES[job.state]}."
    return Results(path.resolve().name if path.is_dir() else path.stem, tuple(found), remark)


def _named(name: str, runs: Path | None) -> Path:
    if runs is None or not name or Path(name).name != name:
        raise InputError(f"there is no file or folder {name}")
    places = [path for root in (runs, runs / "jobs") if root.is_dir() for path in sorted(root.iterdir()) if path.is_dir() and path.name.startswith(name)]
    exact = [path for path in places if path.name == name] or [path for path in places if path.name != "jobs"]
    if len(exact) != 1:
        told = f"{len(exact)} runs begin with it: {', '.join(path.name for path in exact[:5])}" if exact else f"no run in {runs} begins with it"
        raise InputError(f"{name} is no file or folder, and {told}")
    return exact[0]


def _counts(path: Path) -> bool:
    """Whether a file is a result: no folder, nothing hidden, no report of the same folder."""
    return path.is_file() and not path.name.startswith(".") and path.stem not in ("report", "README")


def _read(path: Path) -> Result:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            return Result(path.name, "unread", None, size, "", f"it has {size / 2**20:.0f} MiB, more than {MOST_BYTES / 2**20:.0f} MiB are not read")
        content = path.read_bytes()
    except OSError as error:
        return Result(path.name, "unread", None, 0, "", str(error.strerror))
    known = len(content), hashlib.sha256(content).hexdigest()
    try:
        kind, value = _KINDS.get(path.suffix, _other)(path, content)
    except InputError as error:
        return Result(path.name, "unread", None, *known, str(error).replace(str(path), path.name))
    return Result(path.name, kind, value, *known)


def _json(path: Path, content: bytes) -> tuple[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON that can be read: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema == LABELS:
        return "labels", HeadLabels.parse(content, path.name)
    if schema == CIRCUIT:
        return "circuit", Circuit.load(path)
    raise InputError(f"a JSON file of the schema {schema!r}, which is none of the results" if schema else "a JSON file that names no schema")


def _parquet(path: Path, content: bytes) -> tuple[str, Any]:
    try:
        return "scores", HeadScores.parse(content, path.name)
    except InputError as error:
        try:
            return _table(pd.read_parquet(io.BytesIO(content)))
        except (OSError, ValueError, pa.ArrowException):
            raise error from None


def _csv(_path: Path, content: bytes) -> tuple[str, Any]:
    try:
        return _table(pd.read_csv(io.BytesIO(content)))
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"not a table that can be read: {error}") from error


def _table(rows: pd.DataFrame) -> tuple[str, Any]:
    """A table, and which: the kind of which it has every column and at least one row, else a table."""
    there = set(rows.columns)
    return next((kind for kind, columns in TABLES.items() if columns <= there and len(rows)), "table"), rows


def _text(_path: Path, content: bytes) -> tuple[str, Any]:
    """Of a text, the sentence that says what made it and the tables beside it, as benchmarks write it; None where there is none."""
    lines = content.decode("utf-8", "replace").splitlines()
    return "text", next((line for line in reversed(lines) if line.startswith("Made by ")), None)


def _other(path: Path, _content: bytes) -> tuple[str, Any]:
    if path.suffix not in ENDINGS:
        raise InputError(f"a {path.suffix or 'file without an ending'}, which is none of the results")
    return ENDINGS[path.suffix], None


_KINDS: dict[str, Callable[[Path, bytes], tuple[str, Any]]] = {".json": _json, ".parquet": _parquet, ".csv": _csv, ".md": _text, ".txt": _text}


def _run(folder: Path) -> Result:
    """One question about some probes: the samples on disk."""
    content = b""
    try:
        content = (folder / "question.json").read_bytes()
        run = Run(folder.parent, json.loads(content))
        run.question["probes"], run.question["seed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Result(folder.name, "unread", None, len(content), "", f"its question cannot be read: {error}")
    return Result(folder.name, "run", run, len(content), hashlib.sha256(content).hexdigest())
