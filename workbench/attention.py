"""How do reads and edits get into the model? Through an attention function registered with transformers, and its mask function.

During a pass every attention module carries a `Tap`. transformers calls the registered function, which hands the layer's queries, keys and
values to the tap. The tap makes the edits, lets the chosen implementation compute the outputs and the statistics that the reads want, and returns
both: the outputs go on through the model, the reads' values leave it where attention weights would, in the function's second return value.
Two functions are registered, as two kinds of mask are needed: the reference takes its mask from transformers; the streaming implementations
know which keys a row may see from its position, the window and the padding. An attention name without a mask function gets no mask, without a word.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from importlib import import_module
from operator import or_
from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask, sdpa_mask

from workbench.edits import Edit
from workbench.errors import InputError, unknown
from workbench.kernels import blocked
from workbench.kernels.inputs import Attention, Statistics, Wanted
from workbench.kernels.support import missing_for
from workbench.layer_view import LayerView, Seen
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import LayerRead, QueryKey
from workbench.rows import Rows, between

IMPLEMENTATIONS = {
    "reference": "from the probabilities themselves, one KV head at a time: the definition, for any device, in O(T²) memory",
    "torch": "block by block of rows in plain torch, for any device",
    "triton": "a flash-attention pass with statistics, for CUDA",
}
"""How reads are computed. All but the first take O(T) memory."""

LONG = 2**21
"""Pairs of a row and a key in one head from which on `auto` takes Triton on CUDA; below it, compiling would cost more than it saves."""


def choose(implementation: str, device: torch.device, length: int) -> str:
    """The implementation that a name stands for; `auto` is `triton` for long prompts on CUDA, else `torch`.

    Raises `InputError` for an unknown name, and for `triton` where it cannot run.
    """
    if implementation == "auto":
        return "triton" if device.type == "cuda" and length**2 >= LONG and missing_for(device) is None else "torch"
    if implementation not in IMPLEMENTATIONS:
        raise unknown("implementation", implementation, ["auto", *IMPLEMENTATIONS])
    if implementation == "triton" and (missing := missing_for(device)):
        raise InputError(f"--implementation triton: {missing}; torch and reference run on any device")
    return implementation


@dataclass
class Tap:
    """What one forward pass is to observe and to change.

    `offset` is the position of the first query row, `positions` the rows' positions by name (those of the prompts unless a decoding step
    overrides them). `shared` keeps what depends on prompts and rows alone for the layers of the pass.
    """

    prompts: Prompts
    reads: Sequence[LayerRead]
    edits: Sequence[Edit] = ()
    implementation: str = "reference"
    offset: int = 0
    shared: dict[Any, Rows] = field(default_factory=dict)
    calls: int = 0

    def __call__(
        self, layer: int, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> tuple[Tensor, dict[LayerRead, Any]]:
        """The heads' outputs [B, H, Q, E] of one layer and the values of the reads, after the edits."""
        self.calls += 1
        rows = self._rows(None, k_BGKE.shape[2], window, q_BHQE.device)
        position_BQ = rows.pos_BR.long()
        for edit in self.edits:
            q_BHQE = edit.on_query(q_BHQE, layer, edit.rows(position_BQ, self.prompts.decode_from))
        padded = self.prompts.padding is not None
        attention = Attention(q_BHQE, k_BGKE, v_BGKE, rows.pos_BR, rows.start_B, scaling, softcap, window, padded, rows.memo)
        run = _Reference(mask) if self.implementation == "reference" else _Streaming(self._module())
        z_BHQE, statistics = run.outputs(attention, self._wanted(rows, None))
        for edit in self.edits:
            z_BHQE = edit.on_output(z_BHQE, layer, edit.rows(position_BQ, self.prompts.decode_from), position_BQ)
        values: dict[LayerRead, Any] = {}
        for name in dict.fromkeys(read.rows for read in self.reads):
            reads = [read for read in self.reads if read.rows == name]
            chosen = self._rows(name, attention.keys, window, q_BHQE.device)
            values |= run.observe(attention, statistics if name is None else None, chosen, self._wanted(chosen, name), reads, z_BHQE)
        return z_BHQE, values

    def _module(self) -> ModuleType:
        return blocked if self.implementation == "torch" else import_module("workbench.kernels.streaming")

    def _wanted(self, rows: Rows, name: str | None) -> Wanted:
        """What the reads of a set of rows want."""
        wanted = (read.wanted(rows) for read in self.reads if read.rows == name)
        return Wanted() if self.implementation == "reference" else rows.once("wanted", lambda: reduce(or_, wanted, Wanted()))

    def _rows(self, name: str | None, keys: int, window: int | None, device: torch.device) -> Rows:
        key = name, keys, window
        if key not in self.shared:
            self.shared[key] = self.rows(name, keys, window, device)
        return self.shared[key]

    def rows(self, name: str | None, keys: int, window: int | None, device: torch.device) -> Rows:
        """The rows of a name that this pass runs over."""
        return Rows.of(self.prompts, between(self.prompts.row_positions(name), self.offset, keys), keys, window, device)


@dataclass(frozen=True, eq=False)
class _Streaming:
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
        if not rows.pos_BR.shape[1]:  # a chunk that has none of them, but keys
            reads = [read for read in reads if isinstance(read, QueryKey)]
        if rows.pos_BR is not attention.pos_BR:
            local_BR = rows.pos_BR.long() - attention.span[0]
            q_BHRE, z_BHQE = _at(attention.q_BHRE, local_BR), _at(z_BHQE, local_BR)
            attention = replace(attention, q_BHRE=q_BHRE, pos_BR=rows.pos_BR, memo=rows.memo)
            statistics = self.module.statistics(attention, wanted) if wanted and rows.pos_BR.shape[1] else None
        nothing = Statistics(attention.q_BHRE.new_zeros(attention.q_BHRE.shape[:3], dtype=torch.float32))
        seen = Seen(rows, attention, statistics or nothing, z_BHQE)
        return {read: read.streamed(seen) for read in reads}


@dataclass(frozen=True, eq=False)
class _Reference:
    """Outputs and reads from the probabilities, as eager attention has them, under the mask that transformers makes."""

    mask_B1QK: Tensor | None

    def outputs(self, attention: Attention, wanted: Wanted) -> tuple[Tensor, None]:
        """From PyTorch's fused attention; where that cannot cap scores, from the probabilities of one KV head at a time."""
        if attention.softcap is None:
            q, k, v, mask = attention.q_BHRE, attention.k_BGKE, attention.v_BGKE, self._visible_BQK[:, None]
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scaling, enable_gqa=attention.group > 1).nan_to_num(nan=0.0), None
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
    from torch.nn.attention.bias import causal_lower_right

    queries = attention.q_BHRE.shape[2]
    q, k, v, scale = attention.q_BHRE, attention.k_BGKE, attention.v_BGKE, attention.scaling
    if queries in (1, attention.keys):
        return scaled_dot_product_attention(q, k, v, scale=scale, is_causal=queries > 1, enable_gqa=attention.group > 1)
    k, v = (tensor.repeat_interleave(attention.group, dim=1) for tensor in (k, v))
    return scaled_dot_product_attention(q, k, v, scale=scale, attn_mask=causal_lower_right(queries, attention.keys))


@dataclass(frozen=True, eq=False)
class Observed:
    """What the reads saw in one layer, on its way to the CPU: nothing waits for it before `values` is asked for."""

    reads: Mapping[LayerRead, Any]
    finite_H: Tensor
    ready: Any = None

    @classmethod
    def leaving(cls, values: Mapping[LayerRead, Any], z_BHQE: Tensor) -> "Observed":
        """Start the copies, and note which heads' outputs are finite."""
        finite_H = z_BHQE.isfinite().transpose(0, 1).flatten(1).all(1).to("cpu", non_blocking=True)
        away = {read: each(lambda tensor: tensor.to("cpu", non_blocking=True), value) for read, value in values.items()}
        ready = torch.cuda.Event() if z_BHQE.is_cuda else None
        if ready is not None:
            ready.record()
        return cls(away, finite_H, ready)

    def values(self, place: str, layer: int) -> Mapping[LayerRead, Any]:
        """The values, once they have arrived. Raises `InputError` naming the head if an output was not finite."""
        if self.ready is not None:
            self.ready.synchronize()
        if not self.finite_H.all():
            raise InputError(f"{place}, L{layer}H{int((~self.finite_H).int().argmax())}: its output is not finite; try --dtype float32, or look at the weights")
        return self.reads


def each(change: Any, *values: Any) -> Any:
    """A change of tensors made to values that are tensors, or named tuples of them field by field."""
    return type(values[0])(*map(change, *values)) if isinstance(values[0], tuple) else change(*values)


def _at(tensor_BHQE: Tensor, row_BR: Tensor) -> Tensor:
    """Chosen query rows of each prompt."""
    return tensor_BHQE.gather(2, row_BR[:, None, :, None].expand(-1, tensor_BHQE.shape[1], -1, tensor_BHQE.shape[3]))


@contextmanager
def tapped(model: HFModel, tap: Tap) -> Generator[Any, None, None]:
    """The model's module with `tap` in every attention layer; restored to what it was, whatever happens."""
    with model.attention(REFERENCE if tap.implementation == "reference" else STREAMING) as hf:
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
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, "Observed"]:
    """transformers' attention interface: outputs [B, Q, H, E], and what the reads saw in place of the weights."""
    if scaling is None or not scaling > 0:
        raise RuntimeError(f"the model scales its attention scores by {scaling}, which the workbench does not know")
    if s_aux is not None:
        raise InputError("attention with learned sink logits is not supported: its rows do not sum to 1")
    layer, tap = module.workbench_tap
    z_BHQE, values = tap(layer, query, key, value, attention_mask, scaling, softcap, sliding_window)
    return rearrange(z_BHQE, "b h q e -> b q h e").contiguous(), Observed.leaving(values, z_BHQE)


def _visible(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask interface: True where a query may see a key, [B, 1, Q, K]; never left out for a causal model."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


REFERENCE, STREAMING = "workbench_reference", "workbench_streaming"
AttentionInterface.register(REFERENCE, _attention)
AttentionInterface.register(STREAMING, _attention)
AttentionMaskInterface.register(REFERENCE, _visible)
AttentionMaskInterface.register(STREAMING, flash_attention_mask)
