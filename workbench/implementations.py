"""Who computes a layer's outputs and reads? Implementations behind two calls: `outputs` of all rows, and `observe` for each set of rows.

`Reference` holds the probabilities of one KV head's query heads at a time, and defines what is right. `Streaming` never holds them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from workbench.errors import InputError, unknown
from workbench.kernels.inputs import Attention, Statistics, Wanted
from workbench.kernels.support import HEAD_SIZES, missing_for
from workbench.layer_view import LayerView, Seen
from workbench.reads import LayerRead, QueryKey, Received
from workbench.rows import Rows

IMPLEMENTATIONS = {
    "reference": "from the probabilities themselves, one KV head at a time: the definition, for any device, in O(T²) memory",
    "torch": "block by block of rows in plain torch, for any device",
    "triton": "a flash-attention pass with statistics, for CUDA",
}
"""How reads are computed. All but the first take O(T) memory."""

LONG = 2**21
"""Pairs of a row and a key in one head from which on `auto` takes Triton on CUDA; below it, compiling would cost more than it saves."""


def choose(implementation: str, device: torch.device, length: int, head_size: int = 64) -> str:
    """The implementation that a name stands for; `auto` is `triton` for long prompts on CUDA, else `torch`.

    Raises `InputError` for an unknown name, and for `triton` where it cannot run.
    """
    if implementation == "auto":
        worth = device.type == "cuda" and length**2 >= LONG and head_size in HEAD_SIZES
        return "triton" if worth and missing_for(device) is None else "torch"
    if implementation not in IMPLEMENTATIONS:
        raise unknown("implementation", implementation, ["auto", *IMPLEMENTATIONS])
    if implementation == "triton" and (missing := missing_for(device)):
        raise InputError(f"--implementation triton: {missing}; torch and reference run on any device")
    return implementation


@dataclass(frozen=True, eq=False)
class Streaming:
    """Outputs and reads by an implementation that never holds the pattern."""

    module: ModuleType

    def outputs(self, attention: Attention, wanted: Wanted) -> tuple[Tensor, Statistics | None]:
        """With the outputs, the statistics of all rows if any are wanted."""
        if not wanted and attention.softcap is None and attention.window is None and not attention.padded:
            return _plain(attention), None
        statistics = self.module.statistics(attention, wanted | Wanted(output=True))
        assert statistics.z_BHRE is not None
        return statistics.z_BHRE, statistics

    def observe(
        self, attention: Attention, statistics: Statistics | None, rows: Rows, wanted: Wanted, reads: list[LayerRead], z_BHQE: Tensor
    ) -> dict[LayerRead, Any]:
        """The reads of one set of rows; if it is not all of them, their statistics are computed here."""
        complete = attention.q_BHRE.shape[2] == rows.prompts.length  # else they are parts, which `passes` joins
        if not rows.pos_BR.shape[1]:  # a chunk that has none of them, but keys
            reads = [read for read in reads if isinstance(read, QueryKey)]
        if rows.pos_BR is not attention.pos_BR:
            local_BR = rows.pos_BR.long() - attention.span[0]
            q_BHRE, z_BHQE = _at(attention.q_BHRE, local_BR), _at(z_BHQE, local_BR)
            attention = replace(attention, q_BHRE=q_BHRE, pos_BR=rows.pos_BR, memo=rows.memo)
            statistics = self.module.statistics(attention, wanted) if wanted and rows.pos_BR.shape[1] else None
        nothing = Statistics(attention.q_BHRE.new_zeros(attention.q_BHRE.shape[:3], dtype=torch.float32))
        seen = Seen(rows, attention, statistics or nothing, z_BHQE)
        values = {read: read.streamed(seen) for read in reads}
        return {
            read: read.finished(value, rows) if complete and isinstance(read, Received) and isinstance(value, Tensor) else value
            for read, value in values.items()
        }


@dataclass(frozen=True, eq=False)
class Reference:
    """Outputs and reads from the probabilities, as eager attention has them, under the mask that transformers makes."""

    mask_B1QK: Tensor | None

    def outputs(self, attention: Attention, wanted: Wanted) -> tuple[Tensor, None]:
        """From PyTorch's fused attention; where that cannot cap scores, from the probabilities of one KV head at a time."""
        if attention.softcap is None:
            q, k, v, mask = attention.q_BHRE, attention.k_BGKE, attention.v_BGKE, self._visible_BQK[:, None]
            z_BHQE = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scaling, enable_gqa=attention.group > 1)
            return z_BHQE.masked_fill(~mask.any(-1, keepdim=True), 0), None
        parts = []
        for kv_head, q_part in enumerate(attention.q_BHRE.split(attention.group, dim=1)):
            pattern, _ = self._pattern(attention, q_part, kv_head, self._visible_BQK)
            parts.append(pattern.to(attention.v_BGKE.dtype) @ attention.v_BGKE[:, kv_head, None])
        return torch.cat(parts, dim=1), None

    def observe(
        self, attention: Attention, statistics: Statistics | None, rows: Rows, wanted: Wanted, reads: list[LayerRead], z_BHQE: Tensor
    ) -> dict[LayerRead, Any]:
        """The reads by definition, one KV head at a time."""
        local_BR = rows.pos_BR.long() - attention.span[0]
        visible_BRK = self._visible_BQK.gather(1, local_BR[:, :, None].expand(-1, -1, attention.keys))
        parts: dict[LayerRead, list] = {read: [] for read in reads}
        for kv_head in range(attention.k_BGKE.shape[1]):
            heads, kv = slice(kv_head * attention.group, (kv_head + 1) * attention.group), slice(kv_head, kv_head + 1)
            q_BHRE, z_BHRE = (_at(tensor[:, heads], local_BR) for tensor in (attention.q_BHRE, z_BHQE))
            pattern_BHRK, lse_BHR = self._pattern(attention, q_BHRE, kv_head, visible_BRK)
            view = LayerView(rows, pattern_BHRK, q_BHRE, attention.k_BGKE[:, kv], attention.v_BGKE[:, kv], z_BHRE, lse_BHR)
            for read in reads:
                parts[read].append(read.reference(view))
            del view, pattern_BHRK  # before the next one is made
        return {read: each(lambda *tensors: torch.cat(tensors, dim=1), *values) for read, values in parts.items()}

    @property
    def _visible_BQK(self) -> Tensor:
        if self.mask_B1QK is None:
            raise RuntimeError("the model gave its attention no mask: the workbench's mask function was not used")
        return self.mask_B1QK[:, 0]

    @staticmethod
    def _pattern(attention: Attention, q_BHRE: Tensor, kv_head: int, visible_BRK: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [B, H, R, K] in float32, softmax of scaled, capped, masked scores, and the log-sum-exp; 0 and +inf for rows that see nothing."""
        logit_BHRK = (q_BHRE @ attention.k_BGKE[:, kv_head, None].transpose(-1, -2) * attention.scaling).float()
        if attention.softcap is not None:
            logit_BHRK = (logit_BHRK / attention.softcap).tanh_().mul_(attention.softcap)
        logit_BHRK = logit_BHRK.masked_fill_(~visible_BRK[:, None], -torch.inf)
        lse_BHR = logit_BHRK.logsumexp(-1)
        return logit_BHRK.softmax(-1).nan_to_num_(nan=0.0), lse_BHR.masked_fill_(lse_BHR == -torch.inf, torch.inf)


def _plain(attention: Attention) -> Tensor:
    """The outputs from PyTorch's fused attention, for plain causal layers: its causal mask begins at the first key, a later chunk's at the last."""
    queries = attention.q_BHRE.shape[2]
    q, k, v, scale = attention.q_BHRE, attention.k_BGKE, attention.v_BGKE, attention.scaling
    if queries in (1, attention.keys):
        return scaled_dot_product_attention(q, k, v, scale=scale, is_causal=queries > 1, enable_gqa=attention.group > 1)
    k, v = (tensor.repeat_interleave(attention.group, dim=1) for tensor in (k, v))
    return scaled_dot_product_attention(q, k, v, scale=scale, attn_mask=causal_lower_right(queries, attention.keys))


def each(change: Callable, *values: Any) -> Any:
    """A change of tensors made to values that are tensors, or named tuples of them field by field."""
    return type(values[0])(*map(change, *values)) if isinstance(values[0], tuple) else change(*values)


def _at(tensor_BHQE: Tensor, row_BR: Tensor) -> Tensor:
    """Chosen query rows of each prompt."""
    return tensor_BHQE.gather(2, row_BR[:, None, :, None].expand(-1, tensor_BHQE.shape[1], -1, tensor_BHQE.shape[3]))
