"""How does a head run between full and streaming attention? A mixture of both, through a function registered with transformers.

A gate α in 0–1 mixes two answers of a head: α · attention to all keys + (1 − α) · attention to the first `sinks` keys and the last `window`, the row's
own among them. Layers that have a window of their own keep it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from workbench.errors import InputError
from workbench.models import HFModel


@dataclass(eq=False)
class Mixture:
    """What the attention modules carry during a pass: the gates (None: the full model), and how much a streaming head sees.

    `masks` are kept for the layers of the pass.
    """

    alpha_LG: Tensor | None
    sinks: int
    window: int
    masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, scaling: float, softcap: float | None, own: int | None) -> Tensor:
        """The heads' outputs [B, H, Q, E] in one layer; `own` is the window that the layer has itself."""
        if own is not None:
            return self._streaming(q_BHQE, k_BGKE, v_BGKE, scaling, softcap, 0, own)
        full_BHQE = attend(q_BHQE, k_BGKE, v_BGKE, None, scaling, softcap)
        if self.alpha_LG is None:
            return full_BHQE
        alpha_H11 = self.alpha_LG[layer].repeat_interleave(q_BHQE.shape[1] // k_BGKE.shape[1])[:, None, None].to(full_BHQE.dtype)
        streaming_BHQE = self._streaming(q_BHQE, k_BGKE, v_BGKE, scaling, softcap, self.sinks, self.window)
        return alpha_H11 * full_BHQE + (1 - alpha_H11) * streaming_BHQE

    def _streaming(self, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, scaling: float, softcap: float | None, sinks: int, window: int) -> Tensor:
        """Attention to sinks and window, block of rows by block of rows: the keys of a block are the sinks, the block before, and itself."""
        groups, length = k_BGKE.shape[1], q_BHQE.shape[2]
        size = min(window, length)
        q, k, v = (pad(x, (0, 0, 0, -length % size)) for x in (q_BHQE, k_BGKE, v_BGKE))
        blocks = q.shape[2] // size
        q = rearrange(q, "b (g h) (n q) e -> (b n) g (h q) e", g=groups, n=blocks)
        visible = self._visible(blocks, sinks, size, q.device)[:, None].repeat(q_BHQE.shape[0], 1, q_BHQE.shape[1] // groups, 1)
        z = attend(q, _keys(k, blocks, sinks), _keys(v, blocks, sinks), visible, scaling, softcap)
        return rearrange(z, "(b n) g (h q) e -> b (g h) (n q) e", n=blocks, q=size)[:, :, :length]

    def _visible(self, blocks: int, sinks: int, window: int, device: torch.device) -> Bool[Tensor, "N Q K"]:
        """Which keys each row of a block sees; a sink is counted once, as a sink."""
        if (blocks, sinks, window) not in self.masks:
            first_N = torch.arange(blocks, device=device) * window
            row_NQ1 = (first_N[:, None] + torch.arange(window, device=device))[:, :, None]
            recent_N1K = (first_N[:, None] - window + torch.arange(2 * window, device=device))[:, None]
            near = (recent_N1K <= row_NQ1) & (recent_N1K > row_NQ1 - window) & (recent_N1K >= sinks)
            self.masks[blocks, sinks, window] = torch.cat([torch.arange(sinks, device=device) <= row_NQ1, near], dim=2)
        return self.masks[blocks, sinks, window]


def _keys(x_BGKE: Tensor, blocks: int, sinks: int) -> Tensor:
    """The keys (or values) of each block of rows: the sinks, the block before, its own."""
    own = rearrange(x_BGKE, "b g (n k) e -> b n g k e", n=blocks)
    before = pad(own, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
    sink = pad(x_BGKE[:, :, :sinks], (0, 0, 0, max(sinks - x_BGKE.shape[2], 0)))[:, None].expand(-1, blocks, -1, -1, -1)
    return torch.cat([sink, before, own], dim=3).flatten(0, 1)


def attend(q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, visible: Tensor | None, scaling: float, softcap: float | None) -> Tensor:
    """Attention to the visible keys, by default all up to the row's own. Rows that see nothing (padding of the last block) give what nobody reads."""
    group = q_BHQE.shape[1] // k_BGKE.shape[1]
    k, v = (x if group == 1 else x.repeat_interleave(group, dim=1) for x in (k_BGKE, v_BGKE))
    if softcap is None:
        return scaled_dot_product_attention(q_BHQE, k, v, attn_mask=visible, is_causal=visible is None, scale=scaling)
    if visible is None:
        visible = torch.ones(q_BHQE.shape[2], k.shape[2], dtype=torch.bool, device=k.device).tril()
    score = softcap * (q_BHQE @ k.transpose(2, 3) * scaling / softcap).tanh()
    return score.masked_fill(~visible, torch.finfo(score.dtype).min).softmax(-1, dtype=torch.float32).to(v.dtype) @ v


@contextmanager
def gated(model: HFModel, mixture: Mixture) -> Generator[Any, None, None]:
    """The model's module with its attention mixed by gates; restored to what it was, whatever happens."""
    with model.attention(GATED) as hf:
        try:
            for layer, module in enumerate(model.weights.attentions):
                module.workbench_gate = (layer, mixture)
            yield hf
        finally:
            for module in model.weights.attentions:
                module.__dict__.pop("workbench_gate", None)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: outputs [B, Q, H, E]; no weights. A key's index is its position: prompts have no padding here."""
    if scaling is None or not scaling > 0 or s_aux is not None:
        raise InputError("attention with learned sink logits, or with scores scaled in a way that the workbench does not know, has no gates")
    layer, mixture = module.workbench_gate
    z_BHQE = mixture(layer, query, key, value, scaling, softcap, sliding_window)
    return rearrange(z_BHQE, "b h q e -> b q h e").contiguous(), None


GATED = "workbench_gated"
AttentionInterface.register(GATED, _attention)
AttentionMaskInterface.register(GATED, flash_attention_mask)
