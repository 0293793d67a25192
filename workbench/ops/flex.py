"""What does PyTorch's FlexAttention make of sinks and windows? Its block mask is derived from sinks, window and the number of full heads.

`create_block_mask` looks at every pair of a row and a key, head by head. Here the blocks that streaming heads visit come from arithmetic: those of the
sinks and of a window, O(rows / 128 · (sinks + window) / 128) numbers for all streaming heads. Full heads beside them in the same call take
(rows / 128) · (keys / 128) numbers for every head: 134 MB for 32 heads and 128k tokens.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.exc import TorchDynamoException
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from workbench.errors import InputError
from workbench.ops.sink_window import SinkWindow

BLOCK = 128
SHAPES = 256
"""How many kinds of problems one process may compile."""


def attend(problem: SinkWindow, out: Float[Tensor, "B H Q E"] | None = None, full: int = 0) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H Q"]]:
    """Outputs in the queries' dtype and log-sum-exp in nats; 0 and −inf for rows of padding. The first `full` KV heads see all keys up to a row's own.

    Compiled on CUDA, once for each shape, sinks, window and position of the first row; by definition, in O(Q · K) memory, elsewhere.
    Raises `InputError` for what FlexAttention does not compile.
    """
    return run(problem, block_mask(problem, full), out)


def run(problem: SinkWindow, mask: BlockMask, out: Float[Tensor, "B H Q E"] | None = None) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H Q"]]:
    """The same with a mask that was made before."""
    how: dict[str, Any] = {"kernel_options": {"FORCE_USE_FLEX_ATTENTION": True}}  # few rows would go to a kernel that does not take all of these masks
    how |= {"score_mod": _capped(problem.softcap), "scale": problem.scaling, "enable_gqa": problem.group > 1}
    tensors = problem.q_BHQE, problem.k_BGKE, problem.v_BGKE
    with dynamo.patch(recompile_limit=SHAPES, fail_on_recompile_limit_hit=True):  # else the next shape would run uncompiled, in O(Q · K) memory
        try:
            z, aux = (_compiled() if problem.q_BHQE.is_cuda else flex_attention)(*tensors, block_mask=mask, return_aux=AuxRequest(lse=True), **how)
        except TorchDynamoException as error:
            raise InputError(f"PyTorch {torch.__version__} does not compile FlexAttention for this: {error}; use torch or triton") from error
    return (z if out is None else out.copy_(z)), aux.lse


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def block_mask(problem: SinkWindow, full: int = 0) -> BlockMask:
    """Which blocks of 128 × 128 are visited, and which of those whole; [B, 1, …], or [B, H, …] if some KV heads are full.

    Raises `InputError` for full heads on keys of which some are gone.
    """
    if full and problem.recent_from != problem.recent_first:
        raise InputError("full heads need all keys, and those given begin with a cache's sinks")
    _, heads, rows, _ = problem.q_BHQE.shape
    keys = problem.k_BGKE.shape[2]
    (part_BUP, parts_BU), (from_BU, whole_BU) = _streaming(problem)
    width = max(1, -(-keys // BLOCK) if full else min(-(-keys // BLOCK), _span(problem) // BLOCK + 1))
    tables = [parts_BU, part_BUP, whole_BU, _ascending(from_BU, width)]
    if full:
        (part_BUP, parts_BU), (from_BU, whole_BU) = _full(problem, part_BUP.shape[2])
        of_full, cut = [parts_BU, part_BUP, whole_BU, _ascending(from_BU, width)], full * problem.group
        tables = [torch.stack([one] * cut + [other] * (heads - cut), dim=1) for one, other in zip(of_full, tables, strict=True)]
    else:
        tables = [table[:, None] for table in tables]
    return BlockMask.from_kv_blocks(
        *(table.contiguous() for table in tables),
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_mod(problem, full),
        seq_lengths=(rows, keys),
        compute_q_blocks=False,
    )


def _ascending(from_BU: Tensor, width: int) -> Tensor:
    """Blocks in a row, from the first on; as many as there is room for."""
    return (from_BU[..., None] + torch.arange(width, device=from_BU.device)).clamp(min=0, max=2**24).int()


def _span(problem: SinkWindow) -> int:
    """The most keys of a window that a block of rows sees."""
    return problem.window + (problem.q_BHQE.shape[2] if problem.chunk_window else BLOCK)


def _rows(problem: SinkWindow) -> tuple[Tensor, Tensor]:
    """The first and the last position of each block of rows."""
    rows = problem.q_BHQE.shape[2]
    begin_U = torch.arange(0, rows, BLOCK, device=problem.q_BHQE.device)
    return begin_U + problem.first, (begin_U + BLOCK - 1).clamp(max=rows - 1) + problem.first


def _listed(candidate_BUC: Tensor, wanted_BUC: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The wanted blocks in front, `width` of them, and how many there are."""
    order = wanted_BUC.int().argsort(dim=-1, descending=True, stable=True)
    return candidate_BUC.masked_fill(~wanted_BUC, 0).gather(-1, order)[..., :width].int(), wanted_BUC.sum(-1).int()


Listed = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""For blocks of rows: the blocks that are masked [B, U, P] and their number [B, U]; the first that all rows see whole, and the number of those."""


def _streaming(problem: SinkWindow) -> Listed:
    """What streaming heads visit."""
    top_U, bottom_U = _rows(problem)
    offset, keys, sinks = problem.recent_from - problem.recent_first, problem.k_BGKE.shape[2], problem.sinks
    start_B1, sink_at_B1 = problem.start_B[:, None].long(), problem.sink_at_B[:, None].long()
    low_U, high_low_U = ((torch.full_like(edge_U, problem.first) if problem.chunk_window else edge_U) - problem.window + 1 for edge_U in (top_U, bottom_U))
    behind_B1 = (start_B1 + sinks).clamp(min=problem.recent_first)
    seen_BU = (bottom_U - start_B1 + 1).clamp(min=0, max=sinks)
    device = top_U.device
    first_sink_B1 = sink_at_B1 // BLOCK
    last_sink_BU = torch.where(seen_BU > 0, (sink_at_B1 + seen_BU - 1) // BLOCK, first_sink_B1 - 1)
    sink_BUC = (first_sink_B1[..., None] + torch.arange((sinks + BLOCK - 2) // BLOCK + 1, device=device)).expand(-1, len(top_U), -1)
    low_BU = torch.maximum(low_U, behind_B1) + offset
    first_BU = torch.where(seen_BU > 0, torch.maximum(low_BU // BLOCK, last_sink_BU + 1), low_BU // BLOCK)
    near_BUC = first_BU[..., None] + torch.arange((_span(problem) + BLOCK - 2) // BLOCK + 1, device=device)
    last_U = (top_U + offset + 1) // BLOCK - 1
    whole_from_BU = torch.maximum(-(-(torch.maximum(high_low_U, behind_B1) + offset) // BLOCK), first_BU)
    whole_BU = (last_U - whole_from_BU + 1).clamp(min=0)
    is_whole_BUC = (near_BUC >= whole_from_BU[..., None]) & (near_BUC <= last_U[:, None])
    wanted = torch.cat(
        [sink_BUC <= last_sink_BU[..., None], (near_BUC * BLOCK <= (bottom_U + offset)[:, None]) & (near_BUC * BLOCK < keys) & ~is_whole_BUC], -1
    )
    return _listed(torch.cat([sink_BUC, near_BUC], -1), wanted, wanted.shape[-1]), (whole_from_BU, whole_BU.int())


def _full(problem: SinkWindow, width: int) -> Listed:
    """What full heads visit: only the diagonal and the end of the padding are masked."""
    top_U, bottom_U = _rows(problem)
    start_B1 = problem.start_B[:, None].long()
    last_U = (top_U + 1) // BLOCK - 1
    from_B1 = -(-start_B1 // BLOCK)
    whole_BU = (last_U - from_B1 + 1).clamp(min=0)
    edge_BU = (start_B1 // BLOCK).expand(-1, len(top_U))
    edges_BUC = torch.stack([edge_BU, *((torch.maximum(last_U, edge_BU) + step) for step in (1, 2))], -1)
    reached_BUC = edges_BUC * BLOCK <= bottom_U[:, None]
    wanted = reached_BUC & torch.stack(
        [(edge_BU < from_B1) | (edge_BU > last_U), torch.ones_like(edge_BU, dtype=torch.bool), torch.ones_like(edge_BU, dtype=torch.bool)], -1
    )
    part_BUP, parts_BU = _listed(edges_BUC, wanted, 3)
    return (torch.nn.functional.pad(part_BUP, (0, width - 3)), parts_BU), (from_B1.expand(-1, len(top_U)), whole_BU.int())


def _capped(cap: float | None) -> Callable[..., Tensor] | None:
    return None if cap is None else lambda score, b, h, q, k: torch.tanh(score / cap) * cap


def _streams(problem: SinkWindow) -> Callable[..., Tensor]:
    start_B, sink_at_B, first, at = problem.start_B, problem.sink_at_B, problem.first, problem.recent_from
    sinks, window, offset, chunk = problem.sinks, problem.window, problem.recent_from - problem.recent_first, problem.chunk_window
    return lambda b, h, q, k: (
        ((k >= sink_at_B[b]) & (k - sink_at_B[b] < sinks) & (start_B[b] + k - sink_at_B[b] <= q + first))
        | ((k >= at) & (k - offset >= start_B[b] + sinks) & (k - offset <= q + first) & (k - offset > (first if chunk else q + first) - window))
    )


def _mask_mod(problem: SinkWindow, full: int) -> Callable[..., Tensor]:
    start_B, first, group = problem.start_B, problem.first, problem.group
    streams = _streams(problem)
    if not full:
        return streams
    if full == problem.k_BGKE.shape[1]:
        return lambda b, h, q, k: (k >= start_B[b]) & (k <= q + first)
    full_H = torch.arange(problem.q_BHQE.shape[1], device=start_B.device) < full * group  # a tensor: with other heads full, nothing is compiled again
    return lambda b, h, q, k: torch.where(full_H[h], (k >= start_B[b]) & (k <= q + first), streams(b, h, q, k))
