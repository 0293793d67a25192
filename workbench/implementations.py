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
from workbench.layer_view import LayerView, Seen
from workbench.ops import changed
from workbench.ops.changed import Change, Step
from workbench.ops.inputs import Attention, Statistics, Wanted
from workbench.ops.support import HEAD_SIZES, missing_for
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
    """Outputs and reads by an implementation that never holds the pattern. Heads that `change` concerns are computed from strips of it, or corrected."""

    module: ModuleType
    change: Change | None = None

    def outputs(self, attention: Attention, wanted: Wanted) -> tuple[Tensor, Statistics | None]:
        """With the outputs, the statistics of all rows if any are wanted."""
        if self.change is None:
            return self._unchanged(attention, wanted)
        heads = self.change.heads
        part, steps = self.change.steps(attention, heads)
        if len(heads) == attention.q_BHRE.shape[1]:
            z_BHRE = changed.outputs(part, steps, self.module)
            return z_BHRE, self._reduced(attention, wanted) if wanted else None
        z_BHRE, statistics = self._unchanged(attention, wanted)
        z_BHRE = z_BHRE.clone()
        z_BHRE[:, list(heads)] = changed.outputs(part, steps, self.module)
        return z_BHRE, changed.merged(statistics, self._reduced(attention, wanted), heads) if statistics is not None and wanted else None

    def _reduced(self, attention: Attention, wanted: Wanted) -> Statistics:
        """The statistics of the heads that are changed, at all rows of the pass or at chosen ones."""
        assert self.change is not None
        whole, steps = self.change.opened[self.change.heads]
        part = self.change.of(attention)
        return changed.reduced(part, changed.strips_at(whole, part, steps), wanted)

    def _unchanged(self, attention: Attention, wanted: Wanted) -> tuple[Tensor, Statistics | None]:
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
            statistics = self._statistics(attention, wanted) if wanted and rows.pos_BR.shape[1] else None
        nothing = Statistics(attention.q_BHRE.new_zeros(attention.q_BHRE.shape[:3], dtype=torch.float32))
        seen = Seen(rows, attention, statistics or nothing, z_BHQE, self.change)
        values = {read: read.streamed(seen) for read in reads}
        return {
            read: read.finished(value, rows) if complete and isinstance(read, Received) and isinstance(value, Tensor) else value
            for read, value in values.items()
        }

    def _statistics(self, attention: Attention, wanted: Wanted) -> Statistics:
        """The statistics of chosen rows."""
        if self.change is None:
            return self.module.statistics(attention, wanted)
        if len(self.change.heads) == attention.q_BHRE.shape[1]:
            return self._reduced(attention, wanted)
        return changed.merged(self.module.statistics(attention, wanted), self._reduced(attention, wanted), self.change.heads)


@dataclass(frozen=True, eq=False)
class Reference:
    """Outputs and reads from the probabilities, as eager attention has them, under the mask that transformers makes, and as `change` edits them."""

    mask_B1QK: Tensor | None
    change: Change | None = None

    def outputs(self, attention: Attention, wanted: Wanted) -> tuple[Tensor, None]:
        """From PyTorch's fused attention, or, of heads that are changed, from their probabilities, one KV head at a time."""
        z_BHQE = self._unchanged(attention)
        for kv_head in range(attention.k_BGKE.shape[1] if self.change is not None else 0):
            if heads := self._heads(attention, kv_head):
                part, steps = self._steps(attention, heads)
                p_BHQK, _ = self._edited(part, steps)
                z_BHQE[:, list(heads)] = p_BHQK.to(part.v_BGKE.dtype) @ part.v_BGKE
                for step in steps:
                    step.commit()
        return z_BHQE, None

    def _heads(self, attention: Attention, kv_head: int) -> tuple[int, ...]:
        """The query heads of a KV head that are changed."""
        return () if self.change is None else tuple(head for head in self.change.heads if head // attention.group == kv_head)

    def _steps(self, attention: Attention, heads: tuple[int, ...]) -> tuple[Attention, list[Step]]:
        """Some query heads of one KV head, and what is done to them."""
        assert self.change is not None
        part, steps = self.change.steps(attention, heads)
        kv_head = heads[0] // attention.group
        one = slice(kv_head, kv_head + 1)
        return replace(part, k_BGKE=attention.k_BGKE[:, one], v_BGKE=attention.v_BGKE[:, one]), steps

    def _edited(self, part: Attention, steps: list[Step]) -> tuple[Tensor, Tensor]:
        """Probabilities [B, H, Q, K] and log-sum-exp of all rows of some heads of one KV head, edit after edit."""
        every = slice(0, part.q_BHRE.shape[2])
        s_BHQK = self._scores(part, part.q_BHRE, 0, self._visible_BQK)
        for step in steps:
            s_BHQK = step.on_scores(s_BHQK, part, every)
        p_BHQK, lse_BHQ = self._softmax(s_BHQK)
        for step in steps:
            if step.sum_rows:
                step.fit(p_BHQK[:, step.places, : step.sum_rows].sum(2))
            step.begin()
            p_BHQK = step.on_pattern(p_BHQK, part.pos_BR)
        return p_BHQK, lse_BHQ

    def _unchanged(self, attention: Attention) -> Tensor:
        """From PyTorch's fused attention; where that cannot cap scores, from the probabilities of one KV head at a time."""
        if attention.softcap is None:
            q, k, v, mask = attention.q_BHRE, attention.k_BGKE, attention.v_BGKE, self._visible_BQK[:, None]
            z_BHQE = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scaling, enable_gqa=attention.group > 1)
            return z_BHQE.masked_fill(~mask.any(-1, keepdim=True), 0)
        parts = []
        for kv_head, q_part in enumerate(attention.q_BHRE.split(attention.group, dim=1)):
            pattern, _ = self._pattern(attention, q_part, kv_head, self._visible_BQK)
            parts.append(pattern.to(attention.v_BGKE.dtype) @ attention.v_BGKE[:, kv_head, None])
        return torch.cat(parts, dim=1)

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
            if changing := self._heads(attention, kv_head):
                places = [head - heads.start for head in changing]
                for whole, edited in zip((pattern_BHRK, lse_BHR), self._edited(*self._steps(attention, changing)), strict=True):
                    whole[:, places] = _at(edited.unflatten(-1, (-1, 1)) if edited.dim() == 3 else edited, local_BR).view(whole[:, places].shape)
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
        return Reference._softmax(Reference._scores(attention, q_BHRE, kv_head, visible_BRK))

    @staticmethod
    def _scores(attention: Attention, q_BHRE: Tensor, kv_head: int, visible_BRK: Tensor) -> Tensor:
        """Scaled, capped scores in float32, −inf where a row may not see a key."""
        logit_BHRK = (q_BHRE @ attention.k_BGKE[:, kv_head, None].transpose(-1, -2) * attention.scaling).float()
        if attention.softcap is not None:
            logit_BHRK = (logit_BHRK / attention.softcap).tanh_().mul_(attention.softcap)
        return logit_BHRK.masked_fill_(~visible_BRK[:, None], -torch.inf)

    @staticmethod
    def _softmax(logit_BHRK: Tensor) -> tuple[Tensor, Tensor]:
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
