"""How do answers about a model's heads lie on disk? As one JSON file, which says what it is, of which model, and what made it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import InputError
from workbench.files import write_text
from workbench.heads import ModelCard
from workbench.runs import versions


def write(path: str | Path, schema: str, card: ModelCard, answer: Mapping[str, Any]) -> Path:
    """Write an answer as plain data, with its schema, the model and the versions that made it; whole or not at all."""
    told = {"schema": schema, "model": asdict(card), "versions": versions(), **answer}
    return write_text(path, json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: str | Path, schema: str) -> tuple[ModelCard, dict[str, Any]]:
    """The model and the answer of a file of this schema. Raises `InputError` for a file that is missing or is something else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("schema") != schema:
            raise InputError(f"{Path(path).name} is none of {schema}")
        return ModelCard.from_json(data["model"]), data
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {Path(path).name}: {error}") from error


def listed(array: np.ndarray) -> list[Any]:
    """Numbers as lists; None where there is none, as JSON knows no NaN."""
    kept = array.astype(object)
    kept[~np.isfinite(array)] = None
    return kept.tolist()


def numbers(lists: list[Any]) -> np.ndarray:
    """What `listed` wrote, as single floats."""
    return np.array(lists, dtype=np.float32)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table row by row; None where there is no number."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
