"""What does one layer show? `LayerView`: probabilities, from which reads are defined. `Seen`: statistics, from which they are computed without those."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.errors import InputError
from workbench.ops.blocked import pattern
from workbench.ops.changed import Change, strips_at, widened
from workbench.ops.inputs import Attention, Statistics
from workbench.rows import Rows

STRIP = 2**25
"""Probabilities that are held at once where a read needs them themselves."""


@dataclass(frozen=True, eq=False)
class LayerView:
    """The probabilities of some query heads of one layer at chosen rows [B, H, R, K], and q, k, v, z and the log-sum-exp, where they are known."""

    rows: Rows
    pattern_BHRK: Float[Tensor, "B H R K"]
    q_BHRE: Float[Tensor, "B H R E"] | None = None
    k_BGKE: Float[Tensor, "B G K E"] | None = None
    v_BGKE: Float[Tensor, "B G K E"] | None = None
    z_BHRE: Float[Tensor, "B H R E"] | None = None
    lse_BHR: Float[Tensor, "B H R"] | None = None

    @property
    def keys(self) -> int:
        """The number of keys, K."""
        return self.pattern_BHRK.shape[-1]

    def have(self, name: str, what: str) -> Tensor:
        """One of the tensors that a capture made from patterns alone does not have. Raises `InputError` then."""
        if (value := getattr(self, name)) is None:
            raise InputError(f"this capture was made from attention patterns alone; it has no {what}")
        return value

    def related_BRK(self, relation: str) -> Bool[Tensor, "B R K"]:
        """True at the keys of a relation."""
        pairs = self.rows.once(("related", relation), lambda: self.rows.related(relation))
        mask_BRK = torch.zeros(*self.rows.pos_BR.shape, self.keys, dtype=torch.bool, device=self.pattern_BHRK.device)
        mask_BRK[pairs.batch_P, pairs.row_P, pairs.key_P] = True
        return mask_BRK


@dataclass(frozen=True, eq=False)
class Seen:
    """What a streaming implementation found out about one layer, for all its heads at chosen rows; `change` is what edits do to where they look."""

    rows: Rows
    attention: Attention
    statistics: Statistics
    z_BHRE: Float[Tensor, "B H R E"]
    change: Change | None = None

    def views(self, begin: int = 0, end: int | None = None) -> Iterator[LayerView]:
        """The rows from `begin` to `end` in strips of few, each with its probabilities, edits included."""
        batch, heads, n_rows, _ = self.attention.q_BHRE.shape
        end = n_rows if end is None else end
        step = max(1, STRIP // (batch * heads * self.attention.keys))
        if self.change is not None:
            yield from self._edited(self.change, begin, end)
            return
        for cut in (slice(first, min(first + step, end)) for first in range(begin, end, step)):
            yield self._view(cut, pattern(self.attention, cut))

    def _edited(self, change: Change, begin: int, end: int) -> Iterator[LayerView]:
        """The heads that are edited in their places among the others, in whatever strips their steps are computed."""
        whole, steps = change.opened[change.heads]
        for strip, _, p_BHRK in strips_at(whole, change.of(self.attention), steps):
            cut = slice(max(strip.start, begin), min(strip.stop, end))
            if cut.start >= cut.stop:
                continue
            mine_BHRK = widened(p_BHRK[:, :, cut.start - strip.start : cut.stop - strip.start], self.attention.keys)
            if len(change.heads) == self.attention.q_BHRE.shape[1]:
                yield self._view(cut, mine_BHRK)
                continue
            all_BHRK = pattern(self.attention, cut)
            all_BHRK[:, list(change.heads)] = mine_BHRK
            yield self._view(cut, all_BHRK)

    def _view(self, cut: slice, p_BHRK: Tensor) -> LayerView:
        return LayerView(Rows(self.rows.prompts, self.rows.pos_BR[:, cut], self.rows.keys, self.rows.window), p_BHRK)
