"""Where is a parameter? Here; in parts, of which each process has one; or offloaded, in which case it is fetched for the moment."""

import copy
import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

DECISIVE = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"),
    *("hidden_act", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "max_position_embeddings", "rope_parameters"),
    *("sliding_window", "layer_types", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "scale_attn_weights"),
    *("scale_attn_by_inverse_layer_idx", "use_parallel_residual", "tie_word_embeddings"),
)
"""The settings that decide what a model computes; the rest of a configuration differs between versions of transformers."""


def own(tensor: Any) -> Tensor:
    """What this process holds of a parameter: its part where it is split over several, else all of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Any) -> Tensor:
    """All of a parameter, brought together where it is split over several processes, which must all ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextmanager
def at_hand(module: Any) -> Generator[Any]:
    """A module whose own parameters are on a device that computes: where they are offloaded, for as long as the block lasts."""
    if not hasattr(module, "_hf_hook"):
        yield module
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield module


def place_of(hf: Any) -> torch.device:
    """Where a model takes its tokens and gives its logits: its device, or the first of those that it is spread over."""
    if spread := getattr(hf, "hf_device_map", None):
        computing = [place for place in spread.values() if place not in ("cpu", "disk")]
        return torch.device(computing[0] if computing else "cpu")
    return next(hf.parameters()).device


def all_of(hf: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a module by its name, names sorted, one after the other at hand and whole."""
    for name in sorted(hf.state_dict()):
        where, _, last = name.rpartition(".")
        with at_hand(hf.get_submodule(where)) as module:
            yield name, whole(getattr(module, last))


def in_float32(module: Any, x_TD: Tensor) -> Tensor:
    """A module's output with its parameters in float32, whatever the model's precision."""
    with _fetched(module) as there:
        weights = {name: weight.float() for name, weight in there.named_parameters()}
        return torch.func.functional_call(there, weights, (x_TD.to(next(iter(weights.values())).device),)).to(x_TD.device)


@contextmanager
def _fetched(module: Any) -> Generator[Any]:
    """The module, or where it is offloaded a copy that has its weights and no hooks, which would put others in their place."""
    hooks = {id(part._hf_hook): part._hf_hook for part in module.modules() if hasattr(part, "_hf_hook")}
    if not hooks:
        yield module
        return
    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(at_hand(part))
        made = copy.deepcopy(module, dict(hooks))
    for part in made.modules():
        part.__dict__.pop("forward", None)  # accelerate's, around the module's own
    yield made


def fingerprint(hf: Any, config: Any) -> str:
    """16 hexadecimal digits of a hash over the decisive settings and over name, shape and sampled bytes of every weight."""
    digest = hashlib.sha256()
    settings = {key: getattr(config, key) for key in DECISIVE if hasattr(config, key)}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in all_of(hf):
        digest.update(f"{name} {tuple(weight.shape)}".encode() + _sample(weight))
    return digest.hexdigest()[:16]


def _sample(weight: Tensor, size: int = 257) -> bytes:
    """The bytes of evenly spaced values of a tensor, first and last among them."""
    flat = weight.detach().reshape(-1)
    index = torch.linspace(0, flat.numel() - 1, min(size, flat.numel()), dtype=torch.float64).long()
    return flat[index.to(flat.device)].to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()
