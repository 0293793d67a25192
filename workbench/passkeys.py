"""Does the model find what it was told to remember? Passkeys hidden in a long text, all asked for at its end (DuoAttention, arXiv 2410.10819)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.errors import InputError
from workbench.models import Model
from workbench.prompts import Prompts, bos
from workbench.recipes import haystack_text, offsets

WORDS = (
    *("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima", "mike"),
    *("november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey", "xray", "yankee", "zulu"),
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
SHALLOWEST, DEEPEST = 0.05, 0.95
BEFORE, BEHIND = " This is a very long story book: <book> ", " </book>.\n\n"


@dataclass(frozen=True)
class Passkeys:
    """Prompts of `lengths` (from, to) tokens: `count` passkeys of `words` words of the NATO alphabet at random depths of a stretch of the haystack.

    Behind the text every passkey is asked for in turn, with the answer given; the rows `answer` are those that produce the words of the answers. DuoAttention
    hides 10 passkeys of 32 words in 1,000–32,000 tokens of one fixed text; here the stretch is drawn anew for every prompt.
    """

    lengths: tuple[int, int] = (600, 2400)
    count: int = 5
    words: int = 12
    haystack: Path | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.count <= len(ORDINALS) and self.words >= 1 and 1 <= self.lengths[0] <= self.lengths[1]):
            raise InputError(f"passkeys: 1–{len(ORDINALS)} of them, of a word or more, in lengths from small to large; got {self}")

    def digest(self) -> str:
        """What tells the text that they are hidden in: 16 digits of its SHA-256."""
        return haystack_text(self.haystack)[1]

    def draw(self, model: Model, rng: np.random.Generator) -> Prompts:
        """One prompt. Raises `InputError` if its length cannot hold the passkeys, or the haystack or the model's positions are too short."""
        hay_T, _, _ = offsets(model, haystack_text(self.haystack)[0])
        keys = [" ".join(rng.choice(WORDS, self.words).tolist()) for _ in range(self.count)]
        hidden = [self._coded(model, f"\n\nRemember this sequence of words, it's the {name} passkey to the vault: {key}\n\n") for name, key in _named(keys)]
        asked = [
            (self._coded(model, f"\n\nBased on the content of the book, what is the {name} passkey to the vault?\nPasskey:"), self._coded(model, f" {key}"))
            for name, key in _named(keys)
        ]
        front, back = bos(model) + self._coded(model, BEFORE), self._coded(model, BEHIND)
        length = int(rng.integers(self.lengths[0], self.lengths[1] + 1))
        frame = len(front) + len(back) + sum(map(len, hidden)) + sum(len(question) + len(answer) for question, answer in asked)
        room = length - frame
        if room < 0 or not room <= len(hay_T) or length > model.positions:
            raise InputError(
                f"{self.count} passkeys of {self.words} words take {frame} tokens and the haystack has {len(hay_T)}; a prompt of {length} cannot be made "
                "of them: give other lengths, fewer or shorter passkeys, or a longer text"
            )
        begin = int(rng.integers(0, len(hay_T) - room + 1))
        text = hay_T[begin : begin + room].tolist()
        ids = [*front, *_mixed(text, [hidden[index] for index in rng.permutation(self.count)], rng), *back]
        rows: list[int] = []
        for question, answer in asked:
            ids += question
            rows += range(len(ids) - 1, len(ids) + len(answer) - 1)
            ids += answer
        return Prompts(np.array([ids], np.int64), rows={"answer": np.array([rows], np.int64)})

    def _coded(self, model: Model, text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _named(keys: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(ORDINALS, keys, strict=False))


def _mixed(text: list[int], hidden: list[list[int]], rng: np.random.Generator) -> list[int]:
    """The text with something hidden at random depths, in the order given."""
    places = np.sort(rng.uniform(SHALLOWEST, DEEPEST, len(hidden)) * len(text)).astype(int).tolist()
    parts, last = [], 0
    for place, tokens in zip(places, hidden, strict=True):
        parts += [*text[last:place], *tokens]
        last = place
    return [*parts, *text[last:]]
