"""Which query rows does a read look at, and which keys do they see? `Rows`: what all layers of a pass share, computed once."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.ops.inputs import Pairs, Range
from workbench.prompts import Prompts
from workbench.relations import RELATIONS


@dataclass(eq=False)
class Rows:
    """Chosen rows of all prompts, ascending, against the first K keys, in layers whose attention reaches `window` keys back (None: all)."""

    prompts: Prompts
    pos_BR: Int[Tensor, "B R"]
    keys: int
    window: int | None = None
    memo: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prompts: Prompts, asked_BR: np.ndarray, keys: int, window: int | None, device: torch.device) -> "Rows":
        """The rows at the asked positions, sorted."""
        pos_BR = np.sort(asked_BR, axis=1).astype(np.int32)
        return cls(prompts, torch.from_numpy(pos_BR).to(device), keys, window)

    @cached_property
    def start_B(self) -> Int[Tensor, " B"]:
        """The first key behind the padding."""
        return torch.tensor(self.prompts.start_B, device=self.pos_BR.device).int()

    @cached_property
    def low_BR(self) -> Int[Tensor, "B R"]:
        """The first key that each row sees."""
        low_BR = self.start_B[:, None].expand_as(self.pos_BR)
        return low_BR if self.window is None else torch.maximum(low_BR, self.pos_BR - self.window + 1)

    @cached_property
    def visible_BR(self) -> Int[Tensor, "B R"]:
        """How many keys each row sees, 0 for padding."""
        return (self.pos_BR + 1 - self.low_BR).clamp(min=0)

    @cached_property
    def seen_BK(self) -> Int[Tensor, "B K"]:
        """How many of the rows see each key."""
        begins, ends = (torch.zeros(self.pos_BR.shape[0], self.keys + 1, dtype=torch.int64, device=self.pos_BR.device) for _ in range(2))
        some_BR = (self.visible_BR > 0).long()
        begins.scatter_add_(1, self.low_BR.long().clamp(max=self.keys), some_BR)
        ends.scatter_add_(1, self.pos_BR.long() + 1, some_BR)
        return (begins - ends).cumsum(1)[:, : self.keys]

    def first(self, count: int) -> Range:
        """The first `count` keys behind the padding."""
        return self._seen(self.start_B[:, None], self.start_B[:, None] + count)

    def last(self, count: int) -> Range:
        """The last `count` keys up to the row's own."""
        return self._seen(self.pos_BR - count + 1, self.pos_BR + 1)

    def span(self, name: str) -> Range:
        """The keys of a named span."""
        span_B2 = torch.tensor(self.prompts.span(name), device=self.pos_BR.device).int()
        return self._seen(span_B2[:, :1], span_B2[:, 1:])

    def between(self, near: int, far: int) -> Range:
        """The keys at a distance of `near` to `far` − 1."""
        return self._seen(self.pos_BR - far + 1, self.pos_BR - near + 1)

    def related(self, relation: str, without: tuple[Range, ...] = ()) -> Pairs:
        """The visible keys of a relation, those in the ranges left out."""
        match_BK = torch.tensor(self.prompts.match_BT, device=self.pos_BR.device)[:, : self.keys]
        place_K = torch.arange(self.keys, device=match_BK.device)
        match_BK = torch.where(place_K < self.start_B[:, None], -1 - place_K, match_BK).contiguous()  # padding equals nothing
        parts = []
        for prompt, (match_K, pos_R) in enumerate(zip(match_BK, self.pos_BR.long(), strict=True)):
            row_P, key_P = RELATIONS[relation](match_K, pos_R)
            kept_P = key_P >= self.low_BR[prompt, row_P]
            for low_BR, high_BR in without:
                kept_P &= (key_P < low_BR[prompt, row_P]) | (key_P >= high_BR[prompt, row_P])
            parts.append((torch.full_like(row_P, prompt)[kept_P].int(), row_P[kept_P].int(), key_P[kept_P].int()))
        return Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """A value that depends on nothing but these rows, made when it is first asked for."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]

    def mask(self, keys: Range) -> Bool[Tensor, "B R K"]:
        """True at the keys of a range."""
        low_BR, high_BR = keys
        key_K = torch.arange(self.keys, device=low_BR.device)
        return (key_K >= low_BR[..., None]) & (key_K < high_BR[..., None])

    def _seen(self, low: Tensor, high: Tensor) -> Range:
        return torch.maximum(low, self.low_BR), torch.minimum(high, self.pos_BR + 1)


def between(position_BR: np.ndarray, offset: int, stop: int) -> np.ndarray:
    """Those of the positions [B, R] that lie in [offset, stop). Raises `InputError` if the prompts have unequally many there."""
    inside_BR = (position_BR >= offset) & (position_BR < stop)
    if len(set(inside_BR.sum(1).tolist())) > 1:
        raise InputError(f"the prompts have unequally many of the rows among the tokens {offset} to {stop}")
    return np.stack([position_R[inside_R] for position_R, inside_R in zip(position_BR, inside_BR, strict=True)])
