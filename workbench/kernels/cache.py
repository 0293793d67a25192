"""Which caches does a policy have? A `Cache` of transformers whose layers are hybrid, but where the model's own attention slides."""

from collections import defaultdict
from typing import Any

from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from workbench.errors import InputError
from workbench.kernels.clock import Clock
from workbench.kernels.layer import HybridLayer
from workbench.policies import HeadPolicy


def make(policy: HeadPolicy, config: Any, capacity: int = 0) -> Cache:
    """An empty cache for a model with this configuration: hybrid layers, but where the model's own attention slides.

    `capacity` is the number of tokens to make room for at once; without it buffers grow.
    """
    cache = DynamicCache(config=config)
    take_over(cache, policy, capacity)
    return cache


def take_over(cache: Cache, policy: HeadPolicy, capacity: int = 0) -> None:
    """Exchange the layers of an empty cache for hybrid ones. Raises `InputError` if it holds tokens, or is of a kind that cannot be exchanged."""
    if not isinstance(cache, DynamicCache):
        raise InputError(f"a policy makes its own cache; it cannot take over a {type(cache).__name__}")
    if cache.get_seq_length():
        raise InputError("the cache already holds keys of all heads; begin with an empty one, or with none")
    clocks = defaultdict(Clock)
    every = range(policy.card.shape.n_layers)
    own = list(cache.layers) or [DynamicLayer() for _ in every]
    cache.layers = [HybridLayer(policy, layer, clocks, capacity) if policy.windows[layer] is None else own[layer] for layer in every]
    cache.layer_class_to_replicate = None


def made_for(cache: Cache, policy: HeadPolicy) -> bool:
    """Whether a cache has this policy's layers. Raises `InputError` if it has those of another."""
    hybrid = [layer for layer in cache.layers if isinstance(layer, HybridLayer)]
    if any(layer.policy is not policy for layer in hybrid):
        raise InputError("this cache was made for another policy; begin with a new one")
    return bool(hybrid)


def nbytes(cache: Cache) -> int:
    """Bytes that the keys and values of a cache take, room for more not counted."""
    tensors = [tensor for layer in cache.layers if isinstance(layer, DynamicLayer) for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.nbytes for tensor in tensors) + sum(layer.nbytes for layer in cache.layers if isinstance(layer, HybridLayer))
