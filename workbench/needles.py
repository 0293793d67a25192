"""Does the model find what was hidden in a long text? Needle-in-a-haystack prompts.

A test is one needle at one depth in one stretch of the haystack. Where the needle lies is found by character offsets, never by
searching for its tokens. `teacher_forced` tests carry the gold answer, so that one forward shows the rows that would produce it;
the others are answered by the model itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from workbench.errors import InputError
from workbench.matching import canonical, words_of
from workbench.models import Model
from workbench.needle_files import Needle, load_needles
from workbench.prompts import Prompts, bos
from workbench.recipes import haystack_text, offsets

TEMPLATES = ("auto", "none")
DATE = "26 Jul 2024"
"""The day for chat templates that tell it: the same prompts every day."""

ROOM_TO_ANSWER = 64
"""Tokens that tests of the paper's lengths leave free in the context."""

JOINTS = 2
"""How many tokens the spaces around a needle may take."""


@dataclass(frozen=True)
class NeedleTests:
    """lengths × depths tests for each of `needles`; `per_cell` of them are drawn per length and depth (None: all).

    `absent=True` makes the control: another needle takes the needle's place, while question and gold answer stay.
    `lengths_` empty: the paper's 20 lengths from 1,000 to 50,000 tokens, or to what the context holds.
    `template`: `auto` uses the tokenizer's chat template if there is one, `none` the bare prompt.
    """

    needles: str | Path = "needles"
    lengths_: tuple[int, ...] = (200, 400, 800)
    depths: tuple[float, ...] = (0.2, 0.8)
    per_cell: int | None = 2
    haystack: Path | None = None
    template: str = "auto"
    teacher_forced: bool = True
    absent: bool = False

    def __post_init__(self) -> None:
        if not self.depths or not all(length >= 1 for length in self.lengths_) or not all(0 <= depth <= 1 for depth in self.depths):
            raise InputError(f"lengths are tokens above 0 and depths lie in 0–1, got {self.lengths_} and {self.depths}")

    def build(self, model: Model, seed: int) -> list[Prompts]:
        """One batch of one prompt per test. Raises `InputError` if a needle does not fit or the haystack is too short."""
        every, rng = list(self._every(model)), np.random.default_rng(seed)
        hay = Haystack(model, self.haystack)
        return [self._test(model, hay, asked, hidden, length, depth, rng.random()) for length, depth, asked, hidden in every]

    def check(self, model: Model) -> None:
        """Raise `InputError` if a needle does not fit; no haystack is read."""
        for length, asked, hidden in dict.fromkeys((length, asked, hidden) for length, _, asked, hidden in self._every(model)):
            self._room(model, asked, hidden, length)

    def _every(self, model: Model) -> Iterator[tuple[int, float, Needle, Needle]]:
        """Length, depth, the needle that is asked for, and the one that is hidden, of each test."""
        needles = load_needles(self.needles)
        for number, (length, depth) in enumerate(product(self._sizes(model), self.depths)):
            first = number * self.per_cell + number // len(self.depths) if self.per_cell else 0  # so that every needle comes to every depth
            for index in ((first + turn) % len(needles) for turn in range(self.per_cell or len(needles))):
                yield length, depth, needles[index], needles[(index + 1) % len(needles)] if self.absent else needles[index]

    def _room(self, model: Model, asked: Needle, hidden: Needle, length: int) -> tuple[int, list[int]]:
        """How many tokens the question and the answer leave to the text around the needle, and the answer's tokens."""
        gold = model.tokenizer(asked.answer if self._chat(model) else " " + asked.answer, add_special_tokens=False)["input_ids"]
        frame = len(encode(model, self._ask(model, hidden.needle, asked.question))[0])
        room = length - frame - len(gold)
        if room < 0 or length > model.positions:
            raise InputError(f"needle {asked.id!r} with its question takes {frame + len(gold)} tokens; a test of {length} cannot hold it")
        return room, gold

    def control(self) -> "NeedleTests":
        """The needle absent, at one depth: five tests or so in the quick preset, a thirtieth of the paper's."""
        middle = self.depths[len(self.depths) // 2]
        return replace(self, absent=True, teacher_forced=True, depths=(middle,), per_cell=max(1, 4 // max(len(self.lengths_), 1)))

    def lengths(self, model: Model) -> list[int]:
        """Tokens of each test, about."""
        return [length for length in self._sizes(model) for _ in self.depths for _ in range(self.per_cell or len(load_needles(self.needles)))]

    def at_length(self, tokens: int) -> "NeedleTests":
        """The same tests in prompts of `tokens` tokens."""
        return replace(self, lengths_=(tokens,))

    def _sizes(self, model: Model) -> tuple[int, ...]:
        if self.lengths_:
            return self.lengths_
        longest = min(50_000, model.max_length - ROOM_TO_ANSWER)
        if longest < 1000:
            raise InputError(f"the paper's tests begin at 1,000 tokens; the context of {model.card.name} is {model.max_length}: give --lengths")
        return tuple(int(size) for size in np.linspace(1000, longest, 20))

    def _test(self, model: Model, hay: "Haystack", asked: Needle, hidden: Needle, length: int, depth: float, place: float) -> Prompts:
        room, gold = self._room(model, asked, hidden, length)
        context, found = hay.with_needle(hidden.needle, max(room - JOINTS, 0), depth, place)
        text = self._ask(model, context, asked.question)
        ids, ranges = encode(model, text)
        part = hidden.answer if self.absent else asked.answer
        start = text.index(context) + context.index(hidden.needle) + hidden.needle.index(part)
        spans = {"needle": tokens_between(ranges, start, start + len(part))}
        end = len(ids) - 1
        rows = {"answer": np.arange(end, end + len(gold))[None]} if self.teacher_forced else {}
        full = (np.concatenate([ids, gold]) if self.teacher_forced else ids)[None].astype(np.int64)
        facts = {
            "needle": asked.id,
            "length": length,
            "depth": depth,
            "depth_found": found,
            "answer": asked.answer,
            "decisive": asked.decisive,
            "decisive_tokens": _tokens_of(model, gold, asked.decisive),
            "haystack": hay.digest,
            "chat": self._chat(model),
            "absent": self.absent,
        }
        return Prompts(full, spans, rows, match=canonical(model.tokenizer, full), prefilled=end, facts=(facts,))

    def _chat(self, model: Model) -> bool:
        if self.template not in TEMPLATES:
            raise InputError(f"unknown template {self.template!r}; choose one of {', '.join(TEMPLATES)}")
        return self.template == "auto" and bool(getattr(model.tokenizer, "chat_template", None))

    def _ask(self, model: Model, context: str, question: str) -> str:
        ending = f"Based on the content of the book, Question: {question}\nAnswer:"
        if not self._chat(model):
            return f"{context}\n\n{ending}"
        turn = [{"role": "user", "content": f"<book>{context}</book>\n{ending}"}]
        return model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, date_string=DATE)


def _tokens_of(model: Model, gold: list[int], words: tuple[str, ...]) -> tuple[int, ...]:
    """Which tokens of the gold answer begin the given words."""
    said = [model.tokenizer.decode(gold[: end + 1]) for end in range(len(gold))]
    counts = [0, *(len(words_of(text)) for text in said)]
    everything = words_of(said[-1])
    return tuple(end for end in range(len(gold)) if counts[end + 1] > counts[end] and everything[counts[end + 1] - 1] in words)


class Haystack:
    """A text with the character range of every token, from which stretches of so many tokens are cut."""

    def __init__(self, model: Model, path: Path | None) -> None:
        self.text, self.digest = haystack_text(path)
        self.ids, self.ranges, self.starts = offsets(model, self.text)

    def with_needle(self, needle: str, tokens: int, depth: float, place: float) -> tuple[str, float]:
        """A stretch of about `tokens` tokens with the needle between two sentences, and the depth (0 start, 1 end) at which it lies.

        That is the end of a sentence nearest to `depth`; `place` (0–1) chooses where in the text the stretch begins.
        """
        begins = self.starts[self.starts + tokens <= len(self.ids)]
        if not len(begins):
            raise InputError(f"the haystack has {len(self.ids)} tokens; {tokens} are needed: give a longer text or shorter tests")
        if tokens == 0:
            return needle, 0.0
        first = begins[int(place * len(begins))]
        last = first + tokens
        ends = np.append(self.starts[(self.starts >= first) & (self.starts < last)], last)
        chosen = int(ends[np.abs(ends - (first + depth * tokens)).argmin()])
        begin, end = self.ranges[first, 0], self.ranges[last - 1, 1]
        cut = end if chosen == last else self.ranges[chosen, 0]
        text = " ".join(part for part in (self.text[begin:cut].strip(), needle, self.text[cut:end].strip()) if part)
        return text, round(float((chosen - first) / tokens), 3)


def encode(model: Model, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and their character ranges; a BOS token is put in front unless the text begins with it."""
    coded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, ranges = coded["input_ids"], np.array(coded["offset_mapping"], np.int64)
    front = [] if ids[:1] == bos(model) else bos(model)
    return np.array([*front, *ids], np.int64), np.concatenate([np.zeros((len(front), 2), np.int64), ranges])


def tokens_between(ranges: np.ndarray, start: int, end: int) -> np.ndarray:
    """The token range [[first, last + 1]] that covers characters start to end."""
    inside = np.flatnonzero((ranges[:, 1] > start) & (ranges[:, 0] < end) & (ranges[:, 1] > ranges[:, 0]))
    return np.array([[inside[0], inside[-1] + 1]])
