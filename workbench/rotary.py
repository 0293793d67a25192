"""How does a model mark positions? The frequencies by which it rotates queries and keys, and the rotation, so that positions can be moved later."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.models import HFModel

MOVING = ("dynamic", "longrope")
"""Kinds whose frequencies depend on the length of the text."""


def frequencies(model: HFModel, layer: int) -> Float[Tensor, " F"]:
    """Radians per position of each rotated pair of dimensions in a layer; dimensions beyond 2 F are not rotated.

    Raises `InputError` for a model that does not rotate, or whose frequencies depend on the length of the text.
    """
    modules = [module for name, module in model.hf.named_modules() if name.endswith("rotary_emb")]
    if len(modules) != 1:
        raise InputError(f"{model.name} does not rotate queries and keys, so that positions cannot be moved (reposition=False leaves them as they are)")
    kinds = getattr(model.config, "layer_types", None)
    own = f"{kinds[layer]}_inv_freq" if kinds else ""
    kind = modules[0].rope_type
    kind = kind[kinds[layer]] if isinstance(kind, dict) and kinds else kind
    if kind in MOVING:
        raise InputError(f"{model.name} rotates by frequencies that depend on the length of the text ({kind}); positions cannot be moved")
    return getattr(modules[0], own) if hasattr(modules[0], own) else modules[0].inv_freq


def rotated(x_BHRE: Float[Tensor, "B H R E"], by_BR: Int[Tensor, "B R"], frequency_F: Float[Tensor, " F"]) -> Float[Tensor, "B H R E"]:
    """Queries or keys that have been rotated already, moved on by so many positions; back for negative ones. In float32 arithmetic."""
    angle_BRF = by_BR[:, None, :, None].float() * frequency_F.float()
    cos, sin = angle_BRF.cos(), angle_BRF.sin()
    one, other, rest = x_BHRE.float().tensor_split((len(frequency_F), 2 * len(frequency_F)), dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin, rest], dim=-1).to(x_BHRE.dtype)
