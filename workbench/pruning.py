"""How is a model run without some heads, by whatever attention and in whatever loop? Their outputs are zero where the output projection reads them."""

from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from workbench.heads import Head
from workbench.models import HFModel


@contextmanager
def pruned(model: HFModel, heads: Sequence[Head]) -> Generator[Any, None, None]:
    """The model's module with some heads pruned, for transformers' `generate` and every other use; it is what it was afterwards.

    The same as the edit `Ablate(heads, kind="zero", phase="both")`, which the workbench's own passes take. Raises `InputError` for heads that are not there.
    """
    size, by_layer = model.shape.d_head, defaultdict(list)
    for head in heads:
        model.shape.check(head)
        by_layer[head.layer].append(head.index)

    def silence(indices: list[int]) -> Any:
        def change(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            for index in indices:
                z[..., index * size : (index + 1) * size] = 0
            return z, *args[1:]

        return change

    handles = [model.weights.outputs[layer].register_forward_pre_hook(silence(indices)) for layer, indices in by_layer.items()]
    try:
        yield model.hf
    finally:
        for handle in handles:
            handle.remove()
