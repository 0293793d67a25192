"""How does attention to sinks and a window run on a GPU? One Triton kernel, which reads keys where they lie and writes where it is told."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import InputError
from workbench.ops.sink_window import SinkWindow
from workbench.ops.support import HEAD_SIZES
from workbench.ops.triton_sink_window import sink_window_kernel
from workbench.ops.tuning import Tile, choose

LOG2E = 1.4426950408889634

TILES = {
    64: (Tile(64, 64, 4, 3), Tile(64, 32, 4, 3), Tile(128, 64, 8, 3, 128), Tile(128, 64, 4, 3)),
    128: (Tile(64, 32, 4, 3), Tile(128, 32, 8, 3, 128), Tile(64, 64, 4, 3)),
    256: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)),
}
"""Tiles to choose among, by the largest head size that they serve; their rows are those of all query heads of a group."""

SINGLE_PRECISION = (Tile(32, 32, 4, 2),)

empty = torch.empty
"""Where kernels write; tests put NaN there first."""

_chosen: dict[tuple, Tile] = {}


def attend(problem: SinkWindow, out: Float[Tensor, "B H Q E"] | None = None) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H Q"]]:
    """Outputs in the queries' dtype and log-sum-exp in nats (float32); 0 and −inf for rows of padding.

    `out` is written to if it is given, whatever its strides, if its last dimension is in one piece. Raises `InputError` for head sizes that the
    kernel does not do.
    """
    batch, heads, rows, size = problem.q_BHQE.shape
    if size not in HEAD_SIZES:
        raise InputError(f"heads of size {size} are not supported by the Triton kernels ({HEAD_SIZES.start} to {HEAD_SIZES.stop - 1}); use torch")
    if out is not None and out.stride(-1) != 1:
        raise InputError("the Triton kernel writes outputs whose last dimension is in one piece")
    q = problem.q_BHQE
    place_BHQE = empty(batch, rows, heads, size, dtype=q.dtype, device=q.device).transpose(1, 2) if out is None else out
    lse_BHQ = empty(batch, heads, rows, dtype=torch.float32, device=q.device)
    if not lse_BHQ.numel():
        return place_BHQE, lse_BHQ
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():  # Triton takes the current one
        _run(_contiguous(problem), place_BHQE, lse_BHQ)
    return place_BHQE, lse_BHQ


def _run(problem: SinkWindow, place_BHQE: Tensor, lse_BHQ: Tensor) -> None:
    q, k, v = problem.q_BHQE, problem.k_BGKE, problem.v_BGKE
    batch, _, rows, size = q.shape
    groups, keys, group = k.shape[1], k.shape[2], problem.group
    strides = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *place_BHQE.stride()[:3]]
    scales = (problem.scaling * LOG2E, 0.0, 0.0) if problem.softcap is None else (LOG2E, problem.scaling / problem.softcap, problem.softcap)
    layout = problem.first, problem.recent_from, problem.recent_first, problem.sinks, problem.window
    tensors = q, k, v, problem.start_B, problem.sink_at_B, place_BHQE, lse_BHQ
    switches: dict[str, Any] = {"GROUP": group, "CHUNK": problem.chunk_window, "SOFTCAP": problem.softcap is not None}
    switches |= {"D": size, "DP": max(16, 1 << (size - 1).bit_length()), "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32"}

    kernel: Any = sink_window_kernel

    def run(tile: Tile) -> None:
        block = max(tile.rows, 1 << (group - 1).bit_length())
        grid = -(-rows // (block // group)), batch * groups
        kernel[grid](*tensors, groups, rows, keys, *layout, *scales, *strides, **switches, BM=block, BN=tile.keys, **tile.launch())

    seen = min(keys, problem.sinks + problem.window)
    name = ("sink_window", *(f"{key}={value}" for key, value in switches.items()), q.dtype, *(n.bit_length() for n in (batch * groups, rows, seen)))
    if (q.device, *name) not in _chosen:
        candidates = SINGLE_PRECISION if q.dtype == torch.float32 else next(tiles for limit, tiles in TILES.items() if size <= limit)
        _chosen[q.device, *name] = choose(name, candidates, batch * groups * group * rows * keys, run)
    run(_chosen[q.device, *name])


def _contiguous(problem: SinkWindow) -> SinkWindow:
    """The same with every head's vectors in one piece, which they are as models hand them over."""
    tensors = {name: getattr(problem, name) for name in ("q_BHQE", "k_BGKE", "v_BGKE")}
    broken = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor.stride(-1) != 1}
    return replace(problem, **broken) if broken else problem
