"""May a speed be reported? Checks that exact statistics of one layer have to pass first, on any device."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from workbench.ops.inputs import Attention, Range, Statistics, Wanted

FIRST, LAST, BLOCK, SAMPLE = 4, 256, 64, 64
"""The first and the last keys whose mass is taken, the side of a map's block, and how many rows and keys are recomputed."""

EVERYTHING = Wanted(entropy=True, peak=True, received=frozenset({"sum", "max"}), maps=frozenset({(BLOCK, "max")}))
Implementation = Callable[[Attention, Wanted], Statistics]


class CheckError(Exception):
    """A check failed, so that no speed may be reported."""


@dataclass
class Gates:
    """The checks passed so far: the worst error of each, and its limit. `place` says what is being checked."""

    worst: dict[str, tuple[float, float]] = field(default_factory=dict)
    place: str = ""

    def hold(self, what: str, error: Tensor, limit: float) -> None:
        """Raises `CheckError` if an error is above its limit, or no number."""
        if not float(error) <= limit:
            raise CheckError(f"{self.place}, {what}: the error is {float(error):.2g}, the limit {limit:.0e}")
        self.worst[what] = max(self.worst.get(what, (0.0, limit)), (float(error), limit))

    def __str__(self) -> str:
        return "; ".join(f"{what} {error:.1e} (≤ {limit:.0e})" for what, (error, limit) in self.worst.items())


def off(value: Tensor, truth: Tensor, *, relative: bool = False) -> Tensor:
    """The largest difference."""
    error = (value.double() - truth.double()).abs()
    return (error / truth.double().abs() if relative else error).max()


def make(shape: tuple[int, int, int], tokens: int, seed: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Attention:
    """Causal attention of one prompt with normally distributed queries, keys and values."""
    heads, kv_heads, size = shape
    noise = torch.Generator(device).manual_seed(seed)
    q, k, v = (torch.randn(1, count, tokens, size, generator=noise, device=device, dtype=dtype) for count in (heads, kv_heads, kv_heads))
    pos_BR = torch.arange(tokens, device=device, dtype=torch.int32)[None]
    return Attention(q, k, v, pos_BR, torch.zeros(1, device=device, dtype=torch.int32), size**-0.5)


def describe(attention: Attention) -> str:
    """Heads, head size and tokens."""
    _, heads, tokens, size = attention.q_BHRE.shape
    return f"{heads}/{heads // attention.group} heads of {size}, {tokens} tokens"


def first_and_last(pos_BR: Tensor) -> dict[str, Range]:
    """The ranges that are timed; they overlap in the first rows."""
    zero_BR = torch.zeros_like(pos_BR)
    return {"first": (zero_BR, (pos_BR + 1).clamp(max=FIRST)), "last": ((pos_BR - LAST + 1).clamp(min=0), pos_BR + 1)}


def partition(pos_BR: Tensor) -> dict[str, Range]:
    """Every visible key in one of three ranges."""
    begin_BR, cut_BR = torch.full_like(pos_BR, FIRST), (pos_BR - LAST + 1).clamp(min=FIRST)
    return {"first": first_and_last(pos_BR)["first"], "middle": (begin_BR, cut_BR), "last": (cut_BR, pos_BR + 1)}


def scores(attention: Attention, row_R: Tensor, key_K: Tensor) -> Tensor:
    """Scaled scores [B, H, R, K] of chosen rows and keys in float64, −∞ where a row does not see a key."""
    k_BGKE = attention.k_BGKE[:, :, key_K].double()
    q_BGRE = rearrange(attention.q_BHRE[:, :, row_R].double(), "b (g h) r e -> b g (h r) e", g=k_BGKE.shape[1])
    score_BHRK = rearrange(q_BGRE @ k_BGKE.mT * attention.scaling, "b g (h r) k -> b (g h) r k", r=len(row_R))
    return score_BHRK.masked_fill_(key_K > row_R[:, None], -torch.inf)


def rows_agree(gates: Gates, got: Statistics, p_BHRK: Tensor, row_R: Tensor, ranges: dict[str, Range]) -> None:
    """What is said of rows is what their probabilities say."""
    most_BHR, key_K = p_BHRK.amax(-1), torch.arange(p_BHRK.shape[-1], device=row_R.device)
    gates.hold("entropy of rows", off(got.entropy_BHR[:, :, row_R], torch.special.entr(p_BHRK).sum(-1)), 1e-4)
    gates.hold("peak probability of rows", off(got.peak_prob_BHR[:, :, row_R], most_BHR, relative=True), 1e-4)
    strongest_BHR1 = got.peak_key_BHR[:, :, row_R, None].long()
    gates.hold("strongest key of rows", off(p_BHRK.gather(-1, strongest_BHR1)[..., 0], most_BHR, relative=True), 1e-4)
    for name, (low_BR, high_BR) in ranges.items():
        inside_BRK = (key_K >= low_BR[:, row_R, None]) & (key_K < high_BR[:, row_R, None])
        gates.hold("masses of rows", off(got.masses[name][:, :, row_R], torch.einsum("bhrk,brk->bhr", p_BHRK, inside_BRK.double())), 1e-4)


def against_oracle(gates: Gates, statistics: Implementation, attention: Attention) -> None:
    """Everything that is timed, against probabilities held in float64. The output may err twice as much as PyTorch's in the same precision."""
    gates.place = describe(attention)
    q, k, v = attention.q_BHRE, attention.k_BGKE, attention.v_BGKE
    every = attention.pos_BR[0].long()
    ranges = first_and_last(attention.pos_BR)
    got = statistics(attention, replace(EVERYTHING, output=True, ranges=ranges))
    p_BHRK = scores(attention, every, every).softmax(-1)
    rows_agree(gates, got, p_BHRK, every, ranges)
    z_BHRE = p_BHRK @ v.double().repeat_interleave(attention.group, dim=1)
    usual = off(scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), z_BHRE)
    gates.hold("output beyond twice SDPA's error", (off(got.z_BHRE, z_BHRE) - 2 * usual).clamp(min=0), 1e-5)
    gates.hold("received sum", off(got.received["sum"], p_BHRK.sum(2)), 1e-4)
    gates.hold("received maximum", off(got.received["max"], p_BHRK.amax(2), relative=True), 1e-4)
    over = -attention.keys % BLOCK
    pooled = reduce(pad(p_BHRK, (0, over, 0, over)), "b h (u r) (v k) -> b h u v", "max", r=BLOCK, k=BLOCK)
    gates.hold("block map", off(got.maps[BLOCK, "max"], pooled), 1e-4)


def identities(gates: Gates, statistics: Implementation, attention: Attention, seed: int) -> None:
    """What must hold at any length; and for random rows and keys the same numbers from float64."""
    gates.place = describe(attention)
    ranges, tokens, device = partition(attention.pos_BR), attention.keys, attention.q_BHRE.device
    got = statistics(attention, replace(EVERYTHING, ranges=ranges))
    total_BH, most_BHK, peak_BHR = got.received["sum"].double().sum(-1), got.received["max"], got.peak_prob_BHR
    gates.hold("masses over a partition, from 1", off(sum(got.masses.values()), torch.ones_like(peak_BHR)), 1e-4)
    gates.hold("received sums, from T", off(total_BH / tokens, torch.ones_like(total_BH)), 1e-5)
    gates.hold("largest received maximum, from largest peak", off(most_BHK.amax(-1), peak_BHR.amax(-1), relative=True), 1e-5)
    of_blocks = partial(reduce, pattern="b h (u r) -> b h u", reduction="max", r=BLOCK)
    over, map_BHUV = (0, -tokens % BLOCK), got.maps[BLOCK, "max"]
    gates.hold("block map's rows, from peaks", off(map_BHUV.amax(-1), of_blocks(pad(peak_BHR, over)), relative=True), 1e-4)
    gates.hold("block map's columns, from received maxima", off(map_BHUV.amax(-2), of_blocks(pad(most_BHK, over)), relative=True), 1e-5)
    rng = np.random.default_rng(seed)
    row_R, key_K = (torch.as_tensor(np.sort(rng.choice(tokens, min(SAMPLE, tokens), replace=False)), device=device) for _ in range(2))
    every = attention.pos_BR[0].long()
    rows_agree(gates, got, scores(attention, row_R, every).softmax(-1), row_R, ranges)
    p_BHRK = (scores(attention, every, key_K) - got.lse_BHR.double()[..., None]).exp_()
    gates.hold("received sums of keys", off(got.received["sum"][:, :, key_K], p_BHRK.sum(2), relative=True), 1e-4)
    gates.hold("received maxima of keys", off(most_BHK[:, :, key_K], p_BHRK.amax(2), relative=True), 1e-4)
