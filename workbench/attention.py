"""How do reads and edits get into the model? Through an attention function registered with transformers, and its mask function.

During a pass every attention module carries a `Tap`. transformers calls the registered function, which hands the layer's queries,
keys and values to the tap; the tap computes the reads from them, reduced at once, and returns the heads' outputs with the edits made.
It never holds more than the probabilities of one KV head's query heads in one layer. Both registrations are needed: an attention
name without a mask function gets no mask at all, without a word.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from workbench.edits import Edit
from workbench.errors import InputError
from workbench.layer_view import LayerView
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import LayerRead

NAME = "workbench_reference"


@dataclass
class Tap:
    """What one forward pass is to observe and to change, and what it has observed so far.

    `offset` is the position of the first query row, `rows` the query positions by name (those of the prompts unless a decoding
    step overrides them). `seen[read][layer]` holds one entry per KV head.
    """

    prompts: Prompts
    reads: Sequence[LayerRead]
    edits: Sequence[Edit] = ()
    offset: int = 0
    rows: Mapping[str | None, Tensor] = field(default_factory=dict)
    seen: dict[LayerRead, dict[int, list]] = field(default_factory=dict)
    memos: dict[str | None, dict[Any, Tensor]] = field(default_factory=dict)
    calls: int = 0
    name: str = "the model"

    def __call__(self, layer: int, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, visible_BQK: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """The heads' outputs [B, H, Q, E] of one layer, after the edits; the reads are added to `seen`."""
        self.calls += 1
        group = q_BHQE.shape[1] // k_BGKE.shape[1]
        position_BQ = torch.arange(q_BHQE.shape[2], device=q_BHQE.device).expand(len(q_BHQE), -1) + self.offset
        attend = _Attend(layer, group, k_BGKE, visible_BQK, scaling, softcap, self.edits, position_BQ, self.prompts.decode_from)
        z_BHQE = attend.fused(q_BHQE, v_BGKE) if self._fused_will_do(layer, softcap) else attend.materialised(q_BHQE, v_BGKE)
        for edit in self.edits:
            z_BHQE = edit.on_output(z_BHQE, layer, edit.rows(position_BQ, self.prompts.decode_from), position_BQ)
        finite_H = z_BHQE.isfinite().transpose(0, 1).flatten(1).all(1)
        if not finite_H.all():
            raise InputError(f"{self.name}, L{layer}H{int((~finite_H).int().argmax())}: its output is not finite; try --dtype float32, or look at the weights")
        for rows in dict.fromkeys(read.rows for read in self.reads):
            wanted = [read for read in self.reads if read.rows == rows]
            self._observe(layer, attend, wanted, self._positions(rows, q_BHQE.device), q_BHQE, v_BGKE, z_BHQE)
        return z_BHQE

    def _fused_will_do(self, layer: int, softcap: float | None) -> bool:
        """Whether PyTorch's fused attention gives the outputs: it cannot cap logits, nor show or change probabilities."""
        return softcap is None and not any(edit.kind == "uniform" and edit.of_layer(layer) for edit in self.edits)

    def _positions(self, rows: str | None, device: torch.device) -> Tensor:
        return self.rows[rows] if rows in self.rows else torch.tensor(self.prompts.row_positions(rows), device=device)

    def _observe(self, layer: int, attend: "_Attend", reads: list[LayerRead], row_BR: Tensor, q_BHQE: Tensor, v_BGKE: Tensor, z_BHQE: Tensor) -> None:
        local_BR = row_BR - self.offset
        for kv_head in range(v_BGKE.shape[1]):
            heads = slice(kv_head * attend.group, (kv_head + 1) * attend.group)
            q_BHRE, z_BHRE = (_at(tensor[:, heads], local_BR) for tensor in (q_BHQE, z_BHQE))
            visible_BRK = attend.visible_BQK.gather(1, local_BR[:, :, None].expand(-1, -1, attend.visible_BQK.shape[2]))
            pattern_BHRK = attend.pattern(q_BHRE, kv_head, visible_BRK, row_BR)
            key_value = attend.k_BGKE[:, kv_head], v_BGKE[:, kv_head]
            view = LayerView(self.prompts, row_BR, pattern_BHRK, visible_BRK, q_BHRE, *key_value, z_BHRE, self.memos.setdefault(reads[0].rows, {}))
            for read in reads:
                self.seen.setdefault(read, {}).setdefault(layer, []).append(read.reference(view))
            del view, pattern_BHRK  # before the next one is made


@dataclass
class _Attend:
    """Attention of one layer: exact probabilities for chosen rows of one KV head, or outputs for all."""

    layer: int
    group: int
    k_BGKE: Tensor
    visible_BQK: Tensor
    scaling: float
    softcap: float | None
    edits: Sequence[Edit]
    position_BQ: Tensor
    decode_from: int

    def pattern(self, q_BHRE: Tensor, kv_head: int, visible_BRK: Tensor, row_BR: Tensor) -> Tensor:
        """Probabilities [B, H, R, K] in float32, after the edits: softmax of scaled, capped, masked logits, as eager attention has them."""
        logit_BHRK = (q_BHRE @ self.k_BGKE[:, kv_head, None].transpose(-1, -2) * self.scaling).float()
        if self.softcap is not None:
            logit_BHRK = (logit_BHRK / self.softcap).tanh_().mul_(self.softcap)
        pattern_BHRK = logit_BHRK.masked_fill_(~visible_BRK[:, None], -torch.inf).softmax(-1)
        heads = range(kv_head * self.group, (kv_head + 1) * self.group)
        for edit in self.edits:
            pattern_BHRK = edit.on_pattern(pattern_BHRK, heads, self.layer, edit.rows(row_BR, self.decode_from), visible_BRK)
        return pattern_BHRK

    def materialised(self, q_BHQE: Tensor, v_BGKE: Tensor) -> Tensor:
        """Outputs [B, H, Q, E] from the probabilities, one KV head at a time."""
        parts = []
        for kv_head, q_part in enumerate(q_BHQE.split(self.group, dim=1)):
            parts.append(self.pattern(q_part, kv_head, self.visible_BQK, self.position_BQ).to(v_BGKE.dtype) @ v_BGKE[:, kv_head, None])
        return torch.cat(parts, dim=1)

    def fused(self, q_BHQE: Tensor, v_BGKE: Tensor) -> Tensor:
        """The same outputs from PyTorch's fused attention, which shows no probabilities."""
        return scaled_dot_product_attention(q_BHQE, self.k_BGKE, v_BGKE, attn_mask=self.visible_BQK[:, None], scale=self.scaling, enable_gqa=self.group > 1)


def _at(tensor_BHQE: Tensor, row_BR: Tensor) -> Tensor:
    """Chosen query rows of each prompt."""
    return tensor_BHQE.gather(2, row_BR[:, None, :, None].expand(-1, tensor_BHQE.shape[1], -1, tensor_BHQE.shape[3]))


@contextmanager
def tapped(model: HFModel, tap: Tap) -> Generator[Any, None, None]:
    """The model's module with `tap` in every attention layer; restored to what it was, whatever happens."""
    with model.attention(NAME) as hf:
        try:
            for layer, module in enumerate(model.weights.attentions):
                module.workbench_tap = (layer, tap)
            yield hf
        finally:
            for module in model.weights.attentions:
                module.__dict__.pop("workbench_tap", None)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: outputs [B, Q, H, E], and no weights."""
    if attention_mask is None or scaling is None:
        raise RuntimeError("the model gave its attention no mask or no scale: the workbench's mask function was not used")
    if s_aux is not None:
        raise InputError("attention with learned sink logits is not supported: its rows do not sum to 1")
    layer, tap = module.workbench_tap
    z_BHQE = tap(layer, query, key, value, attention_mask[:, 0], scaling, softcap)
    return rearrange(z_BHQE, "b h q e -> b q h e").contiguous(), None


def _visible(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask interface: True where a query may see a key, [B, 1, Q, K]; never left out for a causal model."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _visible)
