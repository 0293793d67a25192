"""Which tokens have a successor? Classes of words in order (numbers, days, letters, …), as single tokens of a model's tokenizer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from workbench.errors import InputError, unknown

CASES = {"lower": str.lower, "title": str.title, "upper": str.upper}


@dataclass(frozen=True)
class WordClass:
    """Words in order. In a `cyclic` class the first follows the last; a `held_out` class counts in no score. `cases` are the ways to write a word."""

    name: str
    members: tuple[str, ...]
    cyclic: bool = False
    held_out: bool = False
    cases: tuple[str, ...] = ("lower",)

    def variants(self, member: str) -> list[str]:
        """How a member can be written: each case, without and with a space in front."""
        written = dict.fromkeys(CASES[case](member) for case in self.cases)
        return [space + word for space in ("", " ") for word in written]

    def successor(self, item: int) -> int | None:
        """The number of the word that follows a word, counted from 0; None behind the last of a class without a cycle."""
        return (item + 1) % len(self.members) if self.cyclic else item + 1 if item + 1 < len(self.members) else None


@dataclass(frozen=True, eq=False)
class TokenClass:
    """The tokens of a class of words: `ids` [T] and, for each, the number of its word, `item` [T], counted from 0. `texts` are the tokens as text."""

    words: WordClass
    ids: Int[np.ndarray, " T"]
    item: Int[np.ndarray, " T"]
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.words.name

    @property
    def present(self) -> tuple[int, ...]:
        """The words that have a token, by number."""
        return tuple(sorted(set(self.item.tolist())))

    @property
    def follows(self) -> Int[np.ndarray, " I"]:
        """For each word of the class the word that follows it; −1 where there is none, or none with a token."""
        after, present = [self.words.successor(item) for item in range(len(self.words.members))], set(self.present)
        return np.array([-1 if one is None or one not in present else one for one in after], np.int64)

    @property
    def counted(self) -> Bool[np.ndarray, " T"]:
        """True at the tokens that have a successor."""
        return self.follows[self.item] >= 0

    @property
    def restricted(self) -> str:
        """Which words have no token of their own, in words; empty if none is missing."""
        missing = [word for item, word in enumerate(self.words.members) if item not in self.present]
        if not missing:
            return ""
        if not self.present:
            return f"{self.name} have no single tokens"
        kept = [self.words.members[item] for item in self.present]
        return f"{self.name} restricted to {_listed(kept)}: the tokenizer splits the other {len(missing)}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) if len(words) <= 4 else f"{words[0]}, {words[1]}, …, {words[-1]} ({len(words)})"


@cache
def _read(name: str) -> tuple[dict[str, Any], ...]:
    text = files("workbench").joinpath("data", name).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines() if line.strip())


CLASSES: Mapping[str, WordClass] = MappingProxyType(
    {row["name"]: WordClass(row["name"], tuple(row["members"]), row["cyclic"], row["held_out"], tuple(row["cases"])) for row in _read("sequences.jsonl")}
)
"""The classes that ship with the package, after Gould et al. 2023: numbers 1–200, number words to twenty, ordinals to tenth, days and months with their
abbreviations (cyclic), letters; Roman numerals to XX are held out."""

SCORED = tuple(name for name, words in CLASSES.items() if not words.held_out)
"""The classes that make the score."""


def numbers(first: int, last: int) -> WordClass:
    """The numbers from `first` to `last`, both included, in digits."""
    return WordClass(f"numbers {first}–{last}", tuple(map(str, range(first, last + 1))))


def single_token(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is one known token; None for a text of several tokens, or an unknown one.

    A sentence-piece tokenizer that puts a space in front of every text gives that token for a text without a space as well.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return int(ids[0]) if len(ids) == 1 and ids[0] != getattr(tokenizer, "unk_token_id", None) else None


def tokens_of(tokenizer: Any, words: WordClass | str) -> TokenClass:
    """The single tokens of a class (or of one of `CLASSES` by name): every variant of every word that is one token, each token once.

    Raises `InputError` without a tokenizer and for an unknown class.
    """
    if tokenizer is None:
        raise InputError("words are sought among the tokens, which takes a tokenizer; this model has none")
    if isinstance(words, str):
        if words not in CLASSES:
            raise unknown("class of words", words, CLASSES)
        words = CLASSES[words]
    found: dict[int, tuple[int, str]] = {}
    for item, member in enumerate(words.members):
        for text in words.variants(member):
            if (token := single_token(tokenizer, text)) is not None:
                found.setdefault(token, (item, text))
    return TokenClass(
        words, np.array(list(found), np.int64), np.array([item for item, _ in found.values()], np.int64), tuple(text for _, text in found.values())
    )


def names(tokenizer: Any) -> TokenClass:
    """English first names that are one token, with a space in front where the tokenizer has such a token, else without. Raises as `tokens_of` does."""
    if tokenizer is None:
        raise InputError("names are sought among the tokens, which takes a tokenizer; this model has none")
    words = WordClass("names", tuple(row["name"] for row in _read("names.jsonl")), cases=("title",))
    rows = [
        (item, text, token) for item, name in enumerate(words.members) for text in (f" {name}", name) if (token := single_token(tokenizer, text)) is not None
    ]
    first = {item: (token, text) for item, text, token in reversed(rows)}
    items = sorted(first)
    return TokenClass(words, np.array([first[item][0] for item in items], np.int64), np.array(items, np.int64), tuple(first[item][1] for item in items))
