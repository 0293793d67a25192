"""What are the probabilities, outputs, queries and keys themselves?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from workbench.layer_view import LayerView, Seen
from workbench.ops.inputs import Wanted
from workbench.reads.rows import Array
from workbench.rows import Rows


@dataclass(frozen=True)
class Pattern:
    """The probabilities themselves: [B, L, H, R, K]. Without `rows` this is the whole map, for short prompts only."""

    rows: str | None = None
    per_row: ClassVar[bool] = False

    def reference(self, view: LayerView) -> Float[Tensor, "B H R K"]:
        """As they are."""
        return view.pattern_BHRK

    def wanted(self, rows: Rows) -> Wanted:
        """Nothing: it takes the probabilities, strip by strip."""
        return Wanted()

    def streamed(self, seen: Seen) -> Float[Tensor, "B H R K"]:
        """Strip by strip; the strips stay."""
        return torch.cat([view.pattern_BHRK for view in seen.views()], dim=2)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of several chunks, of which each sees more keys than the one before."""
        return torch.cat([pad(part, (0, parts[-1].shape[-1] - part.shape[-1])) for part in parts], dim=2)


@dataclass(frozen=True)
class HeadOutput:
    """z, each head's mix of values before the output projection, edits included: [B, L, H, R, E]. z @ W_O is what it writes."""

    rows: str | None = None
    per_row: ClassVar[bool] = False

    def reference(self, view: LayerView) -> Float[Tensor, "B H R E"]:
        """As it is, in float32."""
        return view.have("z_BHRE", "head outputs").float()

    def wanted(self, rows: Rows) -> Wanted:
        """Nothing: the outputs are there."""
        return Wanted()

    def streamed(self, seen: Seen) -> Float[Tensor, "B H R E"]:
        """As it is, in float32."""
        return seen.z_BHRE.float()


class QueryKeyValue(NamedTuple):
    """Queries [B, L, H, R, E] and keys [B, L, G, K, E], after position rotation and norms, as they are multiplied."""

    query: Array
    key: Array


@dataclass(frozen=True)
class QueryKey:
    """The queries and keys that are multiplied, edits included: `.query` [B, L, H, R, E], `.key` [B, L, G, K, E] per KV head."""

    rows: str | None = None
    per_row: ClassVar[bool] = False

    def reference(self, view: LayerView) -> QueryKeyValue:
        """As they are, in float32."""
        return QueryKeyValue(view.have("q_BHRE", "queries").float(), view.have("k_BGKE", "keys").float())

    def wanted(self, rows: Rows) -> Wanted:
        """Nothing: queries and keys are there."""
        return Wanted()

    def streamed(self, seen: Seen) -> QueryKeyValue:
        """As they are, in float32."""
        return QueryKeyValue(seen.attention.q_BHRE.float(), seen.attention.k_BGKE.float())

    def joined(self, parts: Sequence[QueryKeyValue]) -> QueryKeyValue:
        """The queries of every chunk; the last one sees all keys."""
        return QueryKeyValue(torch.cat([torch.as_tensor(part.query) for part in parts], dim=2), parts[-1].key)
