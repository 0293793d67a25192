"""How does a dataset of the Hugging Face hub become questions? By a source such as `hf:owner/name:split?prompt=…&options=…&answer=…`."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from workbench.errors import InputError, unknown
from workbench.questions.question import Question, answer_of

FORM = "hf:owner/name[:config]:split?prompt={text} It is about&options=sport|science&answer=label"
PARTS = ("prompt", "options", "answer", "labels")
MOST = 2000
"""Rows that are taken of a split at most, drawn with a fixed seed: many datasets are sorted by label."""


def from_hub(source: str) -> list[Question]:
    """Questions from the rows of a split of a dataset, or from `MOST` of them.

    `prompt` is a text with columns in braces, or a column's name. `options` are texts with | between them, or a column that holds a list (`choices.text`
    reaches into it). `answer` is a column with a number or an option's text; with `labels`, a column that lists the options' names (`choices.label`), it is
    such a name. %0A is a line break. Raises `InputError` for a source of another form, an unknown column, and where the hub cannot be reached.
    """
    place, _, query = source.removeprefix("hf:").partition("?")
    name, *rest = place.split(":")
    given = dict(parse_qsl(query, keep_blank_values=True))
    if wrong := sorted(set(given) - set(PARTS)):
        raise unknown("part of a hub source", wrong[0], PARTS)
    if len(rest) not in (1, 2) or not all((name, *rest)) or not {"prompt", "options", "answer"} <= set(given):
        raise InputError(f"a dataset of the hub is given as {FORM}; got {source!r}")
    config = rest[0] if len(rest) == 2 else None
    task = name.rpartition("/")[2]
    return [_question(row, given, f"{name}, row {number}", task) for number, row in _rows(name, config, rest[-1])]


def _rows(name: str, config: str | None, split: str) -> list[tuple[int, Mapping[str, Any]]]:
    try:
        import datasets
    except ImportError as error:
        raise InputError("datasets of the hub need the package datasets; a file of JSON lines works without it") from error
    try:
        dataset = datasets.load_dataset(name, config, split=split)
        return [(number, dataset[number]) for number in sorted(np.random.default_rng(0).permutation(len(dataset))[:MOST].tolist())]
    except Exception as error:  # the hub's client and the readers of files raise what they like
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"cannot load {name} ({split}): {type(error).__name__}: {reason}; a file of JSON lines works without the hub") from error


def _question(row: Mapping[str, Any], given: Mapping[str, str], where: str, task: str) -> Question:
    prompt = given["prompt"]
    if "{" in prompt:
        try:
            prompt = prompt.format_map(row)
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(f"{where}: {given['prompt']!r} cannot be filled in: {error}; columns: {', '.join(row)}") from error
    else:
        prompt = _column(row, prompt, where)
    options = given["options"].split("|") if "|" in given["options"] else list(_column(row, given["options"], where))
    answer = _column(row, given["answer"], where)
    if "labels" in given:
        answer = answer_of(answer, [str(one) for one in _column(row, given["labels"], where)], where)
    return Question.parse({"prompt": prompt, "options": options, "answer": answer}, where, task)


def _column(row: Mapping[str, Any], path: str, where: str) -> Any:
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"{where}: there is no column {path!r}; columns: {', '.join(row)}")
        value = value[part]
    return value
