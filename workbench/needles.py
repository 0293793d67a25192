"""Does the model find what was hidden in a long text? Needle-in-a-haystack prompts.

A test is one needle at one depth in one stretch of the haystack. Where the needle lies is found by character offsets, never by
searching for its tokens. `teacher_forced` tests carry the gold answer, so that one forward shows the rows that would produce it;
the others are answered by the model itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.models import Model
from workbench.prompts import Prompts, bos
from workbench.recipes import haystack_text, offsets

TEMPLATES = ("auto", "none")
JOINTS = 2
"""How many tokens the spaces around a needle may take."""


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, the question about it, and the gold answer: a part of the needle, by default all of it."""

    id: str
    needle: str
    question: str
    answer: str

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str) -> "Needle":
        """From one JSON object with `needle` and `question`, and perhaps `id` and `answer`. Raises `InputError` naming the place."""
        wrong = set(data) - {"id", "needle", "question", "answer"}
        if (
            wrong
            or not all(isinstance(data.get(key, ""), str) for key in ("id", "answer"))
            or not all(isinstance(data.get(key), str) and data[key].strip() for key in ("needle", "question"))
        ):
            raise InputError(f"{where}: a needle has the texts 'needle' and 'question', and may have 'id' and 'answer'; nothing else")
        answer = data.get("answer") or data["needle"]
        if data["needle"].count(answer) != 1:
            raise InputError(f"{where}: the answer must stand exactly once in the needle, word for word")
        return cls(data.get("id") or data["needle"][:20], data["needle"], data["question"], answer)


def load_needles(source: str | Path) -> list[Needle]:
    """Needles from a file of JSON lines, or from one that the package ships (`needles`, `reasoning`). Raises `InputError` for a bad line."""
    shipped = files("workbench").joinpath(f"data/{source}.jsonl") if source in ("needles", "reasoning") else Path(source)
    try:
        lines = [line for line in shipped.read_text(encoding="utf-8").splitlines() if line.strip()]
        needles = [Needle.parse(json.loads(line), f"{source}, needle {number}") for number, line in enumerate(lines, 1)]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError) as error:
        raise InputError(f"cannot read needles from {source}: {error}") from error
    if len(needles) < 2:
        raise InputError(f"{source} has {len(needles)} needles; at least two are needed, so that each can be the other's control")
    return needles


@dataclass(frozen=True)
class NeedleTests:
    """lengths × depths tests for each of `needles`; `per_cell` of them are drawn per length and depth (None: all).

    `absent=True` makes the control: another needle takes the needle's place, while question and gold answer stay.
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
        if not self.lengths_ or not self.depths or min(self.lengths_) < 1 or min(self.depths) < 0 or max(self.depths) > 1:
            raise InputError(f"lengths are tokens above 0 and depths lie in 0–1, got {self.lengths_} and {self.depths}")

    def build(self, model: Model, seed: int) -> list[Prompts]:
        """One batch of one prompt per test. Raises `InputError` if a needle does not fit or the haystack is too short."""
        rng = np.random.default_rng(seed)
        needles = load_needles(self.needles)
        hay = Haystack(model, self.haystack)
        tests = []
        for number, (length, depth) in enumerate(product(self.lengths_, self.depths)):
            chosen = [(number * (self.per_cell or 0) + turn) % len(needles) for turn in range(self.per_cell or len(needles))]
            for index in chosen:
                hidden = needles[(index + 1) % len(needles)] if self.absent else needles[index]
                tests.append(self._test(model, hay, needles[index], hidden, length, depth, rng.random()))
        return tests

    def control(self) -> "NeedleTests":
        """The needle absent, in one test per length."""
        middle = self.depths[len(self.depths) // 2]
        return replace(self, absent=True, teacher_forced=True, depths=(middle,), per_cell=1)

    def lengths(self, model: Model) -> list[int]:
        """Tokens of each test, about."""
        return [length for length in self.lengths_ for _ in self.depths for _ in range(self.per_cell or len(load_needles(self.needles)))]

    def _test(self, model: Model, hay: "Haystack", asked: Needle, hidden: Needle, length: int, depth: float, place: float) -> Prompts:
        gold = model.tokenizer(asked.answer if self._chat(model) else " " + asked.answer, add_special_tokens=False)["input_ids"]
        frame = len(encode(model, self._ask(model, hidden.needle, asked.question))[0])
        room = length - frame - len(gold)
        if room < 0 or length > model.max_length:
            raise InputError(
                f"needle {asked.id!r} with its question takes {frame + len(gold)} tokens; a test of {length} (context {model.max_length}) cannot hold it"
            )
        context = hay.with_needle(hidden.needle, max(room - JOINTS, 0), depth, place)
        text = self._ask(model, context, asked.question)
        ids, ranges = encode(model, text)
        part = hidden.needle if self.absent else asked.answer
        start = text.index(context) + context.index(hidden.needle) + hidden.needle.index(part)
        spans = {"needle": tokens_between(ranges, start, start + len(part))}
        end = len(ids) - 1
        rows = {"answer": np.arange(end, end + len(gold))[None]} if self.teacher_forced else {}
        full = np.concatenate([ids, gold]) if self.teacher_forced else ids
        facts = {
            "needle": asked.id,
            "length": length,
            "depth": depth,
            "answer": asked.answer,
            "haystack": hay.digest,
            "chat": self._chat(model),
            "absent": self.absent,
        }
        return Prompts(full[None].astype(np.int64), spans, rows, prefilled=end, facts=(facts,))

    def _chat(self, model: Model) -> bool:
        if self.template not in TEMPLATES:
            raise InputError(f"unknown template {self.template!r}; choose one of {', '.join(TEMPLATES)}")
        return self.template == "auto" and bool(getattr(model.tokenizer, "chat_template", None))

    def _ask(self, model: Model, context: str, question: str) -> str:
        ending = f"Based on the content of the book, Question: {question}\nAnswer:"
        if not self._chat(model):
            return f"{context}\n\n{ending}"
        turn = [{"role": "user", "content": f"<book>{context}</book>\n{ending}"}]
        return model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def word_recall(answer: str, response: str) -> float:
    """The share of the answer's words, each as often as it occurs, that the response has (ROUGE-1 recall, 0–1)."""
    words, said = _words(answer), _words(response)
    kept = sum(min(words.count(word), said.count(word)) for word in set(words))
    return kept / len(words)


def _words(text: str) -> list[str]:
    return "".join(letter.lower() if letter.isalnum() else " " for letter in text).split()


class Haystack:
    """A text with the character range of every token, from which stretches of so many tokens are cut."""

    def __init__(self, model: Model, path: Path | None) -> None:
        self.text, self.digest = haystack_text(path)
        self.ids, self.ranges, self.starts = offsets(model, path)

    def with_needle(self, needle: str, tokens: int, depth: float, place: float) -> str:
        """A stretch of about `tokens` tokens with the needle at a sentence's end near `depth` (0 start, 1 end).

        `place` (0–1) chooses where in the text the stretch begins.
        """
        begins = self.starts[self.starts + tokens <= len(self.ids)]
        if not len(begins):
            raise InputError(f"the haystack has {len(self.ids)} tokens; {tokens} are needed: give a longer text or shorter tests")
        if tokens == 0:
            return needle
        first = begins[int(place * len(begins))]
        ends = self.starts[(self.starts >= first) & (self.starts <= first + depth * tokens)]
        cut = self.ranges[first + tokens - 1, 1] if depth == 1 else self.ranges[ends[-1], 0]
        begin, end = self.ranges[first, 0], self.ranges[first + tokens - 1, 1]
        return " ".join(part for part in (self.text[begin:cut].strip(), needle, self.text[cut:end].strip()) if part)


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
