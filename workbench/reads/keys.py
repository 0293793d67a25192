"""What does each key receive, and where on the map does attention lie?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from workbench.errors import InputError, unknown
from workbench.kernels.inputs import Wanted
from workbench.layer_view import LayerView, Seen
from workbench.rows import Rows

REDUCERS = ("mean", "sum", "max")


@dataclass(frozen=True)
class Received:
    """Attention that each key receives from the rows: [B, L, H, K]. `mean` (0–1) is over the rows that can see the key; or `sum`, `max`.

    The mean over all rows is α_k of Gu et al. 2024 (2410.10781): Σ_i A[i, k] / (T − k) for a causal head. 0 for a key no row can see.
    """

    reducer: str = "mean"
    rows: str | None = None
    per_row: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.reducer not in REDUCERS:
            raise unknown("reducer", self.reducer, REDUCERS)

    def reference(self, view: LayerView) -> Float[Tensor, "B H K"]:
        """Reduce over the rows."""
        return self.finished(view.pattern_BHRK.amax(2) if self.reducer == "max" else view.pattern_BHRK.sum(2), view.rows)

    def wanted(self, rows: Rows) -> Wanted:
        """The sum or the maximum."""
        return Wanted(received=frozenset({self._kept}))

    def streamed(self, seen: Seen) -> Float[Tensor, "B H K"]:
        """The sum or the maximum, over the rows that were seen so far."""
        return seen.statistics.received[self._kept]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The same over the rows of several chunks, of which each sees more keys than the one before."""
        keys = parts[-1].shape[-1]
        padded = torch.stack([pad(part, (0, keys - part.shape[-1])) for part in parts])
        return padded.amax(0) if self.reducer == "max" else padded.sum(0)

    def finished(self, total_BHK: Tensor, rows: Rows) -> Float[Tensor, "B H K"]:
        """For all keys; divided by the number of rows that see the key, if it is the mean."""
        total_BHK = pad(total_BHK, (0, rows.keys - total_BHK.shape[-1]))
        return total_BHK / rows.seen_BK.clamp(min=1)[:, None] if self.reducer == "mean" else total_BHK

    @property
    def _kept(self) -> str:
        return "max" if self.reducer == "max" else "sum"


@dataclass(frozen=True)
class BlockMap:
    """The attention map pooled into square blocks: [B, L, H, blocks of queries, blocks of keys], by `max` or `sum`; the last blocks may be partial."""

    block: int
    reducer: str = "max"
    per_row: ClassVar[bool] = False
    rows: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.block < 1:
            raise InputError(f"a block has at least one token, got {self.block}")
        if self.reducer not in ("max", "sum"):
            raise unknown("reducer", self.reducer, ("max", "sum"))

    def reference(self, view: LayerView) -> Float[Tensor, "B H U V"]:
        """Pad to whole blocks with zeros and pool."""
        return self.pooled(view.pattern_BHRK)

    def pooled(self, pattern_BHRK: Tensor) -> Float[Tensor, "B H U V"]:
        """Any rectangle of probabilities in blocks."""
        missing = [-size % self.block for size in pattern_BHRK.shape[2:]]
        padded = pad(pattern_BHRK, (0, missing[1], 0, missing[0]))
        return reduce(padded, "b h (u r) (v k) -> b h u v", self.reducer, r=self.block, k=self.block)

    def wanted(self, rows: Rows) -> Wanted:
        """The map."""
        return Wanted(maps=frozenset({(self.block, self.reducer)}))

    def streamed(self, seen: Seen) -> Float[Tensor, "B H U V"]:
        """The blocks down to the last row that was seen so far; those above the first are empty."""
        return seen.statistics.maps[self.block, self.reducer]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The map of several chunks. A block that two chunks share is pooled from both."""
        down, across = parts[-1].shape[2:]
        padded = torch.stack([pad(part, (0, across - part.shape[3], 0, down - part.shape[2])) for part in parts])
        return padded.amax(0) if self.reducer == "max" else padded.sum(0)


@dataclass(frozen=True)
class ValueNorm:
    """The length ‖v‖ of each value vector, per KV head: [B, L, G, K]."""

    per_row: ClassVar[bool] = False
    rows: ClassVar[str | None] = None

    def reference(self, view: LayerView) -> Float[Tensor, "B G K"]:
        """Euclidean norm in float32."""
        return view.have("v_BGKE", "values").float().norm(dim=-1)

    def wanted(self, rows: Rows) -> Wanted:
        """Nothing: the values are there."""
        return Wanted()

    def streamed(self, seen: Seen) -> Float[Tensor, "B G K"]:
        """Euclidean norm in float32."""
        return seen.attention.v_BGKE.float().norm(dim=-1)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The last chunk sees all values."""
        return parts[-1]
