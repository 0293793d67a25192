"""Which model? `load` puts a causal language model behind one narrow protocol. The only file that knows TransformerLens."""

import copy
import ctypes
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.errors import InputError, unknown
from workbench.heads import ModelCard, Shape
from workbench.sources import DEFAULT_MODEL, Source, locate
from workbench.weights import FAMILIES, HeadWeights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
M_MMAP_THRESHOLD = -3
"""glibc's name for the size above which a block is taken from the system by itself."""

HYBRID = "workbench_hybrid"  # the attention implementation of a model that runs under a policy

LEARNED_POSITIONS = ("gpt2",)
DEVICES = ("auto", "cpu", "cuda", "mps")


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
    """A Hugging Face causal language model: its module, tokenizer, shape, weights by head and fingerprint."""

    name: str
    origin: str
    hf: Any
    tokenizer: Any = None
    revision: str | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

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
        config = self.config
        n_heads = config.num_attention_heads
        d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
        n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
        return Shape(config.num_hidden_layers, n_heads, n_kv_heads, d_head, config.hidden_size)

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
        """Where the weights are."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, in which the model runs."""
        return next(self.hf.parameters()).dtype

    @cached_property
    def weights(self) -> HeadWeights:
        """The weights seen head by head: W_Q, W_K, W_V, W_O, embeddings, norms."""
        return HeadWeights(self.hf, self.config, self.shape)

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
        digest = hashlib.sha256()
        settings = {key: getattr(self.config, key) for key in _DECISIVE if hasattr(self.config, key)}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.hf.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)}".encode() + _sample(weight))
        return digest.hexdigest()[:16]

    @cached_property
    def lens(self) -> Any:
        """A TransformerLens `TransformerBridge` over the same weights, for its hook names and for users' own hooks.

        Booting a bridge rewrites its module in place and sets it to eager attention; so the bridge gets a copy of the
        module that shares every parameter tensor. This model is untouched, and no memory is spent on a second set of weights.
        """
        from transformer_lens.model_bridge import TransformerBridge

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


_DECISIVE = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"),
    *("hidden_act", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "max_position_embeddings", "rope_parameters"),
    *("sliding_window", "layer_types", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "scale_attn_weights"),
    *("scale_attn_by_inverse_layer_idx", "use_parallel_residual", "tie_word_embeddings"),
)
"""The settings that decide what a model computes; the rest of a configuration differs between versions of transformers."""


def _sample(weight: Tensor, size: int = 257) -> bytes:
    """The bytes of evenly spaced values of a tensor, first and last among them."""
    flat = weight.detach().reshape(-1)
    index = torch.linspace(0, flat.numel() - 1, min(size, flat.numel()), dtype=torch.float64).long()
    return flat[index.to(flat.device)].to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()


def load(
    model: str = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> HFModel:
    """Load a model by catalogue name, hub id, local folder or GGUF file.

    `device` is `auto` (CUDA if there is one, else CPU), `cpu`, `cuda`, `cuda:1` or `mps`; `dtype` is `auto` (bfloat16 on CUDA,
    float32 elsewhere), `float32`, `bfloat16` or `float16`. Raises `InputError` for an unknown name, a folder that is no model,
    a broken weights file, an unsupported architecture, or a device that is not there. Never runs code from a repository.
    """
    _give_memory_back()
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    source = locate(model, revision=revision, say=say)
    hf, tokenizer = _read(source, precision)
    return HFModel(source.name, source.origin, hf.to(place), tokenizer, source.revision)


def _give_memory_back() -> None:
    """Have glibc return every freed block above 1 MiB to the system at once.

    By default it keeps them, in pieces that later blocks of other sizes do not fit: a capture of 2,048 tokens then peaked at seven times the memory.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**20)


def choose_device(device: str) -> torch.device:
    """The torch device for a name. Raises `InputError` if it is unknown or not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = device.partition(":")
    if kind not in DEVICES[1:] or (colon and not number.isdecimal()):
        raise unknown("device", device, DEVICES)
    there = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0, "mps": int(torch.backends.mps.is_available())}
    if int(number or 0) >= there[kind]:
        raise InputError(f"this machine has no {device} that torch can use; choose --device cpu or auto")
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype for a name; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, ["auto", *DTYPES])
    return DTYPES[dtype]


def _read(source: Source, dtype: torch.dtype) -> tuple[Any, Any]:
    options = {"revision": source.revision, "trust_remote_code": False}
    try:
        hf = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
    except Exception as error:  # config, safetensors and tokenizer readers raise what they like on broken files
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"cannot load {source.origin}: {type(error).__name__}: {reason}") from error
    return hf, tokenizer
