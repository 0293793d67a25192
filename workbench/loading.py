"""Where do a model's weights go? To one device, over the devices that there are (`device_map`), or head by head over processes (tensor parallelism)."""

import ctypes
import sys
from collections.abc import Mapping
from typing import Any

import psutil
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from workbench.errors import InputError, unknown
from workbench.heads import Shape
from workbench.sharding import Shards, distribution
from workbench.sources import Source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "mps")
M_MMAP_THRESHOLD = -3
"""glibc's name for the size above which a block is taken from the system by itself."""


def give_memory_back() -> None:
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


def shape_of(config: Any) -> Shape:
    """Layers, query heads, KV heads, head size and residual size, from the text part of a configuration."""
    n_heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return Shape(config.num_hidden_layers, n_heads, n_kv_heads, d_head, config.hidden_size)


def read(source: Source, dtype: torch.dtype, **places: Any) -> tuple[Any, Any]:
    """The module and tokenizer at a source; `places` are transformers' ways to spread weights. Raises `InputError` where they cannot be read."""
    options = {"revision": source.revision, "trust_remote_code": False}
    try:
        hf = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, use_safetensors=True, **options, **places)
    except Exception as error:  # readers of configurations and safetensors raise what they like on broken files
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"cannot load {source.origin}: {type(error).__name__}: {reason}") from error
    try:
        return hf, AutoTokenizer.from_pretrained(source.location, **options)
    except Exception as error:  # as do readers of tokenizers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{source.origin} has no tokenizer that can be read; put its files (tokenizer.json) beside the weights: {reason}") from error


def over_devices(source: Source, dtype: torch.dtype, device: str, device_map: str | Mapping[str, Any], gpu_memory: float | None) -> tuple[Any, Any]:
    """The module at a source with its layers spread over the GPUs, or as the map says, and the tokenizer. Raises `InputError` for another map."""
    if isinstance(device_map, str) and device_map != "auto":
        raise unknown("device map", device_map, ["auto"])
    if device != "auto":
        raise InputError(f"--device-map chooses the devices; leave out --device {device}")
    most = {}
    if gpu_memory is not None:
        gpus = dict.fromkeys(range(torch.cuda.device_count()), int(gpu_memory * 2**30))
        most = {"max_memory": {**gpus, "cpu": psutil.virtual_memory().available}}
    return read(source, dtype, device_map=device_map if isinstance(device_map, str) else dict(device_map), **most)


def empty(source: Source) -> Any:
    """The module at a source without its weights, on the meta device. Raises `InputError` where its configuration cannot be read."""
    try:
        config = AutoConfig.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # readers of configurations raise what they like on broken files
        raise InputError(f"cannot read the configuration of {source.origin}: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error


def split(source: Source, dtype: torch.dtype, place: torch.device) -> tuple[Any, Any, Shards]:
    """Each rank's part of the module at a source, the tokenizer, and who has which heads. Raises `InputError` that says why a model cannot be split."""
    sketch = empty(source)
    shards = Shards(dist.get_rank(), dist.get_world_size(), shape_of(sketch.config.get_text_config()), place)
    hf, tokenizer = read(source, dtype, distributed_config=distribution(sketch, shards.shape, source.name, shards.ranks))
    return hf, tokenizer, shards
