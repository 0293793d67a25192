"""What was asked before? Results on disk: one folder per question, found again when the same question is asked.

A question is plain data: model fingerprint, probe, prompts, seed, versions, dtype, device, implementation. Its folder
`<root>/<fingerprint of the question>/`, on this machine or in a storage, holds `question.json` and one parquet file per finished part, each written whole or
not at all; so a killed sweep goes on where it stopped.
"""

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import InputError
from workbench.storage import Place, read, write


@dataclass(frozen=True, eq=False)
class Part:
    """One finished part of a run: scores [N, L, H] by probe, and per sample whether it counts for that probe and what it was."""

    scores: Mapping[str, np.ndarray]
    valid: Mapping[str, np.ndarray]
    facts: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Run:
    """The results of one question under `root`."""

    root: Place
    question: Mapping[str, Any]
    patience: float = 0
    """Seconds for which a storage that refuses is waited for."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over the question."""
        return fingerprint_of(self.question)

    @property
    def folder(self) -> Place:
        """Where the results lie."""
        return self.root / self.fingerprint

    def load(self, part: str) -> Part | None:
        """A finished part, or None. A file that cannot be read counts as not finished and will be made again."""
        try:
            content = read(self._path(part), self.patience)
            if content is None:
                return None
            table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
            facts = json.loads(table.schema.metadata[b"facts"])
            shapes = json.loads(table.schema.metadata[b"shapes"])
            columns = {name: np.asarray(table.column(name)) for name in table.column_names}
            scores = {probe: columns[f"{probe}.score"][: int(np.prod(shape))].reshape(shape) for probe, shape in shapes.items()}
            valid = {probe: columns[f"{probe}.valid"][: int(np.prod(shape))].reshape(shape)[:, 0, 0] for probe, shape in shapes.items()}
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
            return None
        return Part(scores, valid, tuple(facts))

    def save(self, part: str, result: Part) -> None:
        """Write a finished part, and the question beside the first."""
        told = self.folder / "question.json"
        if read(told, self.patience) is None:
            write(told, (json.dumps(self.question, indent=1, default=str, sort_keys=True) + "\n").encode(), self.patience)
        longest = max(score.size for score in result.scores.values())
        columns: dict[str, np.ndarray] = {}
        for probe, score in result.scores.items():
            valid = np.broadcast_to(result.valid[probe][:, None, None], score.shape)
            columns[f"{probe}.score"] = _padded(score.astype(float), longest, np.nan)
            columns[f"{probe}.valid"] = _padded(valid, longest, False)
        shapes = {probe: score.shape for probe, score in result.scores.items()}
        metadata = {"facts": json.dumps(result.facts, default=str), "shapes": json.dumps(shapes)}
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, made := pa.BufferOutputStream(), write_page_checksum=True)
        write(self._path(part), made.getvalue().to_pybytes(), self.patience)

    @property
    def expected(self) -> int:
        """How many parts a finished run has: one per batch of prompts, or one if the weights alone are asked."""
        return max(1, len(self.question.get("prompts", ())))

    def _path(self, part: str) -> Place:
        return self.folder / f"{part}.parquet"


def _padded(array: np.ndarray, size: int, filler: Any) -> np.ndarray:
    flat = array.ravel()
    return np.concatenate([flat, np.full(size - flat.size, filler, flat.dtype)])


def fingerprint_of(question: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of a hash over plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """The versions that decide a result: workbench (and a hash of its code), torch, transformers, numpy, Python."""
    packages = {"workbench": "attention-head-workbench", "torch": "torch", "transformers": "transformers", "numpy": "numpy"}
    return {name: version(package) for name, package in packages.items()} | {"python": platform.python_version(), "code": _code()}


def _code() -> str:
    """8 hexadecimal digits of a hash over the sources and data that make results, so that no result outlives a change of them."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".jsonl")):
        if path.relative_to(root).parts[0] not in ("cli", "formats", "views", "plan.py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def overview(root: Path) -> pd.DataFrame:
    """One row per run under a folder, newest first; no rows where there is none.

    `run` is its fingerprint; `last`, when its last part was finished (UTC); `parts` done and `of` how many; `probes`; `again`, whether the present code and
    versions would find it again; and `model` (a fingerprint), `seed`, `dtype`, `device`, `implementation` as its `question` has them, plain data.
    A folder whose question cannot be read has the reason in `problem`, which is empty elsewhere.
    """
    rows = [_row(path) for path in root.glob("*/question.json")]
    names = ["run", "last", "parts", "of", "probes", "again", *_TOLD, "problem", "question"]
    return pd.DataFrame([row for row in rows if row is not None], columns=names).sort_values("last", ascending=False, ignore_index=True)


_TOLD = ("model", "seed", "dtype", "device", "implementation")


def _row(path: Path) -> dict[str, Any] | None:
    """The row of one run; None if it has been deleted meanwhile."""
    try:
        run = Run(path.parent.parent, json.loads(path.read_text(encoding="utf-8")))
        question = run.question
        last = max((part.stat().st_mtime for part in path.parent.iterdir()), default=0)
        told = {name: question.get(name) for name in _TOLD}
        probes, again = ", ".join(question["probes"]), question.get("versions") == versions()
        done = {"parts": len(list(path.parent.glob("part-*.parquet"))), "of": run.expected, "probes": probes, "again": again}
        return {"run": path.parent.name, "last": pd.Timestamp(last, unit="s"), **done, **told, "problem": "", "question": question}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {
            "run": path.parent.name,
            "last": pd.Timestamp(path.stat().st_mtime, unit="s"),
            "problem": f"its question cannot be read: {error}",
            "question": {},
        }


def find(root: Path) -> Sequence[Run]:
    """Every run under a folder, oldest first."""
    paths = sorted(root.glob("*/question.json"), key=lambda path: path.stat().st_mtime)
    return [Run(root, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def remove(root: Path, fingerprint: str) -> None:
    """Delete a run with its finished parts for good. Raises `InputError` if there is none of that fingerprint under `root`, or if it cannot be deleted."""
    folder = root / fingerprint
    if not re.fullmatch(r"[0-9a-f]{16}", fingerprint) or not (folder / "question.json").is_file():
        raise InputError(f"there is no run {fingerprint}; it may have been removed")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise InputError(f"run {fingerprint} cannot be deleted: {error.strerror}") from error
