"""How do the full heads of a layer come to stand side by side? The weights are permuted once, and put back afterwards.

The rows of W_Q, W_K, W_V (and their biases) and the columns of W_O are moved head by head, which changes no output: heads only meet in W_O's sum.
Norms over one head's vector are shared by all heads and stay. Anything else that knows heads is refused.
Weights that are offloaded are not here to be moved: in such a layer queries, keys and values change places in every pass, and the outputs change back.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import InputError
from workbench.heads import Shape
from workbench.models import HFModel
from workbench.parameters import own
from workbench.policies import HeadPolicy

Segments = list[tuple[str, int]]
"""A dimension as segments, one after the other: whose heads each holds (`q` or `kv`), and how many numbers a head takes."""

Places = list[tuple[str, int, Segments]]
"""Parameters that hold heads: name, dimension, segments."""


def _separate(shape: Shape) -> Places:
    names = {"q_proj": "q", "k_proj": "kv", "v_proj": "kv"}
    inward = [(f"{name}.{part}", 0, [(kind, shape.d_head)]) for name, kind in names.items() for part in ("weight", "bias")]
    return [*inward, ("o_proj.weight", 1, [("q", shape.d_head)])]


def _concatenated(shape: Shape) -> Places:
    three = [("q", shape.d_head), ("kv", shape.d_head), ("kv", shape.d_head)]
    return [("qkv_proj.weight", 0, three), ("qkv_proj.bias", 0, three), ("o_proj.weight", 1, three[:1])]


def _conv1d(shape: Shape) -> Places:
    three = [("q", shape.d_head)] * 3
    return [("c_attn.weight", 1, three), ("c_attn.bias", 0, three), ("c_proj.weight", 0, three[:1])]


def _interleaved(shape: Shape) -> Places:
    packed = [("q", 3 * shape.d_head)]
    return [("query_key_value.weight", 0, packed), ("query_key_value.bias", 0, packed), ("dense.weight", 1, [("q", shape.d_head)])]


_OUTPUT_BIASES = ("o_proj.bias", "c_proj.bias", "dense.bias")

_LAYOUTS: dict[str, Callable[[Shape], Places]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"), _separate),
    "phi3": _concatenated,
    "gpt2": _conv1d,
    "gpt_neox": _interleaved,
}


@dataclass(frozen=True, eq=False)
class Arrangement:
    """In which order the heads of a layer stand whose weights stay: the places of KV heads [G] and of query heads [H]."""

    kv_G: Tensor
    query_H: Tensor

    def there(self, q_BHQE: Tensor, k_BGQE: Tensor, v_BGQE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a pass, in this order."""
        kv_G, query_H = (index.to(q_BHQE.device) for index in (self.kv_G, self.query_H))
        return q_BHQE.index_select(1, query_H), k_BGQE.index_select(1, kv_G), v_BGQE.index_select(1, kv_G)

    def back(self, z_BHQE: Tensor) -> Tensor:
        """The outputs of heads in this order, in that of the model."""
        return z_BHQE.index_select(1, self.query_H.argsort().to(z_BHQE.device))


@contextmanager
def permuted(model: HFModel, policy: HeadPolicy) -> Generator[dict[int, Arrangement], None, None]:
    """The model's weights with the full heads of each layer first; put back at the end, whatever happens. Gives the orders of layers that are offloaded.

    While it lasts, nobody else may look at heads by their number: `HFModel.attention` refuses. Raises `InputError` for weights that heads cannot be moved in.
    """
    orders = {layer: policy.order(layer) for layer in policy.layers if policy.order(layer) != sorted(policy.order(layer))}
    found = {layer: list(_moves(model, layer, order)) for layer, order in orders.items()}
    away = {layer for layer, moves in found.items() if any(parameter.is_meta for parameter, _, _ in moves)}
    moves = [move for layer, made in found.items() if layer not in away for move in made]
    moved = []
    try:
        for parameter, dimension, index in moves:
            _move(parameter, dimension, index)
            moved.append((parameter, dimension, index))
        yield {layer: Arrangement(torch.tensor(orders[layer]), _query_heads(orders[layer], model.shape)) for layer in away}
    finally:
        for parameter, dimension, index in moved:
            _move(parameter, dimension, index.argsort())


def _move(parameter: Tensor, dimension: int, index: Tensor) -> None:
    parameter.data.copy_(parameter.data.index_select(dimension, index))


def _moves(model: HFModel, layer: int, order: list[int]) -> Iterator[tuple[Tensor, int, Tensor]]:
    """What to move in one layer: parameter, dimension, and where each place takes its numbers from."""
    shape, attention = model.shape, model.weights.attentions[layer]
    places = {name: (dimension, segments) for name, dimension, segments in _LAYOUTS[model.config.model_type](shape)}
    for name, parameter in ((name, own(parameter)) for name, parameter in attention.named_parameters()):
        where = f"{model.name}, layer {layer}: {name} of shape {tuple(parameter.shape)}"
        if name not in places:
            if parameter.numel() != shape.d_head and name not in _OUTPUT_BIASES:  # a norm over one head's vector is shared by all
                raise InputError(f"{where} knows heads in a way that is not known here; policies cannot be applied to this model")
            continue
        dimension, segments = places[name]
        index = _index(segments, order, shape)
        if parameter.shape[dimension] != len(index) or not parameter.is_floating_point():
            raise InputError(f"{where}, {parameter.dtype}, is not the matrix of {len(index)} numbers that its heads should take; is it quantised or sharded?")
        yield parameter, dimension, index if parameter.is_meta else index.to(parameter.device)


def _index(segments: Segments, order: list[int], shape: Shape) -> Tensor:
    parts, begin = [], 0
    for kind, size in segments:
        heads = _query_heads(order, shape) if kind == "q" else torch.tensor(order)
        parts.append(begin + (heads[:, None] * size + torch.arange(size)).flatten())
        begin += len(heads) * size
    return torch.cat(parts)


def _query_heads(order: list[int], shape: Shape) -> Tensor:
    """The query heads [H] of KV heads in this order."""
    return torch.tensor([head * shape.group + member for head in order for member in range(shape.group)])
