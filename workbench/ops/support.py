"""Can the Triton kernels run here? Triton is imported when it is asked for, never before."""

import torch

HEAD_SIZES = range(16, 257)
"""The head sizes that the Triton kernels are made for."""


def missing_for(device: torch.device) -> str | None:
    """What keeps Triton from running on a device; None if nothing does."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed (pip install 'attention-head-workbench[gpu]')"
    if not hasattr(triton, "knobs"):
        return f"Triton {triton.__version__} is too old, 3.6 or newer is needed"
    return None if device.type == "cuda" or triton.knobs.runtime.interpret else f"it needs CUDA, and the model is on {device.type}"
