"""Who computes attention to sinks and a window, and a step of decoding? One door to all implementations."""

from jaxtyping import Float
from torch import Tensor

from workbench.errors import InputError, unknown
from workbench.ops import decoding, sink_window, sink_window_torch
from workbench.ops.decoding import DecodeStep
from workbench.ops.sink_window import SinkWindow
from workbench.ops.support import missing_for

PREFILL = {
    "reference": "by definition, all scores at once",
    "torch": "block by block in plain torch, on any device",
    "merged": "from PyTorch's flash attention: a window and the sinks, joined; CUDA, half precision",
    "flex": "FlexAttention, its block mask made from sinks and window; compiled on CUDA",
    "triton": "one kernel, for CUDA",
}
"""How attention to sinks and a window is computed."""

DECODE = {
    "reference": "by definition",
    "torch": "by definition, on the part of the buffers that is filled where looking at the position costs nothing",
    "triton": "one kernel for all heads, and one that joins what it split; CUDA",
}
"""How a step of decoding is computed."""


def attend(problem: SinkWindow, implementation: str, out: Float[Tensor, "B H Q E"] | None = None) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H Q"]]:
    """Outputs in the queries' dtype (written into `out` if it is given) and log-sum-exp in nats; 0 and −inf for rows of padding.

    `out` may have any strides if its last dimension is in one piece. Raises `InputError` for an unknown name, and where an implementation does not apply.
    """
    match implementation:
        case "reference":
            z, lse = sink_window.reference(problem)
            return (z if out is None else out.copy_(z)), lse
        case "torch":
            return sink_window_torch.blocked(problem, out)
        case "merged":
            return sink_window_torch.merged(problem, out)
        case "flex":
            from workbench.ops import flex

            return flex.attend(problem, out)
        case "triton":
            _needs_triton(problem.q_BHQE)
            from workbench.ops import sink_window_triton

            return sink_window_triton.attend(problem, out)
    raise unknown("implementation", implementation, PREFILL)


def decode(step: DecodeStep, implementation: str) -> tuple[Float[Tensor, "B H E"], Float[Tensor, "B H"]]:
    """Outputs in the queries' dtype and log-sum-exp in nats. Raises `InputError` for an unknown name, and where an implementation does not apply."""
    match implementation:
        case "reference":
            return decoding.reference(step)
        case "torch":
            return decoding.reference(decoding.filled(step))
        case "triton":
            _needs_triton(step.q_BHE)
            from workbench.ops import decoding_triton

            return decoding_triton.decode(step)
    raise unknown("implementation", implementation, DECODE)


def _needs_triton(tensor: Tensor) -> None:
    if missing := missing_for(tensor.device):
        raise InputError(f"implementation triton: {missing}; torch runs on any device")
