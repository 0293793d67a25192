"""How is a file that others wrote taken in? Parsed, held to a schema and to the model's shape, or refused with file and reason."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from jaxtyping import Float

from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.labels import schema as labels_schema

NUMBER = {"type": "number", "minimum": -1e300, "maximum": 1e300}
"""JSON Schema of a finite number, small enough that a mean of such numbers is finite too."""

COUNT = {"type": "integer", "minimum": 0, "maximum": 10**9}
"""JSON Schema of an index or a size."""

INDEX = "(0|[1-9][0-9]{0,5})"
"""Pattern of a layer or a head as a key of a JSON object; one way to write each, so that no head can come twice."""


def read_text(path: Path) -> str:
    """The text of a file. Raises `InputError` for a file that is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file: {error.reason} at byte {error.start}") from error


def read_json(path: Path, schema: Mapping[str, Any]) -> Any:
    """The content of a JSON file that keeps to a JSON Schema. Raises `InputError` naming the file and the place."""
    try:
        data = json.loads(read_text(path), parse_constant=_refuse, object_pairs_hook=_no_doubles)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON that can be read: {error}") from error
    return checked(data, schema, path)


def checked(data: Any, schema: Mapping[str, Any], path: Path) -> Any:
    """The data, if it keeps to the schema. Raises `InputError` naming the file and the place."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(data))
    if error:
        raise InputError(f"{path}: at {error.json_path}: {error.message[:200]}")
    return data


def matrix(path: Path, card: ModelCard, rows: Iterable[tuple[int, int, float]], *, per_kv: bool = False) -> Float[np.ndarray, "layers heads"]:
    """One number per head from (layer, head, number) rows, for query heads or KV heads.

    Raises `InputError` unless every head of the model has one, saying what the file and what the model has.
    """
    shape = card.shape
    value = {(layer, head): number for layer, head, number in rows}
    width = shape.n_kv_heads if per_kv else shape.n_heads
    layers, heads = (1 + max((key[axis] for key in value), default=-1) for axis in (0, 1))
    if (layers, heads) != (shape.n_layers, width) or len(value) != layers * heads:
        kind = "KV heads" if per_kv else "query heads"
        has = f"{path} has {len(value)} heads in {layers} layers × {heads}"
        raise InputError(f"{has}; {card.name} has {shape.n_layers * width} in {shape.n_layers} layers × {width} {kind}")
    return np.array([[value[layer, head] for head in range(width)] for layer in range(shape.n_layers)], float)


def agree_on_layers(path: Path, card: ModelCard, layers: int) -> None:
    """Raise `InputError` unless the file has as many layers as the model."""
    if layers != card.shape.n_layers:
        raise InputError(f"{path} has {layers} layers, {card.name} has {card.shape.n_layers}")


def card_of(path: Path, data: Any) -> ModelCard:
    """The model card that a file of ours carries. Raises `InputError` where it is damaged."""
    checked(data, labels_schema()["properties"]["model"], path)
    return ModelCard.from_json(data)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("an object has the same key twice")
    return data
