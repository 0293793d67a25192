"""How does a prompt go through the model? In one pass or in chunks; each layer's values are joined as they arrive."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from workbench.attention import Observed, Tap, tapped
from workbench.edits import Edit, Memory
from workbench.errors import InputError
from workbench.implementations import each
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import (
    BLOCK_READS,
    BlockMap,
    LayerRead,
    Mass,
    NextToken,
    NextTokenValue,
    Pattern,
    QueryKey,
    QueryKeyValue,
    Read,
    Received,
    ValueNorm,
    Written,
)
from workbench.rows import Rows
from workbench.streams import Watch, WritingTap

LARGEST_PATTERN = 4 * 2**30
"""Bytes that `Pattern()` of all rows may take before it is refused."""


def run(
    model: HFModel,
    prompts: Prompts,
    *,
    reads: Sequence[Read],
    edits: Sequence[Edit],
    implementation: str,
    layers: Sequence[int],
    chunk: int | None = None,
    memory: Memory | None = None,
) -> dict[Read, Any]:
    """All reads of one forward pass; with a chunk, of the passes over its pieces, of which each sees the keys of those before.

    The `memory` holds afterwards what the edits have found.
    """
    layer_reads: list[Any] = [read for read in reads if not isinstance(read, (NextToken, *BLOCK_READS))]
    watch = Watch(model, prompts, reads, layers)
    make_tap = partial(WritingTap, model=model) if Written() in layer_reads else Tap
    nexts = [read for read in reads if isinstance(read, NextToken)]
    kept = sorted({int(row) for read in nexts for row in prompts.row_positions(read.rows).flat}) or [prompts.length - 1]
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    cache = None if chunk is None else DynamicCache()  # without the configuration: every layer keeps all keys
    memory = Memory() if memory is None else memory
    chunks: list[tuple[Tap, Sequence[Observed]]] = []
    logits: list[Tensor] = []
    for begin in range(0, prompts.length, chunk or prompts.length):
        end = min(begin + (chunk or prompts.length), prompts.length)
        tap = make_tap(prompts, layer_reads, edits, implementation, begin, layers, memory=memory)
        keep = [row - begin for row in kept if begin <= row < end] or [0]  # no tensor: the last layer may be on another device than the first
        with tapped(model, tap) as hf, watch.over(begin):
            result = hf(
                ids_BT[:, begin:end],
                logits_to_keep=keep,
                use_cache=cache is not None,
                output_attentions=True,
                **({} if cache is None else {"past_key_values": cache}),
                **_padding(prompts, model, begin, end),
            )
        chunks.append((tap, result.attentions))
        logits += [result.logits] if any(begin <= row < end for row in kept) else []
    values = joined(model, prompts, layer_reads, chunks) | watch.values()
    return values | {read: _next_token(torch.cat(logits, dim=1), kept, prompts.row_positions(read.rows), ids_BT) for read in nexts}


def joined(model: HFModel, prompts: Prompts, reads: Sequence[LayerRead], chunks: Sequence[tuple[Tap, Sequence[Observed]]]) -> dict[Read, Any]:
    """The layers of each read [B, L, ...], chunks joined and rows in the asked order. Raises `InputError` for the first output that is not finite."""
    for place in model.devices:
        torch.cuda.synchronize(place)
    seen = [[observed.values(model.name, layer) for layer, observed in enumerate(attentions)] for _, attentions in chunks]
    tap = chunks[0][0]
    if len(chunks) == 1:
        return {read: _from_sheets(tap, read, prompts) for read in reads}
    whole: dict[Read, Any] = {}
    for read in reads:
        layers = [[values[layer][read] for values in seen if read in values[layer]] for layer in tap.layers]
        finished = [_finished(model, prompts, read, _over_chunks(read, parts), layer) for layer, parts in zip(tap.layers, layers, strict=True)]
        whole[read] = each(lambda *tensors: torch.stack(tensors, dim=1), *[asked_order(read, value, prompts) for value in finished])
    return whole


def _from_sheets(tap: Tap, read: LayerRead, prompts: Prompts) -> Any:
    """What the layers have written, as it lies there unless the rows were asked for in another order."""
    parts = [sheet for (name, _), sheet in tap.sheets.items() if name == read]
    first = tap.kinds[read]
    value = first(*parts) if first is not None else parts[0]
    if _ascending(read, prompts):
        return each(lambda sheet: sheet.movedim(0, 1), value)
    layers = [each(lambda sheet, place=place: sheet[place], value) for place in range(len(tap.layers))]
    return each(lambda *tensors: torch.stack(tensors, dim=1), *[asked_order(read, layer, prompts) for layer in layers])


def _over_chunks(read: LayerRead, parts: list) -> Any:
    """The chunks of one layer: side by side, unless the read says otherwise."""
    if isinstance(read, (Received, BlockMap, ValueNorm, Pattern, QueryKey)):
        return read.joined(parts)
    return each(lambda *tensors: torch.cat(tensors, dim=2), *parts)


def _finished(model: HFModel, prompts: Prompts, read: LayerRead, value: Any, layer: int) -> Any:
    """What takes all chunks to be complete."""
    if isinstance(read, Received):
        every = Rows.of(prompts, prompts.row_positions(read.rows), prompts.length, model.windows[layer], value.device)
        return read.finished(value, every)
    return pad(value, (0, prompts.length - value.shape[-1])) if isinstance(read, Pattern) else value


def _ascending(read: LayerRead, prompts: Prompts) -> bool:
    """Whether rows were asked for as a pass gives them, or there are none in what the read gives."""
    return read.rows is None or isinstance(read, (Received, BlockMap, ValueNorm)) or bool((np.diff(prompts.row_positions(read.rows)) >= 0).all())


def asked_order(read: LayerRead, value: Any, prompts: Prompts) -> Any:
    """The rows [B, H, R, ...], which a pass gives in ascending order, in the order in which they were asked for."""
    if _ascending(read, prompts):
        return value
    asked_BR = prompts.row_positions(read.rows)
    order_BR = torch.from_numpy(np.argsort(np.argsort(asked_BR, axis=1, kind="stable"), axis=1))

    def sort(tensor: Tensor) -> Tensor:
        index = order_BR.view(len(order_BR), 1, -1, *[1] * (tensor.dim() - 3)).expand(-1, tensor.shape[1], -1, *tensor.shape[3:])
        return tensor.gather(2, index)

    return value._replace(query=sort(value.query)) if isinstance(value, QueryKeyValue) else each(sort, value)


def _padding(prompts: Prompts, model: HFModel, begin: int, end: int) -> dict[str, Tensor]:
    """Which tokens are none, and the positions of the others counted without them."""
    if prompts.padding is None:
        return {}
    place_BT = torch.arange(end, device=model.device) - torch.tensor(prompts.start_B, device=model.device)[:, None]
    return {"attention_mask": (place_BT >= 0).long(), "position_ids": place_BT[:, begin:].clamp(min=0)}


def without_padding(read: Read, value: Any, prompts: Prompts) -> Any:
    """NaN, or −1 for a position, where a read that gives a number per row was made in the padding."""
    if prompts.padding is None or not (read.per_row or isinstance(read, NextToken)):
        return value
    hidden_BR = torch.from_numpy(prompts.row_positions(read.rows) < prompts.start_B[:, None])
    hidden_BR = hidden_BR if isinstance(read, NextToken) else hidden_BR[:, None, None]
    return each(lambda tensor: tensor.masked_fill(hidden_BR, torch.nan if tensor.is_floating_point() else -1), value)


def check(model: HFModel, prompts: Prompts, length: int, reads: Sequence[Read], edits: Sequence[Edit], chunk: int | None = None) -> dict[str, Any]:
    """What is worth a remark in the provenance. Raises `InputError` for what cannot be done."""
    if length > model.positions:
        raise InputError(f"{length} tokens do not fit {model.name}, which has {model.positions} learned positions")
    if len(strange := prompts.ids_BT[(prompts.ids_BT < 0) | (prompts.ids_BT >= model.vocabulary)]):
        raise InputError(f"token id {strange[0]} is none of the {model.vocabulary} ids of {model.name}")
    if model.shards is not None and (travelling := [read for read in reads if isinstance(read, (Pattern, QueryKey))]):
        raise InputError(f"{travelling[0]} of a model that is spread over processes would send more than statistics; run it on one device, or offloaded")
    for edit in edits:
        edit.check(model.shape)
        edit.check_model(model, prompts, chunk)
    size = 4 * prompts.count * model.shape.n_layers * model.shape.n_heads * length**2
    if Pattern() in reads and size > LARGEST_PATTERN:
        raise InputError(f"Pattern() of {length} tokens takes {size / 2**30:.1f} GiB; name the rows, Pattern(rows=...), or read what you need of it")
    wide = clamped(reads, prompts)
    return {**({"clamped": wide} if wide else {}), **({"warning": beyond_training(model, length)} if length > model.max_length else {})}


def clamped(reads: Sequence[Read], prompts: Prompts) -> list[str]:
    """Which reads look at more keys than the prompts have, as results say it."""
    wide = [(read, max(read.first, read.last)) for read in reads if isinstance(read, Mass)]
    return [f"{read}: {count} keys are all {prompts.length}" for read, count in wide if count > prompts.length]


def beyond_training(model: HFModel, length: int) -> str:
    """What results say of prompts longer than the model was trained for."""
    return f"{length} tokens are beyond the {model.max_length} that {model.name} was trained for"


def _next_token(logit_BRV: Tensor, kept: list[int], row_BR: np.ndarray, ids_BT: Tensor) -> NextTokenValue:
    place_BR = torch.as_tensor(np.searchsorted(kept, row_BR), device=ids_BT.device)
    logprob_BRV = logit_BRV.float().log_softmax(-1).gather(1, place_BR[:, :, None].expand(-1, -1, logit_BRV.shape[-1]))
    after_BR = torch.as_tensor(np.array(row_BR), device=ids_BT.device) + 1
    follower_BR = ids_BT.gather(1, after_BR.clamp(max=ids_BT.shape[1] - 1))
    logprob_BR = logprob_BRV.gather(2, follower_BR[:, :, None])[:, :, 0].masked_fill(after_BR == ids_BT.shape[1], torch.nan)
    return NextTokenValue(logprob_BRV.argmax(-1).cpu(), logprob_BR.cpu())


def chosen_layers(model: HFModel, layers: Sequence[int] | None) -> Sequence[int]:
    """The layers to read, all for None. Raises `InputError` for one that the model does not have, or has been named twice."""
    every = range(model.shape.n_layers)
    if layers is not None and (not layers or len(set(layers)) < len(layers) or not set(layers) <= set(every)):
        raise InputError(f"layers are some of 0 to {every[-1]}, each once; got {list(layers)}")
    return every if layers is None else layers


class MemoryErrors:
    """Turns running out of memory into an `InputError` that says what it would take and what lowers it."""

    def __init__(self, model: HFModel, prompts: Prompts, implementation: str, chunk: int | None) -> None:
        self._model, self._prompts, self._implementation, self._chunk = model, prompts, implementation, chunk

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type | None, error: BaseException | None, _trace: object) -> None:
        text = str(error).lower()
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and "can't allocate memory" in text)):
            return
        shape, tokens, count = self._model.shape, self._chunk or self._prompts.length, 1 if self._chunk else self._prompts.count
        if self._implementation == "reference":
            need, advice = (
                4 * count * shape.group * tokens**2 * 3,
                "--implementation torch or triton, which hold no probabilities, or shorter prompts (--lengths)",
            )
            what = "the probabilities of one KV head"
        else:
            wide = max(getattr(self._model.config, "intermediate_size", 0) or 0, 4 * shape.d_model)
            need, advice = count * tokens * (3 * wide + 8 * shape.d_model) * self._model.dtype.itemsize, f"--chunk {max(1, tokens // 4)}, or --dtype bfloat16"
            what = "one layer's activations"
        asked = text.partition("tried to allocate ")[2].partition(". ")[0].strip(". ")
        raise InputError(
            f"out of memory{f' (asked for {asked})' if asked else ''}: {count} × {tokens} tokens take about {need / 2**30:.2f} GiB for {what}, "
            f"beside the weights; use {advice}"
        ) from error
