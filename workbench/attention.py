"""How do reads and edits get into the model? Through an attention function registered with transformers, and its mask function.

During a pass every attention module carries a `Tap`. transformers calls the registered function, which hands the layer's queries, keys and
values to the tap. The tap makes the edits, lets the chosen implementation compute the outputs and the statistics that the reads want, and returns
both: the outputs go on through the model, the reads' values leave it where attention weights would, in the function's second return value.
Two functions are registered, as two kinds of mask are needed: the reference takes its mask from transformers; the streaming implementations
know which keys a row may see from its position, the window and the padding. An attention name without a mask function gets no mask, without a word.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from importlib import import_module
from operator import or_
from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask, sdpa_mask

from workbench.edits import Edit, Memory, Scene
from workbench.errors import InputError
from workbench.implementations import Reference, Streaming, each
from workbench.models import HFModel
from workbench.ops import blocked
from workbench.ops.changed import Change, Step
from workbench.ops.inputs import Attention, Wanted
from workbench.prompts import Prompts
from workbench.reads import LayerRead
from workbench.rows import Rows, between
from workbench.sharding import Shards
from workbench.weights import FAMILIES


@dataclass
class Tap:
    """What one forward pass is to observe and to change.

    `offset` is the position of the first query row; reads are made in the `layers`. `shared` keeps what depends on prompts and
    rows alone for the layers of the pass; `sheets` are the results [L, ...] on the CPU, which the layers fill in
    as the device gets there, and `kinds` the named tuples that some of them make up. `memory` is what edits carry from one pass over the prompts to
    the next; `tapped` sets the `model`, and `residual` to the input of the present layer if an edit looks at it. With `shards` the model has some of the
    heads, which edits and reads here are about, and the values that leave are those of all.
    """

    prompts: Prompts
    reads: Sequence[LayerRead]
    edits: Sequence[Edit] = ()
    implementation: str = "reference"
    offset: int = 0
    layers: Sequence[int] = ()
    sheets: dict[tuple[LayerRead, int], Tensor] = field(default_factory=dict)
    kinds: dict[LayerRead, type | None] = field(default_factory=dict)
    shared: dict[Any, Rows] = field(default_factory=dict)
    calls: int = 0
    memory: Memory = field(default_factory=Memory)
    model: HFModel | None = None
    residual: Tensor | None = None
    shards: Shards | None = None

    def __call__(
        self, layer: int, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> tuple[Tensor, dict[LayerRead, Any]]:
        """The heads' outputs [B, H, Q, E] of one layer and the values of the reads, after the edits."""
        self.calls += 1
        rows = self._rows(None, k_BGKE.shape[2], window, q_BHQE.device)
        position_BQ = rows.pos_BR.long() if self.edits else rows.pos_BR
        for edit in self.edits:
            q_BHQE = edit.on_query(q_BHQE, layer, edit.rows(position_BQ, self.prompts.decode_from))
        padded = self.prompts.padding is not None
        attention = Attention(q_BHQE, k_BGKE, v_BGKE, rows.pos_BR, rows.start_B, scaling, softcap, window, padded, rows.memo)
        change = self._change(layer)
        run = Reference(mask, change) if self.implementation == "reference" else Streaming(self._module(), change)
        every = self.reads if layer in self.layers else ()
        z_BHQE, statistics = run.outputs(attention, self._wanted(rows, None) if every else Wanted())
        for edit in self.edits:
            z_BHQE = edit.on_output(z_BHQE, layer, edit.rows(position_BQ, self.prompts.decode_from), position_BQ)
        values: dict[LayerRead, Any] = {}
        for name in dict.fromkeys(read.rows for read in every):
            reads = [read for read in every if read.rows == name]
            chosen = self._rows(name, attention.keys, window, q_BHQE.device)
            values |= run.observe(attention, statistics if name is None else None, chosen, self._wanted(chosen, name), reads, z_BHQE)
        return z_BHQE, values

    def see_residual(self, _block: Any, args: tuple, given: dict[str, Any]) -> None:
        """Note the input of the block that is about to run: a hook on it."""
        self.residual = args[0] if args else given["hidden_states"]

    def _change(self, layer: int) -> Change | None:
        """What the edits do to where the rows of a layer look; None if nothing."""
        if self.model is None or not self.edits:
            return None
        model, residual = self.model, self.residual
        looking = [(number, edit, edit.looking(layer, model.shape)) for number, edit in enumerate(self.edits)]

        def opened(heads: tuple[int, ...], attention: Attention) -> list[Step]:
            steps, here = [], None if residual is None else residual.to(attention.q_BHRE.device)  # the block before may be on another device
            for number, edit, mine in looking:
                if set(mine) & set(heads):
                    state = self.memory.states.setdefault((number, layer, heads), {})
                    steps.append(edit.opened(Scene(layer, heads, attention, self.prompts, model, here, state)))
            return steps

        heads = tuple(sorted({head for *_, mine in looking for head in mine}))
        return Change(heads, opened) if heads else None

    def of_all(self, value: Any, dim: int = 1) -> Any:
        """A value of the heads that are here as that of all heads; the ranks' parts come together on the device."""
        return value if self.shards is None else each(partial(self.shards.gathered, dim=dim), value)

    def put(self, layer: int, read: LayerRead, value: Any) -> Any:
        """Start the copy of a layer's value to its place on a sheet, and return that. Whoever reads it waits for the device first."""
        parts = value if isinstance(value, tuple) else (value,)
        self.kinds[read] = type(value) if isinstance(value, tuple) else None
        for number, tensor in enumerate(parts):
            if (read, number) not in self.sheets:
                size = len(self.layers), *tensor.shape
                self.sheets[read, number] = torch.empty(size, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        row = self.layers.index(layer)
        places = [self.sheets[read, number][row].copy_(tensor, non_blocking=tensor.is_cuda) for number, tensor in enumerate(parts)]
        return type(value)(*places) if isinstance(value, tuple) else places[0]

    def _module(self) -> ModuleType:
        return blocked if self.implementation == "torch" else import_module("workbench.ops.streaming")

    def _wanted(self, rows: Rows, name: str | None) -> Wanted:
        """What the reads of a set of rows want."""
        wanted = (read.wanted(rows) for read in self.reads if read.rows == name)
        return Wanted() if self.implementation == "reference" else rows.once("wanted", lambda: reduce(or_, wanted, Wanted()))

    def _rows(self, name: str | None, keys: int, window: int | None, device: torch.device) -> Rows:
        key = name, keys, window, device
        if key not in self.shared:
            self.shared[key] = self.rows(name, keys, window, device)
        return self.shared[key]

    def rows(self, name: str | None, keys: int, window: int | None, device: torch.device) -> Rows:
        """The rows of a name that this pass runs over."""
        return Rows.of(self.prompts, between(self.prompts.row_positions(name), self.offset, keys), keys, window, device)


@dataclass(frozen=True, eq=False)
class Observed:
    """What the reads saw in one layer, on its way to the CPU, and each head's summed output, which is not finite if any number in it is not."""

    reads: Mapping[LayerRead, Any]
    total_H: Tensor

    def values(self, place: str, layer: int) -> Mapping[LayerRead, Any]:
        """The values; the device must have finished. Raises `InputError` naming the head if an output was not finite."""
        if not (finite_H := self.total_H.isfinite()).all():
            raise InputError(f"{place}, L{layer}H{int((~finite_H).int().argmax())}: its output is not finite; try --dtype float32, or look at the weights")
        return self.reads


@contextmanager
def tapped(model: HFModel, tap: Tap) -> Generator[Any, None, None]:
    """The model's module with `tap` in every attention layer; restored to what it was, whatever happens."""
    own = model.own
    with own.attention(REFERENCE if tap.implementation == "reference" else STREAMING) as hf:
        tap.model, tap.shards = own, model.shards
        if model.shards is not None:
            tap.edits = [edit.among(model.shards.heads) for edit in tap.edits]
        handles = []
        try:
            for layer, module in enumerate(own.weights.attentions):
                module.workbench_tap = (layer, tap)
            if any(edit.sees_residual for edit in tap.edits):
                handles += [
                    block.register_forward_pre_hook(tap.see_residual, with_kwargs=True)
                    for block in model.hf.get_submodule(FAMILIES[model.config.model_type].blocks)
                ]
            yield hf
        finally:
            for handle in handles:
                handle.remove()
            for module in own.weights.attentions:
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
    total_H = tap.of_all(z_BHQE.sum((0, 2, 3), dtype=torch.float32), dim=0).to("cpu", non_blocking=z_BHQE.is_cuda)
    seen = {read: tap.put(layer, read, tap.of_all(value)) for read, value in values.items()}
    return rearrange(z_BHQE, "b h q e -> b q h e").contiguous(), Observed(seen, total_H)


def _visible(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask interface: True where a query may see a key, [B, 1, Q, K]; never left out for a causal model."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


REFERENCE, STREAMING = "workbench_reference", "workbench_streaming"
AttentionInterface.register(REFERENCE, _attention)
AttentionInterface.register(STREAMING, _attention)
AttentionMaskInterface.register(REFERENCE, _visible)
AttentionMaskInterface.register(STREAMING, flash_attention_mask)
