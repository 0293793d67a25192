"""How does a step of decoding run on a GPU? Two launches whatever the position, with work that is divided once for each shape of the buffers.

Nothing waits for the GPU and nothing that is allocated depends on data, so that a step can be captured as a CUDA graph (after one that compiles).
"""

from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import InputError
from workbench.ops.decoding import DecodeStep
from workbench.ops.support import HEAD_SIZES
from workbench.ops.triton_decoding import decode_kernel, join_kernel
from workbench.ops.tuning import Tile

LOG2E = 1.4426950408889634
PER_PROCESSOR = 2
"""Programs that a multiprocessor runs at once: their tiles fill its memory."""

KEYS_PER_PART = 128
"""The fewest keys that are worth a part of their own."""

RING_PART = 1024
"""The most keys of a ring that one program reads."""

MOST_JOINED = 256
"""Parts that are joined at once: each loop more is a wait for memory."""

TILES = {64: Tile(16, 128, 4, 3), 128: Tile(16, 64, 4, 3), 256: Tile(16, 32, 4, 3)}
"""By the largest head size; the keys of the stages under way should be 64 KiB or more on each multiprocessor."""

SINGLE_PRECISION = Tile(16, 32, 4, 2)

_KERNELS: tuple[Any, Any] = decode_kernel, join_kernel

empty = torch.empty
"""Where kernels write; tests put NaN there first."""


class Work(NamedTuple):
    """Parts of each full KV head and of each ring, and where programs leave them: outputs [programs, group, E'] and log-sum-exp in bits."""

    parts: int
    ring_parts: int
    out: Tensor
    bits: Tensor


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors; as many as an H100's in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def divided(batch: int, full: int, streaming: int, room: int, slots: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts each full KV head and each ring is divided; full ones into no more than the processors can run at once."""
    ring_parts = max(1, -(-slots // RING_PART))
    wanted = (PER_PROCESSOR * processors(device) - batch * streaming * ring_parts) // max(1, batch * full)
    return max(1, min(wanted, -(-room // KEYS_PER_PART))), ring_parts


@cache
def scratch(programs: int, group: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where programs leave what they found, made once for each number of them: captured graphs write to the same memory again."""
    return empty(programs, group, width, device=device), empty(programs, group, device=device)


def decode(step: DecodeStep) -> tuple[Float[Tensor, "B H E"], Float[Tensor, "B H"]]:
    """Outputs in the queries' dtype and log-sum-exp in nats (float32). Raises `InputError` for head sizes that the kernels do not do."""
    batch, heads, size = step.q_BHE.shape
    if size not in HEAD_SIZES:
        raise InputError(f"heads of size {size} are not supported by the Triton kernels ({HEAD_SIZES.start} to {HEAD_SIZES.stop - 1}); use torch")
    q = step.q_BHE
    z_BHE = empty(batch, heads, size, dtype=q.dtype, device=q.device)
    lse_BH = empty(batch, heads, dtype=torch.float32, device=q.device)
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():  # Triton takes the current one
        _run(step, z_BHE, lse_BH)
    return z_BHE, lse_BH


def _run(step: DecodeStep, z_BHE: Tensor, lse_BH: Tensor) -> None:
    q, buffers = step.q_BHE, [step.full_k_BFNE, step.full_v_BFNE, step.ring_k_BSCE, step.ring_v_BSCE]
    if any(tensor.stride(-1) != 1 for tensor in (q, *buffers)):
        raise InputError("the Triton kernels read vectors whose elements lie side by side")
    batch, size, group = q.shape[0], q.shape[2], step.group
    full, room, streaming, slots = step.full_k_BFNE.shape[1], step.full_k_BFNE.shape[2], step.ring_k_BSCE.shape[1], step.sinks + step.window
    width = max(16, 1 << (size - 1).bit_length())
    parts, ring_parts = divided(batch, full, streaming, room, slots, q.device)
    work = Work(parts, ring_parts, *scratch(batch * (full * parts + streaming * ring_parts), group, width, q.device))
    tile = SINGLE_PRECISION if q.dtype == torch.float32 else next(tile for limit, tile in TILES.items() if size <= limit)
    scales = (step.scaling * LOG2E, 0.0, 0.0) if step.softcap is None else (LOG2E, step.scaling / step.softcap, step.softcap)
    strides = [*q.stride()[:2], *(number for tensor in buffers for number in tensor.stride()[:3])]
    switches: dict[str, Any] = {"GROUP": group, "D": size, "DP": width}
    more: dict[str, Any] = {"SOFTCAP": step.softcap is not None, "FULL_WHOLE": work.parts == 1, "RING_WHOLE": work.ring_parts == 1}
    more |= {"BM": max(16, 1 << (group - 1).bit_length()), "BN": tile.keys, "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32"}
    tensors = q, *buffers, step.position, step.start_B, z_BHE, lse_BH, work.out, work.bits
    sizes = full, streaming, work.parts, work.ring_parts, batch, step.sinks, step.window
    first_pass, second_pass = _KERNELS
    first_pass[(work.bits.shape[0],)](*tensors, *sizes, *scales, *strides, **switches, **more, **tile.launch())
    block = min(width, 32)
    for first_item, first_head, count, parts in ((0, 0, full, work.parts), (batch * full * work.parts, full, streaming, work.ring_parts)):
        if count and parts > 1:
            places = work.out, work.bits, z_BHE, lse_BH, first_item, first_head, count, full + streaming, parts
            at_once = min(MOST_JOINED, 1 << (parts - 1).bit_length())
            second_pass[(batch * count * group, width // block)](*places, **switches, BP=at_once, BD=block, **Tile(0, 0, 4, 2).launch())
