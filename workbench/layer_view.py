"""What does one layer show? `LayerView`: probabilities, from which reads are defined. `Seen`: statistics, from which they are computed without those."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.errors import InputError
from workbench.kernels.blocked import pattern
from workbench.kernels.inputs import Attention, Statistics
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
    """What a streaming implementation found out about one layer, for all its heads at chosen rows."""

    rows: Rows
    attention: Attention
    statistics: Statistics
    z_BHRE: Float[Tensor, "B H R E"]

    def views(self, begin: int = 0, end: int | None = None) -> Iterator[LayerView]:
        """The rows from `begin` to `end` in strips of few, each with its probabilities."""
        batch, heads, n_rows, _ = self.attention.q_BHRE.shape
        end = n_rows if end is None else end
        step = max(1, STRIP // (batch * heads * self.attention.keys))
        for cut in (slice(first, min(first + step, end)) for first in range(begin, end, step)):
            part = Rows(self.rows.prompts, self.rows.pos_BR[:, cut], self.rows.keys, self.rows.window)
            yield LayerView(part, pattern(self.attention, cut))
