"""Does an item fit a tokenizer? Prompts of one length, answers of one token each; else the reason why not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from workbench.circuits.tasks.item import Item
from workbench.errors import InputError
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.questions import feed

UNEQUAL = "clean and corrupted prompts of unequal length"
SEVERAL = "an answer of several tokens"
JOINED = "an answer that changes the prompt's tokens"
SHARED = "an answer both right and wrong by its token"
SAME = "clean and corrupted prompts the same"
UNKNOWN = "a fact that the model does not know"


@dataclass(frozen=True)
class Encoded:
    """An item as token ids: both prompts, and the token of each answer."""

    item: Item
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a text, with what the tokenizer puts in front."""
    return tuple(tokenizer(text)["input_ids"])


def sizes(model: HFModel) -> Callable[[str], int]:
    """How many tokens a text has, as a function that remembers. Raises `InputError` without a tokenizer."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; tasks need one")
    return cache(lambda text: len(ids_of(model.tokenizer, text)))


def encode(model: HFModel, item: Item) -> Encoded | str:
    """The tokens of an item, or the reason why it does not fit: one of the texts above.

    An answer is the one token that the tokenizer puts behind the clean prompt. Where it joins the two otherwise (" 17" and "00" are one token of GPT-2),
    the answer's own token counts if it spells the answer.
    """
    tokenizer = model.tokenizer
    clean, corrupted = ids_of(tokenizer, item.clean), ids_of(tokenizer, item.corrupted)
    if len(clean) != len(corrupted):
        return UNEQUAL
    if clean == corrupted:
        return SAME
    answers: list[int] = []
    for text in (*item.right, *item.wrong):
        token = _answer(tokenizer, item.clean, clean, text)
        if isinstance(token, str):
            return token
        answers.append(token)
    right, wrong = answers[: len(item.right)], answers[len(item.right) :]
    if {*right} & {*wrong}:
        return SHARED
    return Encoded(item, clean, corrupted, tuple(dict.fromkeys(right)), tuple(dict.fromkeys(wrong)))


def _answer(tokenizer: Any, prompt: str, ids: tuple[int, ...], text: str) -> int | str:
    joined = ids_of(tokenizer, prompt + text)
    if joined[: len(ids)] == ids:
        behind = joined[len(ids) :]
        return behind[0] if len(behind) == 1 else SEVERAL
    alone = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(alone) != 1:
        return SEVERAL
    return alone[0] if tokenizer.decode([ids[-1], *alone]) == tokenizer.decode([ids[-1]]) + text else JOINED


@torch.no_grad()
def known(model: HFModel, items: Sequence[Item]) -> list[str]:
    """Which items the model knows: those whose right answer is the most probable token behind the closed-book prompt, the fact `query`.

    For each item an empty text, or `UNKNOWN`; items without a query are kept. All queries go through the model as one batch, padded on the left.
    """
    asked = sorted({item.facts["query"] for item in items if "query" in item.facts})
    if not asked:
        return [""] * len(items)
    texts = [ids_of(model.tokenizer, text) for text in asked]
    longest = max(map(len, texts))
    missing_B = np.array([longest - len(text) for text in texts])
    padded_BT = np.array([[0] * (longest - len(text)) + list(text) for text in texts])
    prompts = Prompts(padded_BT, padding=missing_B if missing_B.any() else None)
    ids_BT, more = feed(model, prompts)
    best = model.hf(ids_BT, logits_to_keep=1, use_cache=False, **more).logits[:, -1].argmax(-1).tolist()
    said = dict(zip(asked, best, strict=True))
    reasons = []
    for item in items:
        query = item.facts.get("query")
        answers = {_answer(model.tokenizer, query, ids_of(model.tokenizer, query), text) for text in item.right} if query else {None}
        reasons.append("" if said.get(query) in answers else UNKNOWN)
    return reasons
