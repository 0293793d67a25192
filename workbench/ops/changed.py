"""How are outputs and statistics computed where edits change the pattern? From strips of few rows, so that the pattern is never held.

A `Step` is one edit in one layer and pass. It may change scores before the softmax (`on_scores`) and probabilities behind it (`on_pattern`); `fit` gives
it, where it wants that, what each key receives in sum. A step that is not `local` must see all rows of a pass in order, from `begin` on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from workbench.ops.blocked import ELEMENTS, masked_scores, pool_into
from workbench.ops.inputs import Attention, Pairs, Statistics, Wanted


class Step:
    """A step that changes nothing; `places` are its heads among those that are opened together."""

    local = True
    sum_rows = 0
    """How many of the pass's first rows `fit` wants the sums of; 0 where it takes none."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = list(places)

    def on_scores(self, s_BHRK: Tensor, attention: Attention, rows: slice) -> Tensor:
        """The scaled, capped scores of some rows against the first keys, −inf where they see none, changed in place or anew."""
        return s_BHRK

    def fit(self, sum_BHK: Tensor) -> None:
        """Take notice of what each key receives in sum from the first `sum_rows` rows, of the probabilities that come to this step."""

    def begin(self) -> None:
        """The first row comes next."""

    def on_pattern(self, p_BHRK: Tensor, pos_BR: Tensor) -> Tensor:
        """The probabilities of some rows, at these positions, on the first keys, changed in place or anew."""
        return p_BHRK

    def outputs(self, attention: Attention, module: ModuleType) -> Tensor | None:
        """The outputs [B, H, R, E] of all rows if this step, alone and with all heads its own, has a shorter way to them; fits it on the way."""
        return None

    def commit(self) -> None:
        """The pass is through this layer: keep what the next one needs."""


@dataclass(eq=False)
class Change:
    """What edits do to where the rows of one layer look, in one pass: the query `heads` concerned, and how to `open` the steps for some of them."""

    heads: tuple[int, ...]
    open: Callable[[tuple[int, ...], Attention], list[Step]]
    opened: dict[tuple[int, ...], tuple[Attention, list[Step]]] = field(default_factory=dict)

    def steps(self, attention: Attention, heads: tuple[int, ...]) -> tuple[Attention, list[Step]]:
        """The attention of these heads, all rows of the pass, and their steps, opened once."""
        if heads not in self.opened:
            part = subset(attention, heads)
            self.opened[heads] = part, self.open(heads, part)
        return self.opened[heads]

    def of(self, attention: Attention) -> Attention:
        """The attention of the heads concerned, at chosen rows of the pass, or at all of them."""
        return subset(attention, self.heads)


def subset(attention: Attention, heads: tuple[int, ...]) -> Attention:
    """Some query heads alone, each with the keys and values that it reads; KV heads stay shared where whole groups are taken."""
    group, count = attention.group, attention.q_BHRE.shape[1]
    if heads == tuple(range(count)):
        return attention
    kv = [head // group for head in heads]
    if all(heads[at : at + group] == tuple(range(kv[at] * group, (kv[at] + 1) * group)) for at in range(0, len(heads), group)):
        kv = kv[::group]
    q, k, v = (tensor[:, at] for tensor, at in ((attention.q_BHRE, list(heads)), (attention.k_BGKE, kv), (attention.v_BGKE, kv)))
    return replace(attention, q_BHRE=q, k_BGKE=k, v_BGKE=v)


def outputs(attention: Attention, steps: Sequence[Step], module: ModuleType) -> Tensor:
    """The outputs [B, H, R, E] of all rows, edited; afterwards the steps are fitted and have kept what the next pass needs."""
    alone = len(steps) == 1 and steps[0].places == list(range(attention.q_BHRE.shape[1]))
    z_BHRE = steps[0].outputs(attention, module) if alone else None
    if z_BHRE is None:
        fit(attention, steps)
        z_BHRE = reduced(attention, strips(attention, steps), Wanted(output=True)).z_BHRE
        assert z_BHRE is not None
    for step in steps:
        step.commit()
    return z_BHRE


def fit(attention: Attention, steps: Sequence[Step]) -> None:
    """Give every step the sums that it wants, of the probabilities as the steps before leave them."""
    for number, step in enumerate(steps):
        if step.sum_rows:
            part = replace(attention, q_BHRE=attention.q_BHRE[:, :, : step.sum_rows], pos_BR=attention.pos_BR[:, : step.sum_rows], memo={})
            sum_BHK = reduced(part, strips(part, steps, steps[:number]), Wanted(received=frozenset({"sum"}))).received["sum"]
            step.fit(sum_BHK[:, step.places])


def strips(attention: Attention, steps: Sequence[Step], behind: Sequence[Step] | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows from the first to the last, log-sum-exp [B, H, R], and probabilities [B, H, R, K'] on the first K' keys; none lies beyond.

    All steps change the scores; those in `behind` (None: all) change the probabilities.
    """
    behind = steps if behind is None else behind
    for step in behind:
        step.begin()
    batch, heads, n_rows, _ = attention.q_BHRE.shape
    most = max(1, ELEMENTS.get(attention.q_BHRE.device.type, 2**22) // (batch * heads * attention.keys))
    for cut in (slice(begin, min(begin + most, n_rows)) for begin in range(0, n_rows, most)):
        width = int(attention.pos_BR[:, cut].max()) + 1
        part = replace(attention, k_BGKE=attention.k_BGKE[:, :, :width], v_BGKE=attention.v_BGKE[:, :, :width])
        s_BHRK = masked_scores(part, cut)
        for step in steps:
            s_BHRK = step.on_scores(s_BHRK, part, cut)
        lse_BHR = s_BHRK.logsumexp(-1)
        p_BHRK = s_BHRK.softmax(-1).nan_to_num_(nan=0.0)
        for step in behind:
            p_BHRK = step.on_pattern(p_BHRK, attention.pos_BR[:, cut])
        yield cut, lse_BHR.masked_fill_(lse_BHR == -torch.inf, torch.inf), p_BHRK


def strips_at(whole: Attention, chosen: Attention, steps: Sequence[Step]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The same for chosen rows of the pass. Where a step is not local, all rows are gone through, and the chosen ones kept until the end."""
    if chosen.pos_BR is whole.pos_BR or all(step.local for step in steps):
        yield from strips(chosen, steps)
        return
    local_BR = chosen.pos_BR.long() - whole.span[0]
    batch, heads, n_rows, _ = chosen.q_BHRE.shape
    kept_BHRK = torch.zeros(batch, heads, n_rows, whole.keys, device=local_BR.device)
    kept_BHR = torch.zeros(batch, heads, n_rows, device=local_BR.device)
    for cut, lse_BHR, p_BHRK in strips(whole, steps):
        b_P, r_P = ((local_BR >= cut.start) & (local_BR < cut.stop)).nonzero(as_tuple=True)
        at_P = local_BR[b_P, r_P] - cut.start
        kept_BHR[b_P, :, r_P] = lse_BHR[b_P, :, at_P]
        kept_BHRK[b_P, :, r_P, : p_BHRK.shape[-1]] = p_BHRK[b_P, :, at_P]
    yield slice(0, n_rows), kept_BHR, kept_BHRK


def reduced(attention: Attention, parts: Iterator[tuple[slice, Tensor, Tensor]], wanted: Wanted) -> Statistics:
    """Everything wanted of the rows of `attention`, from strips of probabilities. The log-sum-exp is that of the scores."""
    batch, heads, _, _ = attention.q_BHRE.shape
    zeros = attention.q_BHRE.new_zeros
    rows: dict[str, list[Tensor]] = {}
    masses: dict[Any, list[Tensor]] = {}
    received = {name: zeros(batch, heads, attention.keys, dtype=torch.float32) for name in wanted.received}
    blocks = attention.span[1] + 1 if wanted.maps else 0
    maps = {key: zeros(batch, heads, -(-blocks // key[0]), -(-attention.keys // key[0]), dtype=torch.float32) for key in wanted.maps}
    for cut, lse_BHR, p_BHRK in parts:
        rows.setdefault("lse_BHR", []).append(lse_BHR)
        for name, value in _of_rows(attention, p_BHRK, wanted):
            rows.setdefault(name, []).append(value)
        for name, keys in wanted.ranges.items():
            masses.setdefault(name, []).append(_mass(p_BHRK, keys[0][:, cut], keys[1][:, cut]))
        for name, pairs in wanted.singles.items():
            masses.setdefault(name, []).append(_on_pairs(p_BHRK, cut, pairs))
        for name, value_BHK in received.items():
            part, seen = (p_BHRK.sum(2) if name == "sum" else p_BHRK.amax(2)), value_BHK[..., : p_BHRK.shape[-1]]
            seen.copy_(seen + part if name == "sum" else torch.maximum(seen, part))
        for (block, reducer), whole_BHUV in maps.items():
            pool_into(whole_BHUV, p_BHRK, int(attention.pos_BR[0, cut.start]), block, reducer)
    joined = {name: torch.cat(values, dim=2) for name, values in rows.items()}
    return Statistics(**joined, received=received, maps=maps, masses={name: torch.cat(values, dim=2) for name, values in masses.items()})


def _of_rows(attention: Attention, p_BHRK: Tensor, wanted: Wanted) -> Iterator[tuple[str, Tensor]]:
    if wanted.entropy:
        yield "entropy_BHR", torch.special.entr(p_BHRK).sum(-1)
    if wanted.peak:
        most_BHR = p_BHRK.amax(-1)
        yield "peak_prob_BHR", most_BHR
        yield "peak_key_BHR", (p_BHRK == most_BHR[..., None]).int().argmax(-1)
    if wanted.output:
        p = rearrange(p_BHRK, "b (g h) r k -> b g (h r) k", h=attention.group)
        z = p @ attention.v_BGKE[:, :, : p_BHRK.shape[-1]].float()
        yield "z_BHRE", z.view(*p_BHRK.shape[:3], -1).to(attention.q_BHRE.dtype)


def _mass(p_BHRK: Tensor, low_BR: Tensor, high_BR: Tensor) -> Tensor:
    key_K = torch.arange(p_BHRK.shape[-1], device=p_BHRK.device)
    inside_BRK = (key_K >= low_BR[..., None]) & (key_K < high_BR[..., None])
    return torch.einsum("bhrk,brk->bhr", p_BHRK, inside_BRK.to(p_BHRK.dtype))


def _on_pairs(p_BHRK: Tensor, rows: slice, pairs: Pairs) -> Tensor:
    kept_P = (pairs.row_P >= rows.start) & (pairs.row_P < rows.stop)
    b_P, r_P, k_P = (index_P[kept_P].long() for index_P in (pairs.batch_P, pairs.row_P - rows.start, pairs.key_P))
    mass_BRH = p_BHRK.new_zeros(p_BHRK.shape[0], p_BHRK.shape[2], p_BHRK.shape[1])
    return mass_BRH.index_put_((b_P, r_P), p_BHRK[b_P, :, r_P, k_P], accumulate=True).transpose(1, 2)


def merged(all_heads: Statistics, some: Statistics, heads: tuple[int, ...]) -> Statistics:
    """The statistics of all heads, with those of some heads in their places."""

    def put(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            one = one.clone()
            one[:, list(heads)] = other.to(one.dtype)
        elif one is not None and other is not None:
            one = {name: put(value, other[name]) for name, value in one.items()}
        return one

    return Statistics(**{item.name: put(getattr(all_heads, item.name), getattr(some, item.name)) for item in fields(Statistics)})


def widened(p_BHRK: Tensor, keys: int) -> Tensor:
    """Probabilities on all keys, from those on the first."""
    return pad(p_BHRK, (0, keys - p_BHRK.shape[-1]))
