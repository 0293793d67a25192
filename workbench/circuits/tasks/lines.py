"""Which items does a user bring? One JSON object per line, with the fields of `Item`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.circuits.tasks.item import Item
from workbench.errors import InputError

FIELDS = (
    "an item has 'clean' and 'corrupted' (prompts), 'right' and 'wrong' (a text, or a list of texts, that may come next), "
    "and may have 'template' (a name) and 'facts' (an object of texts)"
)


def is_file(source: str) -> bool:
    """Whether a source is the path of a file of JSON lines and not the name of a task."""
    return str(source).endswith(".jsonl")


def load_items(path: str | Path) -> tuple[Item, ...]:
    """Items from a file of JSON lines, in its order. Raises `InputError` naming file, line and field."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read items from {path}: {getattr(error, 'strerror', None) or error}") from error
    found = [_item(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{path} has no items; each line is one JSON object: {FIELDS}")
    return tuple(found)


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """The items in an order drawn by `seed`."""
    return [items[place] for place in np.random.default_rng(seed).permutation(len(items))]


def _item(line: str, where: str) -> Item:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON that can be read: {error}") from error
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: {FIELDS}; this is no JSON object")
    if missing := [name for name in ("clean", "corrupted", "right", "wrong") if name not in data]:
        raise InputError(f"{where}: {' and '.join(map(repr, missing))} missing; {FIELDS}")
    if extra := sorted(set(data) - {"clean", "corrupted", "right", "wrong", "template", "facts"}):
        raise InputError(f"{where}: {extra[0]!r} is not known; {FIELDS}")
    for name in ("clean", "corrupted", "template"):
        if not isinstance(data.get(name, ""), str):
            raise InputError(f"{where}: {name!r} is a text, got {data[name]!r}")
    right, wrong = (_answers(data[name], name, where) for name in ("right", "wrong"))
    return Item(data["clean"], data["corrupted"], right, wrong, data.get("template", ""), _facts(data.get("facts", {}), where), where)


def _answers(given: Any, name: str, where: str) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list) or not all(isinstance(answer, str) for answer in given):
        raise InputError(f"{where}: {name!r} is a text or a list of texts, got {given!r}")
    return tuple(given)


def _facts(given: Any, where: str) -> dict[str, str]:
    if not isinstance(given, Mapping) or not all(isinstance(value, str) for value in given.values()):
        raise InputError(f"{where}: 'facts' is an object of texts, got {given!r}")
    return dict(given)
