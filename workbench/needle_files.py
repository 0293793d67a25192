"""Which sentences are hidden in long texts, and what is asked of them? Needles, from files of JSON lines."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.matching import words_of


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, the question about it, and the gold answer: a part of the needle, by default all of it."""

    id: str
    needle: str
    question: str
    answer: str

    @property
    def decisive(self) -> tuple[str, ...]:
        """The words of the answer that stand in neither the question nor the rest of the needle; none if the answer is all of it."""
        if self.answer == self.needle:
            return ()
        other = words_of(self.question) + words_of(self.needle.replace(self.answer, " "))
        return tuple(dict.fromkeys(word for word in words_of(self.answer) if word not in other))

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
