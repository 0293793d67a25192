"""Which heads did a calibration keep, and why? What `workbench calibrate` writes, read again: the labels, and the tables beside them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.calibration.result import LABEL, SCORE
from workbench.calibration.search import COLUMNS
from workbench.errors import InputError
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels

MEANS = ["heads", "seed", "count", "task", "n", "accuracy", "difference", "difference_low", "difference_high", "fixed", "broken", "p", "sinks"]
"""The columns of a held-out table that are read; `evaluation.COLUMNS` says what they mean."""


@dataclass(frozen=True, eq=False)
class Found:
    """A calibration as files tell it: the `kept` heads, and the gain of each head that was measured, −1 to 1; of the others NaN, in labels 0.

    `measured` has the columns of `search.COLUMNS`, `held_out` those of `MEANS`; None where no file has them. `remarks` are worth reading.
    """

    kept: tuple[Head, ...]
    gain_LH: Float[np.ndarray, "L H"]
    measured: pd.DataFrame | None = None
    held_out: pd.DataFrame | None = None
    remarks: tuple[str, ...] = ()


def of_labels(labels: HeadLabels) -> Found | None:
    """The calibration that head labels carry; None if they carry none."""
    if LABEL not in labels.counts() or SCORE not in labels.scores:
        return None
    evidence: Mapping[str, Any] = labels.evidence.get(SCORE, {})
    rows = evidence.get("held_out") or []
    held_out = pd.DataFrame(rows) if rows and set(MEANS) <= set(rows[0]) else None
    return Found(labels.heads(LABEL), labels.scores[SCORE], None, held_out, tuple(map(str, evidence.get("remarks", ()))))


def of_files(files: Mapping[str, bytes], card: ModelCard) -> Found:
    """A calibration from files by name: labels (`.json`), the table of heads measured and the held-out table (`.csv`), any of them or all.

    Tables tell more than labels, and go before them. Raises `InputError` for a file that is none of these, for another model, and for files none of which
    tells the heads.
    """
    found: Found | None = None
    tables: dict[str, pd.DataFrame] = {}
    for name, content in files.items():
        if name.endswith(".csv"):
            tables |= _table(content, name)
            continue
        labels = HeadLabels.parse(content, name)
        labels.check_model(card)
        if (found := of_labels(labels)) is None:
            raise InputError(f"{name} has no label {LABEL!r}: it is no calibration")
    measured, held_out = tables.get("measured"), tables.get("held_out")
    if measured is not None:
        kept, gain_LH = _heads(measured, card)
        return Found(kept, gain_LH, measured, held_out if held_out is not None or found is None else found.held_out, found.remarks if found else ())
    if found is None:
        raise InputError("a held-out table does not tell which heads are calibrated; add the labels (.json) or the table of heads (.heads.csv)")
    return Found(found.kept, found.gain_LH, None, held_out if held_out is not None else found.held_out, found.remarks)


def _table(content: bytes, name: str) -> dict[str, pd.DataFrame]:
    """The table of a file under the name of what it is."""
    try:
        table = pd.read_csv(io.BytesIO(content))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is no table that can be read: {str(error).strip().splitlines()[0]}") from error
    for kind, columns, texts in (("measured", COLUMNS, {"head", "chosen", "stopped", "kept"}), ("held_out", MEANS, {"heads", "task"})):
        if set(columns) <= set(table.columns):
            if wrong := [column for column in columns if column not in texts and not pd.api.types.is_numeric_dtype(table[column])]:
                raise InputError(f"{name}: the column {wrong[0]!r} has something else than numbers")
            return {kind: table.assign(stopped=table["stopped"].astype(object).fillna("")) if kind == "measured" else table}
    missing = next(column for column in COLUMNS if column not in table.columns)
    raise InputError(f"{name} is no table of a calibration, neither of heads nor of held-out answers; of the former it lacks {missing!r}")


def _heads(measured: pd.DataFrame, card: ModelCard) -> tuple[tuple[Head, ...], np.ndarray]:
    """The kept heads of a table, and all gains."""
    if not pd.api.types.is_bool_dtype(measured["kept"]) or not np.isfinite(measured["gain"]).all():
        raise InputError("a table of heads tells of each whether it is kept (True or False), and its gain")
    gain_LH, kept = np.full((card.shape.n_layers, card.shape.n_heads), np.nan), []
    for row in measured.to_dict("records"):
        head = Head.parse(row["head"])
        card.shape.check(head)
        gain_LH[head.layer, head.index] = row["gain"]
        kept += [head] if row["kept"] else []
    return tuple(sorted(kept)), gain_LH
