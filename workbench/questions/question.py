"""What is a question with options? A prompt, what may come next, and which of it is right; read from JSON lines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import InputError

FIELDS = "a question has 'prompt' (text), 'options' (two or more different texts) and 'answer' (the number of the right option from 0, or its text)"


@dataclass(frozen=True)
class Question:
    """A prompt that one of the `options` continues; `answer` is the number of the right one, from 0. `where` says where the question stands.

    A space is put between prompt and option, unless one of them has whitespace there or the prompt ends in an opening bracket.
    """

    prompt: str
    options: tuple[str, ...]
    answer: int
    task: str
    where: str = ""

    @classmethod
    def parse(cls, data: Any, where: str, task: str) -> "Question":
        """From one JSON object; `task` is its name where the object gives none. Raises `InputError` naming the place and the field."""
        if not isinstance(data, Mapping):
            raise InputError(f"{where}: {FIELDS}; this is no JSON object")
        if missing := [name for name in ("prompt", "options", "answer") if name not in data]:
            raise InputError(f"{where}: {' and '.join(map(repr, missing))} missing; {FIELDS}")
        if extra := sorted(set(data) - {"prompt", "options", "answer", "task"}):
            raise InputError(f"{where}: {extra[0]!r} is not known; {FIELDS}, and may have 'task' (a name)")
        options = _options(data["options"], where)
        for name in ("prompt", "task"):
            if not (isinstance(data.get(name, task), str) and data.get(name, task).strip()):
                raise InputError(f"{where}: {name!r} is a text that is not empty, got {data[name]!r}")
        return cls(data["prompt"], options, answer_of(data["answer"], options, where), data.get("task", task), where)

    def continuations(self) -> tuple[str, ...]:
        """The prompt with each of the options behind it."""
        return tuple(self.prompt + ("" if _joined(self.prompt, option) else " ") + option for option in self.options)


def _joined(prompt: str, option: str) -> bool:
    return prompt[-1].isspace() or option[0].isspace() or prompt[-1] in "([{“‘«"


def _options(given: Any, where: str) -> tuple[str, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < 2 or not all(isinstance(one, str) and one.strip() for one in given):
        raise InputError(f"{where}: 'options' are two or more texts that are not empty, got {given!r}")
    if twice := [one for one in given if given.count(one) > 1]:
        raise InputError(f"{where}: the option {twice[0]!r} stands twice")
    return tuple(given)


def answer_of(given: Any, options: Sequence[str], where: str) -> int:
    """The number of the right option, from a number or a text. Raises `InputError` naming the place."""
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 <= given < len(options):
            raise InputError(f"{where}: 'answer' {given} is none of the {len(options)} options, which are numbered from 0")
        return given
    if given not in options:
        raise InputError(f"{where}: 'answer' {given!r} is none of the options {', '.join(map(repr, options))}")
    return list(options).index(given)


def load_questions(path: str | Path) -> list[Question]:
    """Questions from a file of JSON lines; the file's name is the task of those that name none. Raises `InputError` naming file and line."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read questions from {path}: {getattr(error, 'strerror', None) or error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON that can be read: {error}") from error
        found.append(Question.parse(data, where, path.stem))
    if not found:
        raise InputError(f"{path} has no questions; each line is one JSON object: {FIELDS}")
    return found


@dataclass(frozen=True)
class Split:
    """Distinct questions of one task: those that heads are searched on, and those held out."""

    calibration: tuple[Question, ...]
    held_out: tuple[Question, ...]


def split(questions: Sequence[Question], examples: int, held_out: int, seed: int) -> Split:
    """So many questions to calibrate on and so many to hold out, drawn by `seed`; no prompt stands in both.

    Where there are too few, both parts shrink alike. Raises `InputError` if a part would be empty.
    """
    if min(examples, held_out) < 1:
        raise InputError(f"at least one question to calibrate on and one held out, got {examples} and {held_out}")
    distinct = list({question.prompt: question for question in reversed(questions)}.values())[::-1]
    if len(distinct) < 2:
        raise InputError(
            f"{len(distinct)} different question in {questions[0].task if questions else 'the task'}; at least two are needed, one of them held out"
        )
    order = [distinct[place] for place in np.random.default_rng(seed).permutation(len(distinct))]
    if len(order) < examples + held_out:
        examples = min(max(round(len(order) * examples / (examples + held_out)), 1), len(order) - 1)
        held_out = len(order) - examples
    return Split(tuple(order[:examples]), tuple(order[examples : examples + held_out]))
