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
from workbench.layer_view import LayerView, Seen
from workbench.ops.blocked import pool_into
from workbench.ops.inputs import Wanted
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
    """The attention map pooled into square blocks: [B, L, H, blocks of queries, blocks of keys], by `max` or `sum`; the last blocks may be partial.

    `queries` and `keys` cut a rectangle [begin, end) out of it first, so that a part can be seen larger; blocks of one token are exact cells.
    """

    block: int
    reducer: str = "max"
    queries: tuple[int, int] | None = None
    keys: tuple[int, int] | None = None
    per_row: ClassVar[bool] = False
    rows: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.block < 1:
            raise InputError(f"a block has at least one token, got {self.block}")
        if self.reducer not in ("max", "sum"):
            raise unknown("reducer", self.reducer, ("max", "sum"))
        for name in ("queries", "keys"):
            if (cut := getattr(self, name)) is not None and not 0 <= cut[0] < cut[1]:
                raise InputError(f"{name} are a range [begin, end) of tokens, got {cut}")

    def reference(self, view: LayerView) -> Float[Tensor, "B H U V"]:
        """Cut out, pad to whole blocks with zeros and pool."""
        (top, bottom), (left, right) = self.rectangle(view.rows)
        cut = view.pattern_BHRK[:, :, top:bottom, left:right]
        missing = [-size % self.block for size in cut.shape[2:]]
        return reduce(pad(cut, (0, missing[1], 0, missing[0])), "b h (u r) (v k) -> b h u v", self.reducer, r=self.block, k=self.block)

    def rectangle(self, rows: Rows) -> tuple[tuple[int, int], tuple[int, int]]:
        """The queries and the keys that are shown. Raises `InputError` if they leave the prompt."""
        whole = 0, rows.prompts.length
        for cut in (self.queries or whole, self.keys or whole):
            if cut[1] > whole[1]:
                raise InputError(f"the tokens {cut[0]} to {cut[1]} leave the prompt of {whole[1]}")
        return self.queries or whole, self.keys or whole

    def wanted(self, rows: Rows) -> Wanted:
        """The whole map; a part of it takes the probabilities, strip by strip."""
        return Wanted(maps=frozenset({(self.block, self.reducer)})) if self.queries is self.keys is None else Wanted()

    def streamed(self, seen: Seen) -> Float[Tensor, "B H U V"]:
        """The blocks down to the last row that was seen so far; for a part of the map all its blocks, of which later rows are still empty."""
        if self.queries is self.keys is None:
            return seen.statistics.maps[self.block, self.reducer]
        (top, bottom), (left, right) = self.rectangle(seen.rows)
        size = [-(-length // self.block) for length in (bottom - top, right - left)]
        whole_BHUV = seen.attention.q_BHRE.new_zeros(*seen.attention.q_BHRE.shape[:2], *size, dtype=torch.float32)
        first = seen.attention.span[0]
        for view in seen.views(max(top - first, 0), max(min(bottom - first, seen.attention.q_BHRE.shape[2]), 0)):
            cut = view.pattern_BHRK[..., left:right]
            pool_into(whole_BHUV, cut, int(view.rows.pos_BR[0, 0]) - top, self.block, self.reducer)
        return whole_BHUV

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


@dataclass(frozen=True)
class KeyNorm(ValueNorm):
    """The length ‖k‖ of each key vector, after position rotation and norms, as it is multiplied; per KV head: [B, L, G, K]."""

    def reference(self, view: LayerView) -> Float[Tensor, "B G K"]:
        """Euclidean norm in float32."""
        return view.have("k_BGKE", "keys").float().norm(dim=-1)

    def streamed(self, seen: Seen) -> Float[Tensor, "B G K"]:
        """Euclidean norm in float32."""
        return seen.attention.k_BGKE.float().norm(dim=-1)
