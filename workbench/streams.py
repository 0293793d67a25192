"""How do reads see what is written into the residual stream? Hooks on the blocks, and a tap that knows the output projections."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.attention import Tap
from workbench.implementations import each
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import Activations, BlockOutput, BlockRead, LayerRead, Read, Written
from workbench.weights import FAMILIES


@dataclass
class WritingTap(Tap):
    """A tap that also reads what heads write, which takes the model's output projections."""

    model: HFModel | None = None

    def __post_init__(self) -> None:
        self.reads = [read for read in self.reads if read != Written()]

    def __call__(
        self, layer: int, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> tuple[Tensor, dict[LayerRead, Any]]:
        """As of any tap, with `Written`."""
        z_BHQE, values = super().__call__(layer, q_BHQE, k_BGKE, v_BGKE, mask, scaling, softcap, window)
        if layer in self.layers:
            v_BGQE = v_BGKE[:, :, -q_BHQE.shape[2] :]  # a later chunk has those of earlier ones before its own
            rows = self.rows(None, k_BGKE.shape[2], None, q_BHQE.device)
            values[Written()] = Written().of(z_BHQE, v_BGQE, self._projection(layer).to(z_BHQE.device), rows)
        return z_BHQE, values

    def _projection(self, layer: int) -> Float[Tensor, "H E D"]:
        assert self.model is not None
        return self.model.own.weights.every_o(layer).float()


class Watch:
    """The reads of block outputs in some layers, over all chunks of a pass."""

    def __init__(self, model: HFModel, prompts: Prompts, reads: Sequence[Read], layers: Sequence[int]) -> None:
        self._reads: list[BlockRead] = [read for read in reads if isinstance(read, (Activations, BlockOutput))]
        self._blocks = model.hf.get_submodule(FAMILIES[model.config.model_type].blocks)
        self._observers = {layer: {read: read.observer(prompts) for read in self._reads} for layer in layers}

    @contextmanager
    def over(self, begin: int) -> Generator[None]:
        """Hooks on the blocks while a chunk that begins at this token goes through the model; none if nothing is to be read."""
        handles = [self._blocks[layer].register_forward_hook(self._hook(layer, begin)) for layer in self._observers if self._reads]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: int, begin: int) -> Any:
        def see(_module: Any, _inputs: Any, output: Any) -> None:
            h_BTD = output[0] if isinstance(output, tuple) else output
            for observer in self._observers[layer].values():
                observer.see(h_BTD, begin)

        return see

    def values(self) -> dict[Read, Any]:
        """Every read, layers joined [B, L, ...], on the CPU."""
        layers = {read: [observers[read].value() for observers in self._observers.values()] for read in self._reads}
        return {read: each(lambda *parts: torch.stack([part.cpu() for part in parts], dim=1), *values) for read, values in layers.items()}
