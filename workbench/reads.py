"""What to observe in a forward pass, as data. Each read defines itself on the attention pattern: the reference.

A read is a frozen dataclass: it can be hashed, written down and compared. `reference(view)` computes it for some heads of one
layer from a `LayerView`; `captures` joins heads and layers, which puts L behind B in the shapes given here.
`rows` names the query rows to look at (see `Prompts.rows`); None means all.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from workbench.errors import InputError, unknown
from workbench.layer_view import RELATIONS, LayerView


@dataclass(frozen=True)
class Mass:
    """Attention probability on a set of keys, per query row: [B, L, H, R], 0–1.

    The set is the union of what is given: the `first` n keys, the `last` n keys up to the row itself, a named `span`, and the
    keys `at` a relation (`previous`, `self`, `duplicate`, `induction`). Keys that the row cannot see have probability 0.
    """

    first: int = 0
    last: int = 0
    span: str | None = None
    at: str | None = None
    rows: str | None = None
    per_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.first < 0 or self.last < 0 or not (self.first or self.last or self.span or self.at):
            raise InputError("Mass needs a set of keys: first=n, last=n, span=name or at=relation, n ≥ 0")
        if self.at is not None and self.at not in RELATIONS:
            raise unknown("relation", self.at, RELATIONS)

    def keys(self, view: LayerView) -> Bool[Tensor, " B #rows K"]:
        """True at the keys of the set."""
        distance_BRK = view.distance_BRK
        chosen = (distance_BRK >= 0) & (distance_BRK < self.last)
        chosen = chosen | (torch.arange(view.keys, device=distance_BRK.device) < self.first)
        if self.span is not None:
            chosen = chosen | view.span_BRK(self.span)
        return chosen if self.at is None else chosen | RELATIONS[self.at](view)

    def reference(self, view: LayerView) -> Float[Tensor, "B H R"]:
        """Sum the probabilities over the set."""
        if self not in view.memo:
            view.memo[self] = self.keys(view)
        return torch.einsum("bhrk,brk->bhr", view.pattern_BHRK, view.memo[self].to(view.pattern_BHRK.dtype))


@dataclass(frozen=True)
class TopMass:
    """Probability of those keys of a span that are among the row's N most attended ones, N the span's length: [B, L, H, R], 0–1."""

    span: str
    rows: str | None = None
    per_row: ClassVar[bool] = True

    def reference(self, view: LayerView) -> Float[Tensor, "B H R"]:
        """Keep the N largest probabilities of each row and sum those inside the span."""
        inside_B1K = view.span_BRK(self.span)
        mass_HR = []
        for pattern_HRK, inside_1K, count in zip(view.pattern_BHRK, inside_B1K, inside_B1K.sum(-1).flatten().tolist(), strict=True):
            top = pattern_HRK.topk(count, dim=-1)
            mass_HR.append((top.values * inside_1K[0][top.indices]).sum(-1))
        return torch.stack(mass_HR)


@dataclass(frozen=True)
class Entropy:
    """Entropy of each row's probabilities in nats, 0 to log(visible keys): [B, L, H, R]. `relative` divides by that maximum.

    A row that sees one key only has no choice; its relative entropy is defined as 0.
    """

    rows: str | None = None
    relative: bool = False
    per_row: ClassVar[bool] = True

    def reference(self, view: LayerView) -> Float[Tensor, "B H R"]:
        """Σ −p log p, with 0 log 0 = 0."""
        entropy_BHR = torch.special.entr(view.pattern_BHRK).sum(-1)
        if not self.relative:
            return entropy_BHR
        return entropy_BHR / view.visible_BRK.sum(-1).clamp(min=2).log()[:, None, :]


Array = Tensor | np.ndarray
"""A tensor while a pass runs, a NumPy array in a `Capture`."""


class PeakValue(NamedTuple):
    """The largest probability of each row, and the key that has it; the earlier key on ties."""

    prob: Array
    key: Array


@dataclass(frozen=True)
class Peak:
    """The strongest key of each row: `.prob` [B, L, H, R], 0–1, and `.key` [B, L, H, R], a position."""

    rows: str | None = None
    per_row: ClassVar[bool] = True

    def reference(self, view: LayerView) -> PeakValue:
        """Maximum and its first position."""
        prob_BHR = view.pattern_BHRK.amax(-1)
        return PeakValue(prob_BHR, (view.pattern_BHRK == prob_BHR[..., None]).int().argmax(-1))


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
        if self.reducer == "max":
            return view.pattern_BHRK.amax(2)
        total_BHK = view.pattern_BHRK.sum(2)
        return total_BHK if self.reducer == "sum" else total_BHK / view.visible_BRK.sum(1).clamp(min=1)[:, None, :]


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
        missing = [-size % self.block for size in view.pattern_BHRK.shape[2:]]
        padded = pad(view.pattern_BHRK, (0, missing[1], 0, missing[0]))
        return reduce(padded, "b h (u r) (v k) -> b h u v", self.reducer, r=self.block, k=self.block)


@dataclass(frozen=True)
class Pattern:
    """The probabilities themselves: [B, L, H, R, K]. Without `rows` this is the whole map, for short prompts only."""

    rows: str | None = None
    per_row: ClassVar[bool] = False

    def reference(self, view: LayerView) -> Float[Tensor, "B H R K"]:
        """As they are."""
        return view.pattern_BHRK


@dataclass(frozen=True)
class HeadOutput:
    """z, each head's mix of values before the output projection, edits included: [B, L, H, R, E]. z @ W_O is what it writes."""

    rows: str | None = None
    per_row: ClassVar[bool] = False

    def reference(self, view: LayerView) -> Float[Tensor, "B H R E"]:
        """As it is, in float32."""
        return _present(view.z_BHRE, "head outputs").float()


class QueryKeyValue(NamedTuple):
    """Queries [B, L, H, R, E] and keys [B, L, G, K, E], after position rotation and norms, as they are multiplied."""

    query: Array
    key: Array


@dataclass(frozen=True)
class QueryKey:
    """The queries and keys that are multiplied: `.query` [B, L, H, R, E], `.key` [B, L, G, K, E] per KV head."""

    rows: str | None = None
    per_row: ClassVar[bool] = False

    def reference(self, view: LayerView) -> QueryKeyValue:
        """As they are, in float32."""
        return QueryKeyValue(_present(view.q_BHRE, "queries").float(), _present(view.k_BKE, "keys").float()[:, None])


@dataclass(frozen=True)
class ValueNorm:
    """The length ‖v‖ of each value vector, per KV head: [B, L, G, K]."""

    per_row: ClassVar[bool] = False
    rows: ClassVar[str | None] = None

    def reference(self, view: LayerView) -> Float[Tensor, "B 1 K"]:
        """Euclidean norm in float32."""
        return rearrange(_present(view.v_BKE, "values").float().norm(dim=-1), "b k -> b 1 k")


class NextTokenValue(NamedTuple):
    """The id that the model would choose after each row, and the log-probability of the token that does follow (nats)."""

    choice: Array
    logprob: Array


@dataclass(frozen=True)
class NextToken:
    """What the model predicts at the rows: `.choice` [B, R] and `.logprob` [B, R] of the prompt's own next token (NaN after the last)."""

    rows: str | None = None
    per_row: ClassVar[bool] = False


LayerRead = Mass | TopMass | Entropy | Peak | Received | BlockMap | Pattern | HeadOutput | QueryKey | ValueNorm
Read = LayerRead | NextToken
READS: tuple[type, ...] = (*LayerRead.__args__, NextToken)


def _present(value: Tensor | None, what: str) -> Tensor:
    if value is None:
        raise InputError(f"this capture was made from attention patterns alone; it has no {what}")
    return value
