"""What does a model get of a behaviour? Pairs of prompts of one length as tokens, with the tokens that are right and wrong behind them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.circuits.tasks.item import METRICS, Item
from workbench.errors import InputError, unknown


@dataclass(frozen=True, eq=False)
class Pairs:
    """Items of one length as token ids `clean_BT` and `corrupted_BT` (read-only), with what the tokenizer puts in front.

    `right` and `wrong` are the ids of each item's answers. `metric` is what `measure` gives unless another is asked for.
    Raises `InputError` if the parts are not equally many.
    """

    task: str
    metric: str
    items: tuple[Item, ...]
    clean_BT: Int[np.ndarray, "B T"]
    corrupted_BT: Int[np.ndarray, "B T"]
    right: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        counts = {len(self.items), len(self.clean_BT), len(self.corrupted_BT), len(self.right), len(self.wrong)}
        if len(counts) != 1 or self.clean_BT.shape != self.corrupted_BT.shape:
            raise InputError(
                f"clean and corrupted prompts have one shape, with an item and answers each; got {self.clean_BT.shape} and {self.corrupted_BT.shape}"
            )
        for name in ("clean_BT", "corrupted_BT"):
            ids_BT = np.array(getattr(self, name), np.int64)
            ids_BT.flags.writeable = False
            object.__setattr__(self, name, ids_BT)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def length(self) -> int:
        """Tokens of each prompt."""
        return self.clean_BT.shape[1]

    @property
    def templates(self) -> tuple[str, ...]:
        """The name of each item's template."""
        return tuple(item.template for item in self.items)

    def rows(self, index: Sequence[int] | Int[np.ndarray, " R"]) -> "Pairs":
        """Some of the items by number, in this order."""
        order = [int(place) for place in index]
        items, right, wrong = (tuple(values[place] for place in order) for values in (self.items, self.right, self.wrong))
        return replace(self, items=items, clean_BT=self.clean_BT[order], corrupted_BT=self.corrupted_BT[order], right=right, wrong=wrong)

    def measure(self, logits_BV: Float[Tensor, "B V"], metric: str | None = None, reference_BV: Float[Tensor, "B V"] | None = None) -> Float[Tensor, " B"]:
        """How well each item is answered by the logits at its last position; higher is better. In float32, differentiable.

        `logit_difference`: the mean logit of the right answers less that of the wrong ones. `probability_difference`: the probability of all right
        answers less that of all wrong ones, −1 to 1. `log_probability`: log of the probability of all right answers, 0 and less. `kl`: −KL(reference ‖
        logits) over the vocabulary in nats, 0 and less. Raises `InputError` for an unknown metric, and for `kl` without a reference.
        """
        metric = metric or self.metric
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
        logits_BV = logits_BV.float()
        if metric == "logit_difference":
            (right_BA, is_right_BA), (wrong_BA, is_wrong_BA) = self._gathered(logits_BV, self.right), self._gathered(logits_BV, self.wrong)
            return _total(right_BA, is_right_BA) / is_right_BA.sum(-1) - _total(wrong_BA, is_wrong_BA) / is_wrong_BA.sum(-1)
        log_p_BV = logits_BV.log_softmax(-1)
        if metric == "log_probability":
            right_BA, is_right_BA = self._gathered(log_p_BV, self.right)
            return right_BA.masked_fill(~is_right_BA, -torch.inf).logsumexp(-1)
        if metric == "probability_difference":
            p_BV = log_p_BV.exp()
            return _total(*self._gathered(p_BV, self.right)) - _total(*self._gathered(p_BV, self.wrong))
        if reference_BV is None:
            raise InputError("kl compares with the logits of another run: give them as reference_BV")
        return -torch.nn.functional.kl_div(log_p_BV, reference_BV.float().log_softmax(-1), reduction="none", log_target=True).sum(-1)

    def correct(self, logits_BV: Float[Tensor, "B V"]) -> np.ndarray:
        """Whether each item is answered rightly, [B]: the best right answer beats the best wrong one; under `probability_difference`, that is above 0."""
        if self.metric == "probability_difference":
            return (self.measure(logits_BV) > 0).cpu().numpy()
        best = [one_BA.masked_fill(~there_BA, -torch.inf).amax(-1) for one_BA, there_BA in (self._gathered(logits_BV, ids) for ids in (self.right, self.wrong))]
        return (best[0] > best[1]).cpu().numpy()

    def _gathered(self, values_BV: Tensor, ids: tuple[tuple[int, ...], ...]) -> tuple[Tensor, Tensor]:
        """The values [B, A] of each item's tokens, and which of them are there."""
        most = max(map(len, ids), default=0)
        ids_BA = torch.tensor([[*one, *[-1] * (most - len(one))] for one in ids], device=values_BV.device).reshape(len(ids), most)
        return values_BV.gather(-1, ids_BA.clamp(min=0)), ids_BA >= 0


def _total(values_BA: Tensor, there_BA: Tensor) -> Tensor:
    return values_BA.masked_fill(~there_BA, 0).sum(-1)


@dataclass(frozen=True, eq=False)
class TaskSet:
    """The items of a task that fit a model: one `Pairs` per length, the one with the most items first.

    `task` is what was asked for, options included. `dropped` counts by reason the items that did not fit; `seed` is what they were drawn by.
    """

    task: str
    pairs: tuple[Pairs, ...]
    dropped: Mapping[str, int]
    seed: int

    def __len__(self) -> int:
        return sum(map(len, self.pairs))

    @property
    def items(self) -> tuple[Item, ...]:
        """All items, in the order of `pairs`."""
        return tuple(item for pairs in self.pairs for item in pairs.items)

    @property
    def chance(self) -> float:
        """The accuracy of a model that knows nothing, 0–1: the mean share of right ones among an item's answers; a half under `probability_difference`."""
        shares = [
            0.5 if pairs.metric == "probability_difference" else len(right) / (len(right) + len(wrong))
            for pairs in self.pairs
            for right, wrong in zip(pairs.right, pairs.wrong, strict=True)
        ]
        return float(np.mean(shares))

    def accuracy(self, logits: Sequence[Float[Tensor, "_ V"]]) -> float:
        """The share of items that are answered rightly, 0–1 (`Pairs.correct`), from the last logits of each of `pairs`.

        Raises `InputError` if they are not as many.
        """
        if len(logits) != len(self.pairs):
            raise InputError(f"one tensor of logits for each of {len(self.pairs)} lengths, got {len(logits)}")
        return float(np.concatenate([pairs.correct(one_BV) for pairs, one_BV in zip(self.pairs, logits, strict=True)]).mean())

    def split(self, share: float, by: str = "item", seed: int = 0) -> tuple["TaskSet", "TaskSet"]:
        """Two parts, drawn by `seed`: about `share` (0–1) of the items, and those held out.

        `by` is `item`, `template`, or the name of a fact: no template, or no value of the fact, is then in both parts. Raises `InputError` if a part
        would be empty, and for an unknown `by`.
        """
        items = self.items
        value = _values(items, by)
        known = sorted(set(value))
        if len(known) < 2 or not 0 < share < 1:
            raise InputError(f"a split by {by} takes a share between 0 and 1 and at least two of them, got {share} and {len(known)}")
        order = np.random.default_rng(seed).permutation(len(known))
        first = {known[place] for place in order[: min(max(round(len(known) * share), 1), len(known) - 1)]}
        is_first = [one in first for one in value]
        return self._only(lambda number: is_first[number]), self._only(lambda number: not is_first[number])

    def _only(self, wanted: Callable[[int], bool]) -> "TaskSet":
        chosen, start = [], 0
        for pairs in self.pairs:
            if index := [row for row in range(len(pairs)) if wanted(start + row)]:
                chosen.append(pairs.rows(index))
            start += len(pairs)
        return replace(self, pairs=tuple(sorted(chosen, key=lambda one: (-len(one), one.length))))


def _values(items: Sequence[Item], by: str) -> list[str]:
    if by == "item":
        return [f"{number:09d}" for number in range(len(items))]
    if by == "template":
        return [item.template for item in items]
    if not all(by in item.facts for item in items):
        facts = {name for item in items for name in item.facts}
        raise unknown("part to split by", by, {"item", "template", *facts})
    return [item.facts[by] for item in items]
