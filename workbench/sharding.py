"""Which heads has this process? `Shards` says so under tensor parallelism, and brings together what each process has reduced of its own heads.

1. `torchrun` starts one process (rank) per device; `join` makes them a group. 2. transformers splits the projections by its `tp_plan`, so that each rank has as
many query heads as any other, and the KV heads that they read; where there are fewer KV heads than ranks, ranks share them (`settled`). 3. A rank computes the
statistics of its own heads; those alone travel (`gathered`), never scores, queries or keys.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench.errors import InputError
from workbench.heads import Shape
from workbench.parameters import whole
from workbench.weights import FAMILIES

Made = TypeVar("Made")

WHOLE = "workbench_whole"
"""Our name, among transformers' parallel styles, for weights that every rank holds completely."""

START = "start one process per device: torchrun --nproc-per-node 2 -m workbench.cli label … --tensor-parallel"


@dataclass(frozen=True)
class Shards:
    """One process among the `ranks`: it has the same share of the query heads of every layer as any other. `shape` is that of the whole model."""

    rank: int
    ranks: int
    shape: Shape
    device: torch.device

    @property
    def heads(self) -> range:
        """The query heads of each layer that this rank has."""
        count = self.shape.n_heads // self.ranks
        return range(self.rank * count, (self.rank + 1) * count)

    @property
    def kv_heads(self) -> range:
        """The KV heads that these read. Ranks share one where there are fewer KV heads than ranks."""
        return range(self.heads.start // self.shape.group, (self.heads.stop - 1) // self.shape.group + 1)

    @property
    def own(self) -> Shape:
        """The model's shape with this rank's heads alone."""
        return replace(self.shape, n_heads=len(self.heads), n_kv_heads=len(self.kv_heads))

    def gathered(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """The ranks' parts side by side along the dimension of heads: the same on every rank, where the part was."""
        part = tensor.to(self.device).contiguous()
        parts = part.new_empty(self.ranks, *part.shape)
        dist.all_gather(list(parts.unbind()), part)
        return parts.movedim(0, dim).flatten(dim, dim + 1).to(tensor.device)

    def agreed(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, on every rank."""
        made = tensor.contiguous().clone()
        dist.broadcast(made, src=0)
        return made


def from_first(make: Callable[[], Made]) -> Made:
    """What rank 0 makes, or its `InputError`, on every rank: what lies on disk, say, where ranks must not differ."""
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = make()
        except InputError as error:
            told[1] = str(error)
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise InputError(told[1])
    return told[0]


def rank() -> int:
    """The number of this process among those that torchrun started; 0 where it started none."""
    return int(os.environ.get("RANK", "0"))


def join(device: str) -> torch.device:
    """Make the processes that torchrun started a group, and give each its device. Raises `InputError` where there are none, or more than devices."""
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        raise InputError(f"tensor parallelism takes two processes or more; {START}")
    local, cuda = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    if device not in ("auto", "cuda" if cuda else "cpu"):
        raise InputError(f"with tensor parallelism each process has the device of its number; leave out --device {device}")
    if cuda and local >= torch.cuda.device_count():
        raise InputError(f"{os.environ['LOCAL_WORLD_SIZE']} processes, but this machine has {torch.cuda.device_count()} GPUs; start one per GPU")
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return place


def plan(hf: Any, shape: Shape, name: str, ranks: int) -> dict[str, str]:
    """transformers' tensor-parallel plan of a model (its module may be on the meta device), changed where attention needs it.

    Raises `InputError` that says why, for a model that cannot be split so.
    """
    config = hf.config.get_text_config()
    kind, made = config.model_type, dict(hf.tp_plan or {})
    if kind not in FAMILIES or not any(rule.endswith(("q_proj", "qkv_proj", "query_key_value")) for rule in made):
        raise InputError(f"{name} cannot be split over {ranks} devices: transformers has no tensor-parallel plan for {kind}; try --device-map auto")
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"{name} cannot be split over {ranks} devices: its weights are quantised, and their heads lie packed; try --device-map auto")
    few = shape.n_kv_heads < ranks
    if shape.n_heads % ranks or (ranks % shape.n_kv_heads if few else shape.n_kv_heads % ranks):
        kv = f"{shape.n_kv_heads} KV head{'s' * (shape.n_kv_heads > 1)}"
        raise InputError(f"{name} cannot be split over {ranks} devices: its {shape.n_heads} query heads and {kv} do not divide evenly; try another number")
    if (wide := getattr(config, "intermediate_size", ranks)) % ranks:
        raise InputError(f"{name} cannot be split over {ranks} devices: the {wide} neurons of its MLPs do not divide evenly; try another number")
    for rule in made:
        if (few and rule.endswith((".k_proj", ".v_proj"))) or rule.endswith(".qkv_proj"):
            made[rule] = WHOLE
        elif rule.endswith(".self_attn.o_proj"):
            made[rule] = "rowwise"
        elif rule.endswith(("lm_head", "embed_tokens")) and config.vocab_size % ranks:
            made[rule] = WHOLE
    return made


def distribution(hf: Any, shape: Shape, name: str, ranks: int) -> Any:
    """transformers' `DistributedConfig` for a model. Raises `InputError` as `plan` does."""
    from transformers.distributed import DistributedConfig, tensor_parallel

    rules, styles = plan(hf, shape, name, ranks), vars(tensor_parallel)["ALL_PARALLEL_STYLES"]
    styles.register(WHOLE, tensor_parallel.TensorParallelLayer())
    return DistributedConfig(tp_size=ranks, tp_plan=rules)


def settled(hf: Any, shards: Shards) -> Any:
    """The module with each rank's attention cut to its own heads where transformers' plan does not do so: KV heads that ranks share, and packed q, k and v."""
    family = FAMILIES[hf.config.get_text_config().model_type]
    for block in hf.get_submodule(family.blocks):
        attention = block.get_submodule(family.attention)
        for name, rows in _rows(attention, shards).items():
            linear = getattr(attention, name)
            for part, tensor in list(linear.named_parameters(recurse=False)):
                linear.register_parameter(part, nn.Parameter(whole(tensor)[rows.to(tensor.device)].clone(), requires_grad=False))
        counts = {"num_key_value_groups": shards.own.group, "num_key_value_heads": shards.own.n_kv_heads}
        for name, count in counts.items():
            if hasattr(attention, name):
                setattr(attention, name, count)
        if hasattr(attention, "qkv_proj"):
            attention.config = OwnHeads(attention.config, {"num_attention_heads": shards.own.n_heads})
    return hf


def _rows(attention: Any, shards: Shards) -> Mapping[str, Tensor]:
    """Which rows of the projections that are whole belong to this rank's heads."""
    shape = shards.shape
    if hasattr(attention, "qkv_proj"):
        parts = [(0, shards.heads), (shape.n_heads, shards.kv_heads), (shape.n_heads + shape.n_kv_heads, shards.kv_heads)]
        return {"qkv_proj": torch.cat([_of(first, heads, shape) for first, heads in parts])}
    if shape.n_kv_heads < shards.ranks:
        return {name: _of(0, shards.kv_heads, shape) for name in ("k_proj", "v_proj")}
    return {}


def _of(first: int, heads: range, shape: Shape) -> Tensor:
    return torch.arange((first + heads.start) * shape.d_head, (first + heads.stop) * shape.d_head)


class OwnHeads:
    """A configuration as one rank's attention sees it: some settings are its own, all else is the model's."""

    def __init__(self, config: Any, settings: Mapping[str, Any]) -> None:
        self.__dict__.update(settings, _config=config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)
