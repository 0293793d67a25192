"""Sinks and a window in plain torch: block by block of rows on any device, or merged from PyTorch's own flash attention on CUDA.

`blocked` takes the keys that a block's windows touch and the sinks, and nothing else: O(Q · (sinks + window + block)) work, O(block · …) memory.
`merged` needs no kernel of ours either. Rows that see nothing but sinks are causal attention; all others are flash attention with a window over the
keys behind the sinks, and attention without a mask to all sinks, joined by their log-sum-exp. No key is in both.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.ops.sink_window import SinkWindow

BLOCK = 128
"""The fewest rows of a block; a wide window has larger ones."""

ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Scores per block: they should stay in a CPU's cache; on a GPU, launches should be few."""

FLASH_HEAD_SIZES = range(8, 257, 8)


def place_for(problem: SinkWindow, out: Tensor | None) -> Tensor:
    """Where outputs go: `out`, or new memory laid out as [B, Q, H, E]."""
    batch, heads, rows, size = problem.q_BHQE.shape
    return problem.q_BHQE.new_empty(batch, rows, heads, size).transpose(1, 2) if out is None else out


def blocked(problem: SinkWindow, out: Float[Tensor, "B H Q E"] | None = None) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H Q"]]:
    """Outputs in the queries' dtype and log-sum-exp in nats; 0 and −inf for rows of padding. Computed in float32, in float64 if the queries are."""
    batch, heads, rows, _ = problem.q_BHQE.shape
    place_BHQE = place_for(problem, out)
    exact = torch.promote_types(problem.q_BHQE.dtype, torch.float32)
    lse_BHQ = torch.empty(batch, heads, rows, dtype=exact, device=problem.q_BHQE.device)
    sinks = _Sinks(problem, exact)
    width = problem.sinks + problem.window + BLOCK
    room = max(1, ELEMENTS.get(problem.q_BHQE.device.type, 2**22) // (batch * heads * width))
    step = min(rows, room, max(BLOCK, problem.window // 2))
    for start in range(0, rows, step):
        _block(problem, sinks, start, min(start + step, rows), place_BHQE, lse_BHQ)
    return place_BHQE, lse_BHQ


class _Sinks:
    """The sinks' keys and values [B, G, S, E] and their positions [B, S]; the position of a sink that is not there lies behind all rows."""

    def __init__(self, problem: SinkWindow, dtype: torch.dtype) -> None:
        keys, device = problem.k_BGKE.shape[2], problem.k_BGKE.device
        number_S = torch.arange(problem.sinks, device=device)
        index_BS = problem.sink_at_B[:, None] + number_S
        there_BS = index_BS < keys
        batch_B1 = torch.arange(len(index_BS), device=device)[:, None]
        at = batch_B1, slice(None), index_BS.clamp(max=keys - 1).long()
        self.pos_BS = (problem.start_B[:, None] + number_S).masked_fill(~there_BS, torch.iinfo(problem.start_B.dtype).max)
        seen_BS11 = (self.pos_BS < problem.first + problem.q_BHQE.shape[2])[:, None, :, None]
        self.k_BGSE, self.v_BGSE = (
            rearrange(tensor[at], "b s g e -> b g s e").to(dtype).masked_fill(~seen_BS11, 0) for tensor in (problem.k_BGKE, problem.v_BGKE)
        )


def _block(problem: SinkWindow, sinks: _Sinks, start: int, stop: int, place_BHQE: Tensor, lse_BHQ: Tensor) -> None:
    """Rows `start` to `stop`."""
    first, keys, offset = problem.first, problem.k_BGKE.shape[2], problem.recent_from - problem.recent_first
    low = (first if problem.chunk_window else first + start) - problem.window + 1
    near = slice(max(low + offset, problem.recent_from), max(min(first + stop + offset, keys), problem.recent_from))
    device, dtype = problem.q_BHQE.device, sinks.k_BGSE.dtype
    pos_K = torch.arange(near.start, near.stop, device=device) - offset
    pos_R = torch.arange(first + start, first + stop, device=device)
    low_R = torch.full_like(pos_R, low) if problem.chunk_window else pos_R - problem.window + 1
    behind_BRK = ((pos_K <= pos_R[:, None]) & (pos_K >= low_R[:, None])) & (pos_K >= (problem.start_B + problem.sinks)[:, None, None])
    visible_BRK = torch.cat([sinks.pos_BS[:, None] <= pos_R[:, None], behind_BRK], dim=-1)
    k, v = (
        torch.cat([part, tensor[:, :, near].to(dtype)], dim=2)
        for part, tensor in ((sinks.k_BGSE, problem.k_BGKE), (sinks.v_BGSE, problem.v_BGKE))
    )  # fmt: skip
    q = rearrange(problem.q_BHQE[:, :, start:stop], "b (g h) r e -> b g (h r) e", h=problem.group).to(dtype) * problem.scaling
    score = q @ k.mT
    if problem.softcap is not None:
        score = score.div_(problem.softcap).tanh_().mul_(problem.softcap)
    score = rearrange(score, "b g (h r) k -> b (g h) r k", h=problem.group).masked_fill_(~visible_BRK[:, None], -torch.inf)
    lse_BHR = score.logsumexp(-1)
    prob = score.sub_(lse_BHR[..., None].masked_fill(lse_BHR[..., None] == -torch.inf, 0)).exp_()
    z = rearrange(prob, "b (g h) r k -> b g (h r) k", h=problem.group) @ v
    lse_BHQ[:, :, start:stop] = lse_BHR
    place_BHQE[:, :, start:stop] = rearrange(z, "b g (h r) e -> b (g h) r e", h=problem.group)


def merged(problem: SinkWindow, out: Float[Tensor, "B H Q E"] | None = None) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H Q"]]:
    """The same from PyTorch's flash attention, for half precision on CUDA. Raises `InputError` where that does not apply."""
    q = problem.q_BHQE
    if why := _unfit(q, problem.softcap):
        raise InputError(f"flash attention cannot be merged into sinks and a window {why}; use torch")
    place_BHQE, lse_BHQ = place_for(problem, out), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    for prompts, (start, sink_at) in runs(problem.start_B, problem.sink_at_B):
        part = replace(problem, **{name: getattr(problem, name)[prompts] for name in ("q_BHQE", "k_BGKE", "v_BGKE", "start_B", "sink_at_B")})
        _merge_run(part, start, sink_at, place_BHQE[prompts], lse_BHQ[prompts])
    return place_BHQE, lse_BHQ


def _unfit(q_BHQE: Tensor, softcap: float | None) -> str:
    """What keeps flash attention from it; nothing if nothing does."""
    if not q_BHQE.is_cuda:
        return f"on {q_BHQE.device.type}"
    if q_BHQE.dtype not in (torch.bfloat16, torch.float16):
        return f"in {q_BHQE.dtype}".replace("torch.", "")
    if softcap is not None:
        return "where scores are capped"
    return "" if q_BHQE.shape[-1] in FLASH_HEAD_SIZES else f"for heads of size {q_BHQE.shape[-1]}"


def runs(*numbers_B: Int[Tensor, " B"]) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """The prompts in a row that have equal numbers (as slices), with those numbers."""
    rows = list(zip(*(number_B.tolist() for number_B in numbers_B), strict=True))
    begin = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[begin]:
            yield slice(begin, end), rows[begin]
            begin = end


def _merge_run(problem: SinkWindow, start: int, sink_at: int, place_BHQE: Tensor, lse_BHQ: Tensor) -> None:
    """Prompts with equal padding: rows of padding, rows among the sinks, rows behind them."""
    first, rows, keys = problem.first, problem.q_BHQE.shape[2], problem.k_BGKE.shape[2]
    real, behind = (min(max(position - first, 0), rows) for position in (start, start + problem.sinks))
    place_BHQE[:, :, :real], lse_BHQ[:, :, :real] = 0, -torch.inf
    among = slice(sink_at, sink_at + max(0, first + behind - start))
    if behind > real:
        z, lse = _flash(problem, slice(real, behind), among, causal=True)
        place_BHQE[:, :, real:behind], lse_BHQ[:, :, real:behind] = z, lse
    if behind == rows:
        return
    offset = problem.recent_from - problem.recent_first
    low = max(start + problem.sinks, problem.recent_first, first + behind - problem.window + 1 if not problem.chunk_window else first - problem.window + 1)
    z, lse = _flash(problem, slice(behind, rows), slice(low + offset, keys), causal=True, window=None if problem.chunk_window else problem.window)
    if problem.sinks:
        z, lse = joined((z, lse), _flash(problem, slice(behind, rows), slice(sink_at, sink_at + problem.sinks), causal=False))
    place_BHQE[:, :, behind:], lse_BHQ[:, :, behind:] = z, lse


def joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention to two disjoint sets of keys, as attention to all of them: outputs [B, H, Q, E] and log-sum-exp [B, H, Q] of each."""
    lse_BHQ = torch.logaddexp(one[1], other[1])
    share_BHQ1 = (one[1] - lse_BHQ).exp()[..., None]
    return torch.lerp(other[0].float(), one[0].float(), share_BHQ1), lse_BHQ


def _flash(problem: SinkWindow, rows: slice, keys: slice, causal: bool, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Some rows on some keys; if causal, the last row's own key is the last one."""
    parts = problem.q_BHQE[:, :, rows], problem.k_BGKE[:, :, keys], problem.v_BGKE[:, :, keys]
    q, k, v = (tensor.transpose(1, 2) for tensor in parts)
    z_BQHE, lse_BHQ = flash_forward(q, k, v, causal, problem.scaling, window)
    return z_BQHE.transpose(1, 2), lse_BHQ


def flash_forward(
    q_BQHE: Float[Tensor, "B Q H E"], k_BKGE: Float[Tensor, "B K G E"], v_BKGE: Float[Tensor, "B K G E"], causal: bool, scaling: float, window: int | None
) -> tuple[Float[Tensor, "B Q H E"], Float[Tensor, "B H Q"]]:
    """PyTorch's flash attention (FlashAttention 2); causal to the lower right, each row to the last `window` keys up to its own."""
    sizes = None, None, q_BQHE.shape[1], k_BKGE.shape[1]
    sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    z, lse, *_ = torch.ops.aten._flash_attention_forward(q_BQHE, k_BKGE, v_BKGE, *sizes, 0.0, causal, False, scale=scaling, **sides)
    return z, lse
