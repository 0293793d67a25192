"""Which model? `load` puts a causal language model behind one narrow protocol. The only file that knows TransformerLens."""

import copy
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.errors import InputError, unknown
from workbench.heads import ModelCard, Shape
from workbench.loading import choose_device, choose_dtype, give_memory_back, over_devices, read, shape_of, split
from workbench.parameters import fingerprint, place_of
from workbench.sharding import Shards, from_first, join, settled
from workbench.sources import DEFAULT_MODEL, locate
from workbench.weights import FAMILIES, HeadWeights

HYBRID = "workbench_hybrid"  # the attention implementation of a model that runs under a policy

LEARNED_POSITIONS = ("gpt2",)


@runtime_checkable
class Model(Protocol):
    """What the workbench needs of a language model; `HFModel` is the one runtime so far."""

    tokenizer: Any

    @property
    def card(self) -> ModelCard: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def max_length(self) -> int: ...
    @property
    def positions(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def weights(self) -> HeadWeights: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(eq=False)
class HFModel:
    """A Hugging Face causal language model: its module, tokenizer, shape, weights by head and fingerprint.

    With `shards` the module has a part of the heads of every layer, and other processes have the rest: see `own`.
    """

    name: str
    origin: str
    hf: Any
    tokenizer: Any = None
    revision: str | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    shards: Shards | None = None

    def __post_init__(self) -> None:
        if self.config.model_type not in FAMILIES:
            raise unknown("architecture", self.config.model_type, FAMILIES)
        self.hf.eval().requires_grad_(False)

    @property
    def config(self) -> Any:
        """The text part of the model's configuration."""
        return self.hf.config.get_text_config()

    @cached_property
    def shape(self) -> Shape:
        """Layers, query heads, KV heads, head size and residual size."""
        return shape_of(self.config)

    @cached_property
    def own(self) -> "HFModel":
        """The model as this process has it: with its own heads alone, numbered from 0. The model itself unless it is spread over processes."""
        if self.shards is None:
            return self
        part = copy.copy(self)
        part.__dict__.update(shape=self.shards.own, fingerprint=self.fingerprint, shards=None)
        return part

    @property
    def max_length(self) -> int:
        """The context that the model was made for, in tokens."""
        return int(self.config.max_position_embeddings)

    @property
    def positions(self) -> int:
        """The most tokens that it can take: its learned positions, where it has those; rotated ones never end."""
        return self.max_length if self.config.model_type in LEARNED_POSITIONS else sys.maxsize

    @property
    def vocabulary(self) -> int:
        """The number of token ids that the embedding knows."""
        return int(self.config.vocab_size)

    @property
    def card(self) -> ModelCard:
        """What identifies the model in results: name, origin, revision, fingerprint, shape."""
        return ModelCard(self.name, self.origin, self.fingerprint, self.shape, self.revision)

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a model that is spread over devices, the first of these."""
        return place_of(self.hf)

    @property
    def devices(self) -> list[torch.device]:
        """The GPUs that compute: one, several where a map spreads layers over them, or none."""
        spread = getattr(self.hf, "hf_device_map", None) or {"": self.device}
        places = [torch.device(place) for place in dict.fromkeys(spread.values()) if place != "disk"]
        return [place for place in places if place.type == "cuda"]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, in which the model runs."""
        return next(self.hf.parameters()).dtype

    @cached_property
    def weights(self) -> HeadWeights:
        """The weights seen head by head: W_Q, W_K, W_V, W_O, embeddings, norms. Raises `InputError` where other processes have some of them: see `own`."""
        self.check_alone()
        return HeadWeights(self.hf, self.config, self.shape)

    def agreed(self, tensor: Tensor) -> Tensor:
        """What rank 0 has of a tensor that is the same on every rank but for rounding, such as a token that is chosen."""
        return tensor if self.shards is None else self.shards.agreed(tensor)

    def check_alone(self) -> None:
        """Raise `InputError` if the heads are spread over processes, for what only knows a model that is all here."""
        if self.shards is not None:
            what = "only scores, labels, captures, generation and policies can be made of it so"
            raise InputError(f"the heads of {self.name} are spread over {self.shards.ranks} processes; {what}")

    @cached_property
    def windows(self) -> list[int | None]:
        """How many keys back, its own among them, a token sees in each layer; None where it sees all."""
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * self.shape.n_layers
        return [window if kind == "sliding_attention" else None for kind in kinds]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over the decisive settings and over name, shape and sampled bytes of every weight.

        The sampled values are rounded to bfloat16 first, so that a model has one fingerprint in float32 and in bfloat16.
        """
        return fingerprint(self.hf, self.config)

    @cached_property
    def lens(self) -> Any:
        """A TransformerLens `TransformerBridge` over the same weights, for its hook names and for users' own hooks.

        Booting a bridge rewrites its module in place and sets it to eager attention; so the bridge gets a copy of the
        module that shares every parameter tensor. This model is untouched, and no memory is spent on a second set of weights.
        """
        from transformer_lens.model_bridge import TransformerBridge

        self.check_alone()
        places = dict.fromkeys(map(str, (getattr(self.hf, "hf_device_map", None) or {}).values()))
        if len(places) > 1 or any(weight.is_meta for weight in self.hf.parameters()):
            raise InputError(f"a TransformerBridge takes the weights of {self.name} in one place, and a device map has put them on {', '.join(places)}")
        shared = {id(tensor): tensor for tensor in [*self.hf.parameters(), *self.hf.buffers()]}
        module, tokenizer = copy.deepcopy(self.hf, shared), copy.deepcopy(self.tokenizer)
        module.config.architectures = [type(module).__name__]  # a model made in memory has none
        if tokenizer is not None:  # unless it says that it adds BOS itself, it is read anew from where its name says, to prepend one
            tokenizer.init_kwargs.update(name_or_path=self.name, add_bos_token=True)
        return TransformerBridge.boot_transformers(self.origin, hf_model=module, tokenizer=tokenizer, device=str(self.device), dtype=self.dtype)

    @contextmanager
    def attention(self, implementation: str) -> Generator[Any, None, None]:
        """Run with one of transformers' attention implementations, and put the former one back. Raises `InputError` while a policy has moved the heads."""
        with self.lock:
            former = self.config._attn_implementation
            if former == HYBRID:
                raise InputError(f"{self.name} runs under a policy, which has moved its heads; do this after the policy has been taken off")
            self.config._attn_implementation = implementation
            try:
                yield self.hf
            finally:
                self.config._attn_implementation = former


def load(
    model: str = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    gpu_memory: float | None = None,
    tensor_parallel: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> HFModel:
    """Load a model by catalogue name, hub id, local folder or GGUF file.

    `device` is `auto` (CUDA if there is one, else CPU), `cpu`, `cuda`, `cuda:1` or `mps`; `dtype` is `auto` (bfloat16 on CUDA,
    float32 elsewhere), `float32`, `bfloat16` or `float16`. With a `device_map`, `auto` or accelerate's, layers are spread over the GPUs, of which weights
    take at most `gpu_memory` GiB each, and those that do not fit are offloaded. With `tensor_parallel` heads are spread over the processes of torchrun.
    Raises `InputError` for an unknown name, a folder that is no model, a broken weights file, an unsupported architecture, a device that is not there, or
    a model that cannot be spread. Never runs code from a repository.
    """
    give_memory_back()
    if device_map is None and gpu_memory is not None:
        raise InputError("--gpu-memory bounds what --device-map auto puts on a GPU; give both")
    if tensor_parallel:
        if device_map is not None:
            raise InputError("--device-map and --tensor-parallel are two ways to spread a model; choose one")
        return _spread(model, device, dtype, revision, say)
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    source = locate(model, revision=revision, say=say)
    if device_map is not None:
        return HFModel(source.name, source.origin, *over_devices(source, precision, device, device_map, gpu_memory), source.revision)
    hf, tokenizer = read(source, precision)
    return HFModel(source.name, source.origin, hf.to(place), tokenizer, source.revision)


def _spread(model: str, device: str, dtype: str, revision: str | None, say: Callable[[str], None]) -> HFModel:
    """Each process's part of a model. Rank 0 fetches and converts; the fingerprint is made before the module is cut further, by all ranks together."""
    place = join(device)
    precision = choose_dtype(dtype, place)
    source = from_first(lambda: locate(model, revision=revision, say=say))
    hf, tokenizer, shards = split(source, precision, place)
    return spread(HFModel(source.name, source.origin, hf, tokenizer, source.revision), shards)


def spread(model: HFModel, shards: Shards) -> HFModel:
    """A model whose module transformers has split over processes, ready for use; every process calls this."""
    fingerprint = model.fingerprint
    settled(model.hf, shards)
    made = HFModel(model.name, model.origin, model.hf, model.tokenizer, model.revision, model.lock, shards)
    made.__dict__["fingerprint"] = fingerprint
    return made
