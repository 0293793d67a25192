"""What do Hugging Face's own eager attention and plain hooks see? The independent route that several test files compare with."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from workbench.prompts import Prompts
from workbench.tiny import random_model

WINDOWED = {"mistral": (8, 8), "gemma2": (8, None), "gemma3_text": (8, None)}
"""The sliding window of each layer of the tiny models that have one."""


@cache
def tiny(architecture: str):
    """One random model of each architecture for all tests; none of them may change it."""
    return random_model(architecture)


def random_ids(count: int, length: int, seed: int = 0) -> np.ndarray:
    """Ids of bytes: no special tokens."""
    return np.random.default_rng(seed).integers(3, 259, (count, length))


def random_prompts(count: int = 2, length: int = 20, seed: int = 0, **more) -> Prompts:
    return Prompts(random_ids(count, length, seed), **more)


@dataclass
class Eager:
    """The attention blocks' inputs and outputs [B, Q, D], the heads' outputs [B, L, Q, H, E], patterns [B, L, H, Q, K], logits [B, Q, V]."""

    input: list[torch.Tensor]
    output: list[torch.Tensor]
    z_BLQHE: np.ndarray
    pattern: np.ndarray
    logits: torch.Tensor


def eager(model, ids_BT: np.ndarray, change: Callable | None = None) -> Eager:
    """One forward pass; `change(layer, z_BQHE)` may return other head outputs, which the output projection then gets."""
    heads: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def before_projection(module, args):
        z_BQHE = args[0].unflatten(-1, (model.shape.n_heads, model.shape.d_head))
        heads.append(z_BQHE if change is None else change(len(heads), z_BQHE.clone()))
        return (heads[-1].flatten(-2),)

    with ExitStack() as hooks, model.attention("eager") as hf, torch.no_grad():
        for attention, output in zip(model.weights.attentions, model.weights.outputs, strict=True):
            hooks.enter_context(output.register_forward_pre_hook(before_projection))
            hooks.enter_context(
                attention.register_forward_pre_hook(lambda module, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
            )
            hooks.enter_context(attention.register_forward_hook(lambda module, args, result: outputs.append(result[0])))
        result = hf(torch.tensor(ids_BT), output_attentions=True, use_cache=False)
    pattern, z = torch.stack(result.attentions, 1).float().numpy(), torch.stack(heads, 1).float().numpy()
    return Eager(inputs, outputs, z, pattern, result.logits.float())


def visible(window: int | None, query: int, key: int) -> bool:
    """May a row see a key?"""
    return key <= query and (window is None or query - key < window)
