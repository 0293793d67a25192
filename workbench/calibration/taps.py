"""What would a head write if its sinks were calibrated, and what does the model answer then? Taps beside and in the way of plain attention.

The heads of one layer do not interact, and calibrating them does not change what reaches them: one plain pass in which every layer is also computed
calibrated shows all heads' outputs. Beyond that layer, a head's effect takes a pass of its own, from there on.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.attention import Tap, tapped
from workbench.edits import Calibrate
from workbench.models import HFModel
from workbench.questions import Batch, feed
from workbench.reads import LayerRead
from workbench.resume import residuals, resumed

WAY = "reference"
"""The implementation of every pass, so that differences are those of the edit alone."""


@dataclass
class Shadow(Tap):
    """Lets plain outputs go on, and keeps for the `wanted` layers what the heads write, plain [B, H, T, E] and by the tap `other`.

    With `leaves`, zeros that gradients reach are added to the plain outputs: their gradient is that of the outputs.
    """

    other: Tap | None = None
    wanted: frozenset[int] = frozenset()
    leaves: bool = False
    plain: dict[int, Tensor] = field(default_factory=dict)
    changed: dict[int, Tensor] = field(default_factory=dict)
    leaf: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self, layer: int, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> tuple[Tensor, dict[LayerRead, Any]]:
        """The plain outputs of a layer."""
        if self.leaves and softcap is not None and mask is not None:
            z_BHQE, values = capped(q_BHQE, k_BGKE, v_BGKE, mask, scaling, softcap), {}
        else:
            z_BHQE, values = super().__call__(layer, q_BHQE, k_BGKE, v_BGKE, mask, scaling, softcap, window)
        if layer in self.wanted and self.other is not None:
            with torch.no_grad():
                self.changed[layer], _ = self.other(layer, q_BHQE.detach(), k_BGKE.detach(), v_BGKE.detach(), mask, scaling, softcap, window)
            self.plain[layer] = z_BHQE.detach()
            if self.leaves:
                self.leaf[layer] = torch.zeros_like(z_BHQE, requires_grad=True)
                z_BHQE = z_BHQE + self.leaf[layer]
        return z_BHQE, values


@dataclass
class Swap(Tap):
    """In one layer, each prompt's own head writes what is given: `z_BQE` instead of the outputs of head `head_B`."""

    layer: int = 0
    head_B: Sequence[int] = ()
    z_BQE: Tensor | None = None

    def __call__(
        self, layer: int, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> tuple[Tensor, dict[LayerRead, Any]]:
        """The outputs of a layer."""
        z_BHQE, values = super().__call__(layer, q_BHQE, k_BGKE, v_BGKE, mask, scaling, softcap, window)
        if layer == self.layer and self.z_BQE is not None:
            z_BHQE = z_BHQE.clone()
            z_BHQE[torch.arange(len(self.head_B)), list(self.head_B)] = self.z_BQE
        return z_BHQE, values


def capped(q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask_B1QK: Tensor, scaling: float, softcap: float) -> Tensor:
    """Outputs of attention with capped scores as gradients need them: nothing is changed in place."""
    k_BHKE, v_BHKE = (tensor.repeat_interleave(q_BHQE.shape[1] // tensor.shape[1], dim=1) for tensor in (k_BGKE, v_BGKE))
    score_BHQK = softcap * torch.tanh((q_BHQE @ k_BHKE.mT).float() * scaling / softcap)
    p_BHQK = score_BHQK.masked_fill(~mask_B1QK, torch.finfo(torch.float32).min).softmax(-1).masked_fill(~mask_B1QK, 0)
    return p_BHQK.to(v_BHKE.dtype) @ v_BHKE


def shadow_of(model: HFModel, batch: Batch, edit: Calibrate, layers: Sequence[int], *, leaves: bool = False) -> Shadow:
    """A tap that looks beside a plain pass over the batch at what all heads of the layers write under the edit."""
    other = Tap(batch.prompts, (), (edit,), WAY, model=model)
    return Shadow(batch.prompts, (), (), WAY, other=other, wanted=frozenset(layers), leaves=leaves)


@dataclass(frozen=True, eq=False)
class Screened:
    """What one plain pass over a batch and its gradient tell. `first_BLH` is the first-order effect of each head on the loss, in nats, 0 in other layers.

    `sinks_BLH` are the sinks found; a head without one is not changed by calibration at all.
    """

    first_BLH: Float[np.ndarray, "B L H"]
    sinks_BLH: Int[np.ndarray, "B L H"]
    loss_B: Float[np.ndarray, " B"]
    right_B: Bool[np.ndarray, " B"]


def screen(model: HFModel, batch: Batch, edit: Calibrate, layers: Sequence[int]) -> Screened:
    """First-order effect of every head: Σ ∂L/∂z · (z' − z), where L is the loss of the question and z' the head's calibrated output; one backward."""
    ids_BT, how = feed(model, batch.prompts)
    tap = shadow_of(model, batch, edit, layers, leaves=True)
    with torch.enable_grad(), tapped(model, tap) as hf:
        logits_BV = hf(ids_BT, use_cache=False, logits_to_keep=1, **how).logits[:, -1]
        loss_B = batch.loss(logits_BV)
        gradients = torch.autograd.grad(loss_B.sum(), [tap.leaf[layer] for layer in layers])
    assert tap.other is not None
    first_BLH = np.zeros((batch.prompts.count, model.shape.n_layers, model.shape.n_heads))
    for layer, gradient_BHQE in zip(layers, gradients, strict=True):
        change_BHQE = (tap.changed[layer] - tap.plain[layer]).float()
        first_BLH[:, layer] = (gradient_BHQE.float() * change_BHQE).sum((2, 3)).cpu().numpy()
    sinks_BLH = tap.other.memory.found(0, model.shape, batch.prompts.count)
    loss_B = loss_B.detach()
    return Screened(np.where(sinks_BLH > 0, first_BLH, 0), sinks_BLH, loss_B.cpu().numpy().astype(float), batch.right(logits_BV.detach()))


@dataclass(frozen=True, eq=False)
class Prepared:
    """One plain pass over a batch, kept to go on from: the input of every block, and the calibrated outputs [B, H, T, E] of the chosen layers."""

    batch: Batch
    residual_LBTD: Float[Tensor, "L B T D"]
    changed: dict[int, Tensor]
    logits_BV: Float[Tensor, "B V"]


def prepare(model: HFModel, batch: Batch, edit: Calibrate, layers: Sequence[int]) -> Prepared:
    """Run the plain model once, and keep what exact effects of heads of these layers start from."""
    ids_BT, how = feed(model, batch.prompts)
    tap = shadow_of(model, batch, edit, layers)
    with torch.inference_mode(), tapped(model, tap):
        residual_LBTD, logits_BV = residuals(model, ids_BT, **how)
    return Prepared(batch, residual_LBTD, tap.changed, logits_BV)


def calibrated(model: HFModel, ready: Prepared, layer: int, place_R: Sequence[int], head_R: Sequence[int]) -> tuple[Batch, Float[Tensor, "R V"]]:
    """The last row's logits with one head of a layer calibrated, for rows of (question of the batch, head): what a plain pass with that edit gives.

    Only the blocks from that layer on compute.
    """
    rows = ready.batch.of(place_R)
    index_R = torch.tensor(list(place_R), device=model.device)
    ids_RT, how = feed(model, rows.prompts)
    z_RTE = ready.changed[layer][index_R, torch.tensor(list(head_R), device=model.device)]
    tap = Swap(rows.prompts, (), (), WAY, layer=layer, head_B=head_R, z_BQE=z_RTE)
    begin: AbstractContextManager = resumed(model, layer, ready.residual_LBTD[layer, index_R]) if layer else nullcontext()
    with torch.inference_mode(), begin, tapped(model, tap) as hf:
        return rows, hf(ids_RT, use_cache=False, logits_to_keep=1, **how).logits[:, -1]
