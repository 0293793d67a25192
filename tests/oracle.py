"""What does plain float64 say about one layer's attention? The pattern is materialised, and every statistic is read off it."""

import torch
from torch import Tensor

from workbench.ops.inputs import Attention, Pairs, Range, Statistics, Wanted

TOLERANCE = 2e-5
"""Absolute, relative above 1: scores are accumulated in float32, whatever the inputs are."""

BF16 = 2.0**-8
"""What rounding to bfloat16 costs at most, relative: half of the last of eight bits."""


def first_seen(a: Attention) -> Tensor:
    """[B, R] the first key that a row sees; behind its own position if it sees nothing."""
    first_BR = a.start_B[:, None].expand_as(a.pos_BR)
    return first_BR if a.window is None else torch.maximum(first_BR, a.pos_BR - (a.window - 1))


def sees_something(a: Attention) -> Tensor:
    """[B, R] false for the rows of padding."""
    return a.pos_BR >= a.start_B[:, None]


def between(a: Attention, low: Tensor | int, high: Tensor | int) -> Range:
    """Those keys of [low, high) that each row sees."""
    low_BR, high_BR = (edge if isinstance(edge, Tensor) else torch.full_like(a.pos_BR, edge) for edge in (low, high))
    return torch.maximum(low_BR, first_seen(a)), torch.minimum(high_BR, a.pos_BR + 1)


def sink(a: Attention, size: int) -> Range:
    """The first keys behind the padding."""
    return between(a, 0, (a.start_B[:, None] + size).expand_as(a.pos_BR))


def local(a: Attention, size: int) -> Range:
    """The last keys, the row's own included."""
    return between(a, a.pos_BR - size + 1, a.keys)


def previous(a: Attention) -> Pairs:
    """The key before the row's own, where the row sees it."""
    batch_P, row_P = (a.pos_BR > first_seen(a)).nonzero(as_tuple=True)
    return Pairs(batch_P, row_P, a.pos_BR[batch_P, row_P].long() - 1)


def scores(a: Attention) -> Tensor:
    """[B, H, R, K] in float64, −∞ where a row does not see."""
    k_BHKE = a.k_BGKE.double().repeat_interleave(a.q_BHRE.shape[1] // a.k_BGKE.shape[1], dim=1)
    score_BHRK = a.scaling * (a.q_BHRE.double() @ k_BHKE.mT)
    if a.softcap is not None:
        score_BHRK = a.softcap * torch.tanh(score_BHRK / a.softcap)
    key_K = torch.arange(a.k_BGKE.shape[2], device=a.pos_BR.device)
    seen_BRK = (key_K >= first_seen(a)[..., None]) & (key_K <= a.pos_BR[..., None])
    return score_BHRK.masked_fill(~seen_BRK[:, None], -torch.inf)


def probabilities(a: Attention) -> Tensor:
    """[B, H, R, K] in float64, 0 throughout where a row sees nothing."""
    return scores(a).softmax(-1).nan_to_num(0.0)


def log_sum_exp(a: Attention) -> Tensor:
    """[B, H, R] in nats, +∞ where a row sees nothing."""
    return scores(a).logsumexp(-1).masked_fill(~sees_something(a)[:, None], torch.inf)


def block_map(a: Attention, block: int, reducer: str) -> Tensor:
    """[B, H, U, V] of square blocks, one after the other; 0 above the first row."""
    p_BHRK, u_R = probabilities(a), a.pos_BR[0] // block
    out = p_BHRK.new_zeros(*p_BHRK.shape[:2], int(u_R[-1]) + 1, -(-a.keys // block))
    for u in range(out.shape[2]):
        for v in range(out.shape[3]):
            part = p_BHRK[:, :, u_R == u, v * block : (v + 1) * block].flatten(2)
            if part.shape[2]:
                out[:, :, u, v] = part.amax(-1) if reducer == "max" else part.sum(-1)
    return out


def expected(a: Attention, wanted: Wanted) -> dict[str, Tensor]:
    """Everything wanted, by name."""
    p_BHRK, key_K = probabilities(a), torch.arange(a.keys, device=a.pos_BR.device)
    out = {"lse": log_sum_exp(a)}
    if wanted.output:
        out["output"] = p_BHRK @ _values(a)
    if wanted.entropy:
        out["entropy"] = torch.special.entr(p_BHRK).sum(-1)
    if wanted.peak:
        out["peak"] = p_BHRK.amax(-1)
    for reducer in wanted.received:
        out[f"received {reducer}"] = p_BHRK.sum(2) if reducer == "sum" else p_BHRK.amax(2)
    for block, reducer in wanted.maps:
        out[f"map {block} {reducer}"] = block_map(a, block, reducer)
    for name, (low_BR, high_BR) in wanted.ranges.items():
        inside_BRK = (key_K >= low_BR[..., None]) & (key_K < high_BR[..., None])
        out[f"mass {name}"] = (p_BHRK * inside_BRK[:, None]).sum(-1)
    for name, pairs in wanted.singles.items():
        out[f"mass {name}"] = _on_single_keys(p_BHRK, pairs)
    return out


def computed(given: Statistics) -> dict[str, Tensor]:
    """The same names for what an implementation gave."""
    rows = {"lse": given.lse_BHR, "output": given.z_BHRE, "entropy": given.entropy_BHR, "peak": given.peak_prob_BHR}
    more = {f"received {reducer}": value for reducer, value in given.received.items()}
    more |= {f"map {block} {reducer}": value for (block, reducer), value in given.maps.items()}
    more |= {f"mass {name}": value for name, value in given.masses.items()}
    return {name: value for name, value in rows.items() if value is not None} | more


def misses(given: Statistics, a: Attention, wanted: Wanted) -> dict[str, str]:
    """What is not as float64 says, by name, and by how much; empty if all is well."""
    want, have = expected(a, wanted), computed(given)
    wrong = dict.fromkeys(want.keys() - have.keys(), "is not there")
    for name in want.keys() & have.keys():
        if message := _differs(have[name], want[name], _tolerance(a, name, want[name]), a.q_BHRE.dtype if name == "output" else torch.float32):
            wrong[name] = message
    if wanted.peak and (message := _no_peak(given.peak_key_BHR, a)):
        wrong["peak key"] = message
    return wrong


def _values(a: Attention) -> Tensor:
    return a.v_BGKE.double().repeat_interleave(a.q_BHRE.shape[1] // a.v_BGKE.shape[1], dim=1)


def _on_single_keys(p_BHRK: Tensor, pairs: Pairs) -> Tensor:
    mass_BHR = p_BHRK.new_zeros(p_BHRK.shape[:3])
    for b, r, k in zip(pairs.batch_P.tolist(), pairs.row_P.tolist(), pairs.key_P.tolist(), strict=True):
        mass_BHR[b, :, r] += p_BHRK[b, :, r, k]
    return mass_BHR


def _tolerance(a: Attention, name: str, want: Tensor) -> Tensor:
    if name == "output" and a.q_BHRE.dtype == torch.bfloat16:  # once for the probabilities and once for the output
        return 2.1 * BF16 * (probabilities(a) @ _values(a).abs()) + TOLERANCE
    return TOLERANCE * want.abs().clamp(min=1)


def _differs(have: Tensor, want: Tensor, tolerance: Tensor, dtype: torch.dtype) -> str:
    if have.shape != want.shape or have.dtype != dtype:
        return f"is {have.dtype} {tuple(have.shape)}, not {dtype} {tuple(want.shape)}"
    error = torch.where(have == want, 0.0, (have.double() - want).abs())  # +∞ is +∞
    bad = ~(error <= tolerance)
    return f"{int(bad.sum())} of {bad.numel()} are off, by up to {error[bad].max():.2g}, first at {bad.nonzero()[0].tolist()}" if bad.any() else ""


def _no_peak(key_BHR: Tensor, a: Attention) -> str:
    """The strongest key, or one whose score agrees with its in 17 bits."""
    if not ((key_BHR >= 0) & (key_BHR < a.keys)).all():
        return "is no key"
    best_BHR = scores(a).amax(-1)
    gap_BHR = best_BHR - scores(a).gather(-1, key_BHR.long()[..., None])[..., 0]
    bad = ~(gap_BHR <= 2.0**-16 * best_BHR.abs() + 1e-5) & sees_something(a)[:, None]
    return f"{int(bad.sum())} of {bad.numel()} are weaker, first at {bad.nonzero()[0].tolist()}" if bad.any() else ""
