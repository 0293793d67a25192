"""Of which words are the prompts made? Lists that several tasks draw from; a tokenizer takes of them what it has as single tokens."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


@cache
def rows(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a data file of the package, such as `names.jsonl`."""
    text = files("workbench").joinpath("data", name).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines() if line.strip())


def listed(text: str) -> tuple[str, ...]:
    """The words of a text with spaces between them."""
    return tuple(text.split())


NAMES = tuple(row["name"] for row in rows("names.jsonl"))
"""English first names."""

NOUNS = listed(
    "apple army bank bear bird board boat body bone book bottle box bread bridge brother building card chain chair child church circle city cloud coat "
    "coffee cook corner cow cup dance day desk dish doctor dog door dream dress ear engine eye face family farm father field finger fire fish floor flower "
    "foot forest friend garden gate girl glass gold grass hair hall hand hat heart hill horse hotel house island job key king kitchen lake leaf letter "
    "library light line lion machine man map market meat milk mirror money moon mother mountain mouse mouth music neck night nose ocean office oil page "
    "paper park pen picture plant plate queen rain river road rock roof room rose salt school sea seed ship shirt shoe shop sister skin sky snow song "
    "spring star stone street student sugar sun table teacher tooth town train tree village wall water window winter woman wood world"
)
"""Common nouns of one syllable or two, all different."""


def drawn(rng: np.random.Generator, things: Sequence[T], count: int) -> list[T]:
    """So many different ones of some things, in random order."""
    return [things[place] for place in rng.permutation(len(things))[:count]]


def one(rng: np.random.Generator, things: Sequence[T]) -> T:
    """One of some things."""
    return things[int(rng.integers(len(things)))]
