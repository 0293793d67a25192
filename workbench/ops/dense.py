"""Which dense attention is the best here, and is it the one that ran? Causal attention by a named backend of PyTorch, never another in silence.

The rows are the last of the keys' positions. Where a backend aligns its causal mask with the first key (all but CUDA's flash), a chunk of rows behind
earlier keys takes two calls, one without a mask to the earlier keys and a square one to its own, joined by their log-sum-exp. No mask is made.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from workbench.errors import InputError, unknown
from workbench.ops.inputs import Attention, Wanted
from workbench.ops.sink_window_torch import joined, runs

BACKENDS = {
    "cudnn": "cuDNN, the fastest on Hopper; half precision on CUDA",
    "flash": "FlashAttention 2 in half precision on CUDA; PyTorch's own on the CPU",
    "efficient": "memory-efficient attention, for single precision on CUDA; query heads in turns",
    "math": "by definition, all scores at once; on any device",
    "statistics": "the kernels of this workbench, for capped scores; on any device",
}
"""What dense attention can run on. A chunk on cuDNN is joined from two parts that were rounded: it may err three times as much as one call, not twice."""

HALF = torch.bfloat16, torch.float16
CAPPED = "statistics"
_KINDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
_answers: dict[tuple, bool] = {}

Parts = tuple[Tensor, Tensor]
"""Outputs [B, H, Q, E] and log-sum-exp [B, H, Q]."""


def dense(
    q_BHQE: Float[Tensor, "B H Q E"],
    k_BGKE: Float[Tensor, "B G K E"],
    v_BGKE: Float[Tensor, "B G K E"],
    scaling: float,
    backend: str = "auto",
    start_B: Int[Tensor, " B"] | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "B H Q E"], str]:
    """Causal outputs of the last Q of K positions, and the name of the backend that made them; 0 for rows before `start_B`, which are padding.

    `auto` takes the best that there is. With `start_B`, the device is waited for, and prompts in a row with equal padding run together.
    Raises `InputError` for an unknown backend, and for one that does not do this device, precision, head size, or cap.
    """
    name = choose(q_BHQE, k_BGKE, backend, softcap)
    if name == CAPPED:
        return _statistics(q_BHQE, k_BGKE, v_BGKE, scaling, start_B, softcap), name
    run = {"cudnn": _cudnn, "flash": _flash if q_BHQE.is_cuda else _flash_cpu, "efficient": _efficient, "math": _math}[name]
    if start_B is None:
        return run(q_BHQE, k_BGKE, v_BGKE, scaling), name
    rows, keys = q_BHQE.shape[2], k_BGKE.shape[2]
    parts: list[Tensor] = []
    for prompts, (start,) in runs(start_B):
        real = slice(min(max(0, start - (keys - rows)), rows), rows)
        inputs = q_BHQE[prompts, :, real], k_BGKE[prompts, :, start:], v_BGKE[prompts, :, start:]
        if not real.start:
            parts.append(run(*inputs, scaling))
            continue
        parts.append(torch.zeros_like(q_BHQE[prompts]))
        if real.start < rows:
            parts[-1][:, :, real] = run(*inputs, scaling)
    return parts[0] if len(parts) == 1 else torch.cat(parts), name


def choose(q_BHQE: Float[Tensor, "B H Q E"], k_BGKE: Float[Tensor, "B G K E"], backend: str = "auto", softcap: float | None = None) -> str:
    """The backend that a name stands for: the best for `auto`. Raises `InputError` for an unknown name and for one that cannot do it."""
    if backend == "auto":
        return CAPPED if softcap is not None else next(name for name in BACKENDS if name != CAPPED and not _refusal(name, q_BHQE, k_BGKE))
    if backend not in BACKENDS:
        raise unknown("backend", backend, ["auto", *BACKENDS])
    if softcap is not None and backend != CAPPED:
        raise InputError(f"dense attention on {backend} cannot cap scores; use {CAPPED}")
    if why := _refusal(backend, q_BHQE, k_BGKE):
        raise InputError(f"dense attention on {backend} is not possible {why}; use auto")
    return backend


def _refusal(backend: str, q_BHQE: Tensor, k_BGKE: Tensor) -> str:
    """Why a backend cannot do it; nothing if it can."""
    device, dtype, size = q_BHQE.device.type, q_BHQE.dtype, q_BHQE.shape[3]
    if backend in ("math", CAPPED) or (backend == "flash" and device == "cpu"):
        return ""
    if device != "cuda":
        return f"on {device}"
    if backend != "efficient" and dtype not in HALF:
        return f"in {dtype}".replace("torch.", "")
    if size % 8 or size > 256:
        return f"for heads of size {size}"
    return "" if backend == "efficient" or _fused(backend, q_BHQE, k_BGKE) else f"with PyTorch {torch.__version__} on {torch.cuda.get_device_name()}"


def _fused(backend: str, q_BHQE: Tensor, k_BGKE: Tensor) -> bool:
    """Whether PyTorch says that cuDNN or flash would take a square part of it; asked once for each device, precision and shape of the heads."""
    key = backend, q_BHQE.device, q_BHQE.dtype, q_BHQE.shape[1], k_BGKE.shape[1], q_BHQE.shape[3]
    if key not in _answers:
        can = torch.backends.cuda.can_use_cudnn_attention if backend == "cudnn" else torch.backends.cuda.can_use_flash_attention
        with sdpa_kernel(_KINDS[backend]):  # what it can do depends on what is switched on
            part = k_BGKE[:, :, -q_BHQE.shape[2] :]
            _answers[key] = can(torch.backends.cuda.SDPAParams(q_BHQE, part, part, None, 0.0, True, q_BHQE.shape[1] != k_BGKE.shape[1]))
    return _answers[key]


def _square(kind: SDPBackend, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    with sdpa_kernel(kind):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])


def _behind(q: Tensor, k: Tensor, v: Tensor, call: Callable[[Tensor, Tensor, Tensor, bool], Parts]) -> Tensor:
    """A chunk: attention to the keys before it, joined with attention to its own."""
    if q.shape[2] == 1:  # which sees all keys
        return call(q, k, v, False)[0]
    cut = k.shape[2] - q.shape[2]
    if cut == 1:  # cuDNN takes no single key: the first row sees two, and the others go on from there
        first = call(q[:, :, :1], k[:, :, :2], v[:, :, :2], False)[0]
        return torch.cat([first, _behind(q[:, :, 1:], k, v, call)], dim=2)
    earlier = call(q, k[:, :, :cut], v[:, :, :cut], False)
    return joined(earlier, call(q, k[:, :, cut:], v[:, :, cut:], True))[0].to(q.dtype)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    def call(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Parts:
        z, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scaling)
        return z, lse.reshape(q.shape[:3])

    if k.shape[2] == 1:  # which cuDNN does not do: all probability is on it
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    return _square(SDPBackend.CUDNN_ATTENTION, q, k, v, scaling) if q.shape[2] == k.shape[2] else _behind(q, k, v, call)


def _flash(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    if q.shape[2] == k.shape[2]:
        return _square(SDPBackend.FLASH_ATTENTION, q, k, v, scaling)
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, False, scale=scaling)[0]  # causal to the lower right


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    def call(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Parts:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scaling)

    return _square(SDPBackend.FLASH_ATTENTION, q, k, v, scaling) if q.shape[2] == k.shape[2] else _behind(q, k, v, call)


def _efficient(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """One query head of every group at a time: it does not share keys among heads."""
    group, z = q.shape[1] // k.shape[1], torch.empty_like(q)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        for head in range(group):
            mask = causal_lower_right(q.shape[2], k.shape[2])
            z[:, head::group] = scaled_dot_product_attention(q[:, head::group], k, v, attn_mask=mask, scale=scaling)
    return z


def _math(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """The only one that makes a mask."""
    rows, keys = q.shape[2], k.shape[2]
    mask = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril(keys - rows)
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])


def _statistics(q: Tensor, k: Tensor, v: Tensor, scaling: float, start_B: Tensor | None, softcap: float | None) -> Tensor:
    """The kernels that keep statistics, without any: Triton on CUDA, else block by block."""
    from workbench.ops import blocked
    from workbench.ops.support import HEAD_SIZES, missing_for

    batch, rows, keys = len(q), q.shape[2], k.shape[2]
    pos_BR = torch.arange(keys - rows, keys, device=q.device, dtype=torch.int32).expand(batch, -1).contiguous()
    start = torch.zeros(batch, dtype=torch.int32, device=q.device) if start_B is None else start_B.int()
    attention = Attention(q, k, v, pos_BR, start, scaling, softcap, padded=start_B is not None)
    statistics = blocked.statistics
    if q.is_cuda and q.shape[3] in HEAD_SIZES and missing_for(q.device) is None:
        from workbench.ops.streaming import statistics
    z_BHQE = statistics(attention, Wanted(output=True)).z_BHRE
    assert z_BHQE is not None
    return z_BHQE
