"""How is a question put to a model? Its options by their first tokens; questions of unequal length together, padded on the left."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.questions.question import Question


@dataclass(frozen=True)
class Encoded:
    """A question as tokens: the prompt's `ids`, and the first token `first` of each option behind it."""

    question: Question
    ids: tuple[int, ...]
    first: tuple[int, ...]


def encode(model: HFModel, question: Question) -> Encoded:
    """The tokens of a question, as the model's tokenizer makes them of prompt and option together.

    Where an option changes the prompt's last tokens, the prompt ends before them. Raises `InputError` without a tokenizer, and for two options that begin
    with the same token, so that the first token does not tell them apart.
    """
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; questions need one")
    texts = [list(model.tokenizer(text)["input_ids"]) for text in (question.prompt, *question.continuations())]
    kept = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*texts, strict=False)))
    place = question.where or f"the question {question.prompt[-40:]!r}"
    if not kept or any(len(ids) <= kept for ids in texts[1:]):
        raise InputError(f"{place}: prompt and options need at least one token each")
    first = [ids[kept] for ids in texts[1:]]
    seen: dict[int, str] = {}
    for token, option in zip(first, question.options, strict=True):
        if token in seen:
            shown = model.tokenizer.decode([token])
            raise InputError(
                f"{place}: the options {seen[token]!r} and {option!r} both begin with the token {shown!r}, and only first tokens are compared; "
                "name them differently, by letters say"
            )
        seen[token] = option
    return Encoded(question, tuple(texts[0][:kept]), tuple(first))


@dataclass(frozen=True, eq=False)
class Batch:
    """Questions that go through the model together; `numbers` say which they are. Options that a question does not have are −1."""

    prompts: Prompts
    numbers: tuple[int, ...]
    option_BO: Int[np.ndarray, "B O"]
    answer_B: Int[np.ndarray, " B"]

    def options(self, logits_BV: Float[Tensor, "B V"]) -> Float[Tensor, "B O"]:
        """The log-probability of each option's first token among those of all options; −inf for those that are none. Differentiable."""
        option_BO = torch.from_numpy(self.option_BO.copy()).to(logits_BV.device)
        logit_BO = logits_BV.float().gather(1, option_BO.clamp(min=0))
        return logit_BO.masked_fill(option_BO < 0, -torch.inf).log_softmax(-1)

    def loss(self, logits_BV: Float[Tensor, "B V"]) -> Float[Tensor, " B"]:
        """−log p of the right option among the options, in nats, 0 and more. Differentiable."""
        answer_B1 = torch.from_numpy(self.answer_B.copy()).to(logits_BV.device)[:, None]
        return -self.options(logits_BV).gather(1, answer_B1)[:, 0]

    def right(self, logits_BV: Float[Tensor, "B V"]) -> Bool[np.ndarray, " B"]:
        """Whether the right option is the most probable one; of equal ones the first counts."""
        return self.options(logits_BV).argmax(-1).cpu().numpy() == self.answer_B

    def of(self, place_R: Sequence[int]) -> "Batch":
        """Some of the questions, in this order; one may come several times."""
        index = list(place_R)
        padding = None if self.prompts.padding is None else self.prompts.padding[index]
        prompts = Prompts(self.prompts.ids_BT[index], padding=padding)
        return Batch(prompts, tuple(self.numbers[place] for place in index), self.option_BO[index], self.answer_B[index])


def batches(questions: Sequence[Encoded], numbers: Sequence[int], tokens: int) -> list[Batch]:
    """The questions of these numbers, those of like length together, padded on the left; about so many `tokens` in a batch, one question at least."""
    ordered = sorted(numbers, key=lambda number: (len(questions[number].ids), number))
    groups: list[list[int]] = []
    for number in ordered:
        if not groups or (len(groups[-1]) + 1) * len(questions[number].ids) > tokens:
            groups.append([])
        groups[-1].append(number)
    return [_batch([questions[number] for number in group], tuple(group)) for group in groups]


def _batch(chosen: Sequence[Encoded], numbers: tuple[int, ...]) -> Batch:
    length = max(len(one.ids) for one in chosen)
    missing = np.array([length - len(one.ids) for one in chosen])
    ids_BT = np.array([[0] * (length - len(one.ids)) + list(one.ids) for one in chosen], np.int64)
    most = max(len(one.first) for one in chosen)
    option_BO = np.array([[*one.first, *[-1] * (most - len(one.first))] for one in chosen], np.int64)
    answer_B = np.array([one.question.answer for one in chosen], np.int64)
    return Batch(Prompts(ids_BT, padding=missing if missing.any() else None), numbers, option_BO, answer_B)


def feed(model: HFModel, prompts: Prompts) -> tuple[Int[Tensor, "B T"], dict[str, Any]]:
    """Token ids on the model's device, and what else its module takes: mask and positions where there is padding."""
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    if prompts.padding is None:
        return ids_BT, {}
    place_BT = torch.arange(prompts.length, device=model.device) - torch.tensor(prompts.start_B, device=model.device)[:, None]
    return ids_BT, {"attention_mask": (place_BT >= 0).long(), "position_ids": place_BT.clamp(min=0)}
