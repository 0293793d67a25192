"""Which questions ship with the package? Three tasks made from words by category, words in order, and names; the same questions every time."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.questions.hub import FORM, from_hub
from workbench.questions.question import Question, load_questions
from workbench.sequences import CLASSES

COUNT = 360
"""Questions of each task, all different."""

SHOTS = 5
PEOPLE = 4
ORDERED = ("number words", "ordinals", "days", "months", "letters")
"""The classes whose words are asked for; numbers in digits are left out, as many tokenizers give them the same first token."""

SAYING = {"city": "lives in {}", "job": "works as a {}", "animal": "has a {}", "fruit": "likes the {}"}
ASKING = {
    "city": "The city in which {} lives is",
    "job": "The job that {} has is that of a",
    "animal": "The animal that {} has is the",
    "fruit": "{} likes the",
}


@cache
def _read(name: str) -> tuple[dict[str, Any], ...]:
    text = files("workbench").joinpath("data", name).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines() if line.strip())


def categories() -> dict[str, tuple[str, ...]]:
    """Thirty words of each category (20 colours), each in one category."""
    return {row["category"]: tuple(row["words"]) for row in _read("categories.jsonl")}


def _category(rng: np.random.Generator) -> Iterator[Question]:
    """Of which kind is a word? Five examples of five of the twelve kinds, drawn at random, then a word of any kind; every word is asked once."""
    words = {kind: members for kind, members in categories().items() if kind != "colour"}
    asked = [(word, kind) for kind, members in words.items() for word in members]
    for word, kind in (asked[place] for place in rng.permutation(len(asked))):
        shots = [(_drawn(rng, [other for other in words[one] if other != word], 1)[0], one) for one in _drawn(rng, list(words), SHOTS)]
        lines = [f"Word: {other}. Kind: {one}.\n" for other, one in shots]
        options = tuple(words)
        yield Question("".join(lines) + f"Word: {word}. Kind:", options, options.index(kind), "category")


def _follows(rng: np.random.Generator) -> Iterator[Question]:
    """What stands behind, or before, a word in its order? Five examples of other words, then the question; the neighbours are among the options."""
    members = {name: CLASSES[name].members for name in ORDERED}
    asked = [(name, place, way) for name, words in members.items() for place in range(1, len(words) - 1) for way in ("after", "before")]
    while True:
        for name, place, way in (asked[number] for number in rng.permutation(len(asked))):
            words = members[name]
            right = place + (1 if way == "after" else -1)
            others = [other for other in range(len(words)) if other not in (right, place, 2 * place - right)]
            options = [words[number] for number in (right, place, 2 * place - right, *_drawn(rng, others, 2))]
            options = tuple(_drawn(rng, options, len(options)))
            shots = [_in_order(*asked[number], members) for number in rng.permutation(len(asked))[: SHOTS + 1] if asked[number] != (name, place, way)]
            yield Question(" ".join([*shots[:SHOTS], f"Right {way} {words[place]} comes"]), options, options.index(words[right]), "follows")


def _in_order(name: str, place: int, way: str, members: Mapping[str, tuple[str, ...]]) -> str:
    return f"Right {way} {members[name][place]} comes {members[name][place + (1 if way == 'after' else -1)]}."


def _recall(rng: np.random.Generator) -> Iterator[Question]:
    """Who has what? Two facts about each of four people, then one of them is asked for; what the four have are the options."""
    words, people = categories(), [row["name"] for row in _read("names.jsonl")]
    while True:
        first, second = _drawn(rng, list(SAYING), 2)
        names = _drawn(rng, people, PEOPLE)
        has = {kind: _drawn(rng, list(words[kind]), PEOPLE) for kind in (first, second)}
        told = [f"{name} {SAYING[first].format(has[first][number])} and {SAYING[second].format(has[second][number])}." for number, name in enumerate(names)]
        place = int(rng.integers(PEOPLE))
        options = tuple(_drawn(rng, has[first], PEOPLE))
        yield Question(" ".join([*told, ASKING[first].format(names[place])]), options, options.index(has[first][place]), "recall")


def _drawn(rng: np.random.Generator, pool: list[Any], count: int) -> list[Any]:
    return [pool[place] for place in rng.permutation(len(pool))[:count]]


TASKS: Mapping[str, tuple[str, Callable[[np.random.Generator], Iterator[Question]]]] = MappingProxyType(
    {
        "category": ("of which kind a word is, behind five examples; twelve options", _category),
        "follows": ("what stands behind or before a day, month, number, ordinal or letter, behind five examples; five options", _follows),
        "recall": ("what one of four people has, two facts about each having been told; four options", _recall),
    }
)
"""The tasks that ship with the package: what is asked, and how the questions are made."""


def questions_of(source: str) -> list[Question]:
    """The questions of a task of `TASKS`, of a dataset of the Hugging Face hub (`hf:…`, see `from_hub`), or of a file of JSON lines.

    Raises `InputError` for a source that is none of these.
    """
    if source in TASKS:
        made: dict[str, Question] = {}
        for question in TASKS[source][1](np.random.default_rng(0)):
            made.setdefault(question.prompt, question)
            if len(made) == COUNT:
                break
        return list(made.values())
    if source.startswith("hf:"):
        return from_hub(source)
    if Path(source).suffix in (".jsonl", ".json") or Path(source).exists():
        return load_questions(source)
    raise InputError(f"unknown task {source!r}; choose one of {', '.join(TASKS)}, a file of JSON lines (.jsonl), or a dataset as {FORM}")
