"""How are exact statistics computed without the pattern, in plain torch? Block by block of query rows, in O(T · block) memory, on any device.

A block's scores are made once, from matrix products per KV head; every statistic is reduced from them before the next block overwrites
them. Keys that no row of the block sees are left out, and masks touch only the edges. All arithmetic is in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn.functional import pad

from workbench.ops import singles, sums
from workbench.ops.inputs import Attention, Name, Pairs, Range, Statistics, Wanted

NEVER = -1e30
"""The score of a key that a row may not see: finite, so that 0 probability times it is 0."""

ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Scores per block: they should stay in a CPU's cache; on a GPU, launches should be few."""

LEAF = 64
"""Keys among which the strongest is looked for after the strongest such group is known."""


def statistics(attention: Attention, wanted: Wanted) -> Statistics:
    """Everything wanted, for the rows of `attention`."""
    if sums.applies(attention, wanted):
        return sums.statistics(attention)
    blocks = _Blocks(attention, wanted)
    for start, stop in blocks.edges():
        blocks.add(start, stop)
    result = blocks.result()
    return replace(result, masses={**result.masses, **singles.masses(attention, result.lse_BHR, wanted, probabilities)})


def probabilities(attention: Attention, lse_BHR: Tensor, pairs: Pairs, elements: int = 2**23) -> Tensor:
    """The probability [H, P] of single keys: exp(score − lse)."""
    heads, size = attention.q_BHRE.shape[1], pairs.row_P.shape[0]
    out_HP = lse_BHR.new_empty(heads, size)
    step = max(1, elements // (heads * attention.q_BHRE.shape[-1]))
    for cut in (slice(begin, begin + step) for begin in range(0, size, step)):
        batch_P, row_P, key_P = pairs.batch_P[cut], pairs.row_P[cut], pairs.key_P[cut]
        q_PGHE = rearrange(attention.q_BHRE[batch_P, :, row_P], "p (g h) e -> p g h e", h=attention.group).float()
        k_PGE = attention.k_BGKE[batch_P, :, key_P].float()
        score_PH = _capped(torch.einsum("pghe,pge->pgh", q_PGHE, k_PGE).flatten(1) * attention.scaling, attention.softcap)
        out_HP[:, cut] = (score_PH - lse_BHR[batch_P, :, row_P]).exp().T
    return out_HP


def pattern(attention: Attention, rows: slice) -> Tensor:
    """The probabilities [B, H, R, K] of a few rows, 0 throughout for a row of padding."""
    return masked_scores(attention, rows).softmax(-1).nan_to_num_(nan=0.0)


def masked_scores(attention: Attention, rows: slice) -> Tensor:
    """The scaled, capped scores [B, H, R, K] of a few rows, −inf at keys that they may not see."""
    logit_BHRK = _scores(attention, rows, attention.k_BGKE.float(), 0)
    low_BR, pos_BR = attention.low_BR[:, rows, None], attention.pos_BR[:, rows, None]
    key_K = torch.arange(attention.keys, device=low_BR.device)
    visible_BRK = (key_K >= low_BR) & (key_K <= pos_BR)
    return logit_BHRK.masked_fill_(~visible_BRK[:, None], -torch.inf)


def _scores(attention: Attention, rows: slice, k_BGKE: Tensor, first: int, out: Tensor | None = None) -> Tensor:
    """Scaled, capped scores [B, H, R, K] of some rows against the keys from `first` on."""
    q = rearrange(attention.q_BHRE[:, :, rows], "b (g h) r e -> b g (h r) e", g=k_BGKE.shape[1]).float() * attention.scaling
    score = torch.matmul(q, k_BGKE[:, :, first:].transpose(-1, -2), out=None if out is None else out.view(*q.shape[:3], -1))
    return _capped(score.view(q.shape[0], attention.q_BHRE.shape[1], -1, score.shape[-1]), attention.softcap)


def _capped(score: Tensor, softcap: float | None) -> Tensor:
    return score if softcap is None else score.div_(softcap).tanh_().mul_(softcap)


@dataclass(eq=False)
class _Blocks:
    """The blocks of one call, and what they have added up to so far."""

    attention: Attention
    wanted: Wanted
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    masses: dict[Name, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attention, wanted = self.attention, self.wanted
        self.k_BGKE = pad(attention.k_BGKE.float(), (0, 0, 0, -attention.keys % LEAF))
        self.v_BGKE = pad(attention.v_BGKE.float(), (0, 0, 0, -attention.keys % LEAF)) if wanted.output else None
        batch, heads, n_rows, _ = attention.q_BHRE.shape
        width = self.k_BGKE.shape[2]
        self.step = max(1, min(n_rows, ELEMENTS.get(attention.q_BHRE.device.type, 2**22) // (batch * heads * width)))
        zeros = attention.q_BHRE.new_zeros
        self.received = {name: zeros(batch, heads, width, dtype=torch.float32) for name in wanted.received}
        self.maps = {key: zeros(batch, heads, -(-(attention.span[1] + 1) // key[0]), -(-width // key[0]), dtype=torch.float32) for key in wanted.maps}
        self.buffers = torch.empty(2, batch * heads * self.step * width, dtype=torch.float32, device=attention.q_BHRE.device)

    def edges(self) -> Iterator[tuple[int, int]]:
        """The blocks' first rows and the rows behind them."""
        n_rows = self.attention.q_BHRE.shape[2]
        return ((start, min(start + self.step, n_rows)) for start in range(0, n_rows, self.step))

    def add(self, start: int, stop: int) -> None:
        """Reduce one block."""
        attention, wanted, rows = self.attention, self.wanted, slice(start, stop)
        pos_BR, low_BR = attention.pos_BR[:, rows], attention.low_BR[:, rows]
        first = 0 if wanted.maps else int(low_BR.min().clamp(max=attention.keys - 1)) // LEAF * LEAF
        end = int(pos_BR[:, -1].max() // LEAF + 1) * LEAF
        first = min(first, end - LEAF)  # rows of padding alone see nothing, not even one group of keys
        s_BHRK, p_BHRK = self._buffers(stop - start, end - first)
        s_BHRK = _scores(attention, rows, self.k_BGKE[:, :, :end], first, s_BHRK)
        _hide(s_BHRK, pos_BR, low_BR, first)
        leaf_BHRN = s_BHRK.unflatten(-1, (-1, LEAF)).amax(-1)
        most_BHR1 = leaf_BHRN.amax(-1, keepdim=True)
        torch.softmax(s_BHRK, -1, out=p_BHRK)
        blind_BR = pos_BR < low_BR
        if attention.padded:
            p_BHRK.masked_fill_(blind_BR[:, None, :, None], 0)
        key_BHR = _first_peak(s_BHRK, leaf_BHRN, most_BHR1)
        prob_BHR = p_BHRK.take_along_dim(key_BHR[..., None], dim=3)[..., 0]
        self._keep("lse_BHR", most_BHR1[..., 0] - prob_BHR.log())
        if wanted.peak:
            self._keep("peak_key_BHR", (key_BHR + first).masked_fill_(blind_BR[:, None], 0))
            self._keep("peak_prob_BHR", prob_BHR)
        if wanted.entropy:
            below_BHR = s_BHRK.sub_(most_BHR1).mul_(p_BHRK).sum(-1)  # below the largest, so that no large numbers cancel; the scores are gone then
            self._keep("entropy_BHR", (-prob_BHR.log() - below_BHR).masked_fill_(blind_BR[:, None], 0))
        if self.v_BGKE is not None:
            p_BGRK = rearrange(p_BHRK, "b (g h) r k -> b g (h r) k", g=self.v_BGKE.shape[1])
            z = torch.matmul(p_BGRK, self.v_BGKE[:, :, first:end]).view(*prob_BHR.shape, -1)
            self._keep("z_BHRE", z.to(attention.q_BHRE.dtype))
        for name, keys in wanted.ranges.items():
            self.masses.setdefault(name, []).append(_mass(p_BHRK, keys, rows, first))
        self._receive(p_BHRK, slice(first, end))
        for (block, reducer), whole_BHUV in self.maps.items():  # of all rows, at the same positions in every prompt
            pool_into(whole_BHUV, p_BHRK, int(pos_BR[0, 0]), block, reducer)

    def result(self) -> Statistics:
        """The statistics of all rows."""
        rows = {name: torch.cat(parts, dim=2) for name, parts in self.rows.items()}
        masses = {name: torch.cat(parts, dim=2) for name, parts in self.masses.items()}
        keys = self.attention.keys
        received = {name: value[..., :keys] for name, value in self.received.items()}
        maps = {key: value[..., : -(-keys // key[0])] for key, value in self.maps.items()}
        return Statistics(**rows, received=received, maps=maps, masses=masses)

    def _keep(self, name: str, value: Tensor) -> None:
        self.rows.setdefault(name, []).append(value)

    def _buffers(self, n_rows: int, width: int) -> tuple[Tensor, Tensor]:
        batch, heads = self.attention.q_BHRE.shape[:2]
        size = batch * heads * n_rows * width
        first, second = (buffer[:size].view(batch, heads, n_rows, width) for buffer in self.buffers)
        return first, second

    def _receive(self, p_BHRK: Tensor, keys: slice) -> None:
        if "sum" in self.received:
            self.received["sum"][..., keys] += p_BHRK.sum(2)
        if "max" in self.received:
            part = self.received["max"][..., keys]
            torch.maximum(part, p_BHRK.amax(2), out=part)


def pool_into(whole_BHUV: Tensor, p_BHRK: Tensor, first: int, block: int, reducer: str) -> None:
    """Pool rows of probabilities, of which the first is row `first` of a map, into that map of square blocks."""
    above = first % block
    missing = -p_BHRK.shape[-1] % block, -(above + p_BHRK.shape[2]) % block
    part = reduce(pad(p_BHRK, (0, missing[0], above, missing[1])), "b h (u r) (v k) -> b h u v", reducer, r=block, k=block)
    target = whole_BHUV[:, :, first // block : first // block + part.shape[2], : part.shape[3]]
    target.copy_(torch.maximum(target, part) if reducer == "max" else target + part)


def _hide(s_BHRK: Tensor, pos_BR: Tensor, low_BR: Tensor, first: int) -> None:
    """Set the scores of keys that a row may not see, at the two edges of the block."""
    width, device = s_BHRK.shape[-1], s_BHRK.device
    right = max(0, int(pos_BR[:, 0].min()) + 1 - first)
    if right < width:
        hidden_BRK = torch.arange(first + right, first + width, device=device) > pos_BR[..., None]
        s_BHRK[..., right:].masked_fill_(hidden_BRK[:, None], NEVER)
    left = min(width, int(low_BR.max()) - first)
    if left > 0:
        hidden_BRK = torch.arange(first, first + left, device=device) < low_BR[..., None]
        s_BHRK[..., :left].masked_fill_(hidden_BRK[:, None], NEVER)


def _first_peak(s_BHRK: Tensor, leaf_BHRN: Tensor, most_BHR1: Tensor) -> Tensor:
    """The first key with the largest score: the first group that has it, then the first in the group."""
    group_BHR1 = (leaf_BHRN == most_BHR1).int().argmax(-1, keepdim=True)
    inside = s_BHRK.unflatten(-1, (-1, LEAF)).take_along_dim(group_BHR1[..., None], dim=3)[..., 0, :]
    return group_BHR1[..., 0] * LEAF + (inside == most_BHR1).int().argmax(-1)


def _mass(p_BHRK: Tensor, keys: Range, rows: slice, first: int) -> Tensor:
    """The sum over each row's range, from the columns that any range of the block holds."""
    low_BR, high_BR = (edge[:, rows] for edge in keys)
    some = high_BR > low_BR
    if not some.any():
        return p_BHRK.new_zeros(p_BHRK.shape[:3])
    begin, end = int(low_BR[some].min()), int(high_BR[some].max())
    key_K = torch.arange(begin, end, device=p_BHRK.device)
    inside_BRK = (key_K >= low_BR[..., None]) & (key_K < high_BR[..., None])
    return (p_BHRK[..., begin - first : end - first] * inside_BRK[:, None]).sum(-1)
