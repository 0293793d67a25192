"""How does a pass run from the middle of a model? Only the blocks from a layer on compute; those below hand on what they once made.

Many experiments change one layer and ask for the logits: what lies below has been computed already, and is the same each time.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.models import HFModel
from workbench.weights import FAMILIES


def blocks(model: HFModel) -> Any:
    """The model's blocks, layer by layer."""
    return model.hf.get_submodule(FAMILIES[model.config.model_type].blocks)


@contextmanager
def resumed(model: HFModel, layer: int, residual_BTD: Float[Tensor, "B T D"]) -> Generator[Any, None, None]:
    """The model's module, in which block `layer` takes `residual_BTD` as its input; the blocks below compute nothing. Restored whatever happens.

    Token ids are still given, for their number; their embeddings are not used, unless `layer` is 0, where all runs as ever and the residual
    is refused. Positions, padding and attention implementations are as in any pass. No cache may be used. Raises `InputError` for a layer that is not there.
    """
    every = blocks(model)
    if not 0 < layer < len(every):
        raise InputError(f"a pass can be resumed at layers 1 to {len(every) - 1}, not at {layer}")

    def passed_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states

    def substituted(*_args: Any, **_kwargs: Any) -> Tensor:
        return residual_BTD

    with model.lock:
        try:
            for block in every[: layer - 1]:
                block.forward = passed_on
            every[layer - 1].forward = substituted
            yield model.hf
        finally:
            for block in every[:layer]:
                block.__dict__.pop("forward", None)


def residuals(model: HFModel, ids_BT: Int[Tensor, "B T"], **how: Any) -> tuple[Float[Tensor, "L B T D"], Tensor]:
    """The input of every block [L, B, T, D], from one pass, and the logits of its last row [B, V]. `how` goes to the module."""
    seen: list[Tensor] = []

    def keep(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks(model)]
    try:
        with torch.inference_mode():
            logits = model.hf(ids_BT, use_cache=False, logits_to_keep=1, **how).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen), logits
