"""What happened inside? `capture` runs a model once over prompts, with edits, and returns what the reads saw."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.attention import NAME, Tap, tapped
from workbench.edits import Edit
from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.layer_view import LayerView
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import LayerRead, NextToken, NextTokenValue, Pattern, Read

LARGEST_PATTERN = 4 * 2**30
"""Bytes that `Pattern()` of all rows may take before it is refused."""


@dataclass(frozen=True, eq=False)
class Capture:
    """What the reads saw in one pass: `capture[read]` is a read-only array (or a named tuple of them) in the read's shape.

    `provenance` has implementation, dtype, device and edits.
    """

    card: ModelCard
    prompts: Prompts
    values: Mapping[Any, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frozen = {read: _each(_frozen, value) for read, value in self.values.items()}
        object.__setattr__(self, "values", MappingProxyType(frozen))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __getitem__(self, read: Read) -> Any:
        if read not in self.values:
            raise InputError(f"{read} was not read in this capture; it has: {', '.join(map(str, self.values)) or 'nothing'}")
        return self.values[read]


def capture(model: HFModel, prompts: Prompts | str | Iterable[str], reads: Sequence[Read], edits: Sequence[Edit] = ()) -> Capture:
    """Run the model once over the prompts and compute all reads, layer by layer.

    Texts are tokenised as the model's tokenizer does by default and must then be equally long. Raises `InputError` for
    prompts beyond the model's context, for edits of heads that it does not have, and when memory does not suffice.
    """
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_text(model, prompts)
    tap = Tap(prompts, _check(model, prompts, prompts.length, reads, edits), edits, name=model.name)
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    with torch.inference_mode(), tapped(model, tap) as hf, _MemoryErrors(model, prompts):
        values = _run(hf, tap, ids_BT, reads)
    return Capture(model.card, prompts, values, _provenance(model, edits))


def generate(
    model: HFModel,
    prompts: Prompts,
    reads: Sequence[LayerRead],
    *,
    max_new_tokens: int = 50,
    edits: Sequence[Edit] = (),
    stop: Callable[[str], bool] | None = None,
    matching: Callable[[np.ndarray], np.ndarray] = lambda ids: ids,
) -> Capture:
    """Let the model answer one prompt greedily, and read the row behind every token that it chose.

    The prompt up to its last token is prefilled; every further step is decoding, the first of them fed with the prompt's last
    token, so that the row read at a step is the one that produced the token (as in Wu et al. 2024). Ends at the tokenizer's
    end-of-sequence token, when `stop(text so far)` holds, or after `max_new_tokens`. The capture's prompts are the prompt with
    the chosen tokens behind it, rows `answer` where they were chosen, and `facts` with the `response`. Reads must give one
    number per row and name the rows `answer`. `matching` maps chosen ids to those by which equal tokens are found.
    """
    if prompts.count != 1 or prompts.length < 2 or max_new_tokens < 1:
        raise InputError("generation takes one prompt of at least two tokens at a time, and makes at least one token")
    if wrong := [read for read in reads if not (read.per_row and read.rows == "answer")]:
        raise InputError(f"while generating, only reads that give a number per row, at the rows 'answer', can be made; not {wrong[0]}")
    _check(model, prompts, prompts.length + max_new_tokens, reads, edits)
    end = prompts.length - 1
    chosen: list[int] = []
    seen: list[dict[Read, Any]] = []
    base = Prompts(prompts.ids_BT, prompts.spans, {}, prompts.match_BT, end, prompts.facts)
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    with torch.inference_mode(), _MemoryErrors(model, prompts):
        with tapped(model, Tap(base, (), edits, name=model.name)) as hf:
            cache = DynamicCache()  # without the configuration: every layer keeps all keys, so that a key's index is its position
            hf(ids_BT[:, :end], past_key_values=cache, use_cache=True, logits_to_keep=1)
        fed_BT = ids_BT[:, end:]
        while len(chosen) < max_new_tokens:
            place = end + len(chosen)
            tap = Tap(_with_answer(base, chosen, matching), reads, edits, place, {"answer": torch.tensor([[place]], device=model.device)}, name=model.name)
            with tapped(model, tap) as hf:
                fed_BT = hf(fed_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
            chosen.append(int(fed_BT))
            seen.append({read: _joined(tap, read) for read in reads})
            if _ended(model, chosen, stop):
                break
    values = {read: _zip_each(lambda *parts: np.concatenate(parts, axis=-1), [step[read] for step in seen]) for read in reads}
    return Capture(model.card, _answered(model, base, chosen, matching), values, _provenance(model, edits))


def from_patterns(card: ModelCard, prompts: Prompts, pattern_BLHQK: np.ndarray, reads: Sequence[LayerRead]) -> Capture:
    """A capture made from given attention probabilities, such as an ideal head or another tool's cache.

    `pattern_BLHQK` has all query rows; its heads may be any number. Keys at or before the row count as visible.
    Reads of queries, keys, values or outputs raise `InputError`.
    """
    pattern = torch.as_tensor(np.asarray(pattern_BLHQK, np.float32))
    if pattern.dim() != 5 or pattern.shape[0] != prompts.count or pattern.shape[3:] != (prompts.length, prompts.length):
        raise InputError(f"patterns of shape {tuple(pattern.shape)} for {prompts.count} prompts of {prompts.length} tokens")
    visible_BQK = torch.ones(prompts.length, prompts.length, dtype=torch.bool).tril().expand(prompts.count, -1, -1)
    tap = Tap(prompts, reads)
    for read in reads:
        row_BR = torch.as_tensor(np.array(prompts.row_positions(read.rows)))
        for layer, pattern_BHQK in enumerate(pattern.unbind(1)):
            rows_BHRK = pattern_BHQK.gather(2, row_BR[:, None, :, None].expand(-1, pattern.shape[2], -1, prompts.length))
            visible_BRK = visible_BQK.gather(1, row_BR[:, :, None].expand(-1, -1, prompts.length))
            tap.seen.setdefault(read, {})[layer] = [read.reference(LayerView(prompts, row_BR, rows_BHRK, visible_BRK))]
    return Capture(card, prompts, {read: _joined(tap, read) for read in reads}, {"implementation": "given patterns"})


def _check(model: HFModel, prompts: Prompts, length: int, reads: Sequence[Read], edits: Sequence[Edit]) -> list[LayerRead]:
    if length > model.max_length:
        raise InputError(f"{length} tokens do not fit the context of {model.name}, {model.max_length}")
    if len(strange := prompts.ids_BT[(prompts.ids_BT < 0) | (prompts.ids_BT >= model.vocabulary)]):
        raise InputError(f"token id {strange[0]} is none of the {model.vocabulary} ids of {model.name}")
    for edit in edits:
        edit.check(model.shape)
    size = 4 * prompts.count * model.shape.n_layers * model.shape.n_heads * length**2
    if Pattern() in reads and size > LARGEST_PATTERN:
        raise InputError(f"Pattern() of {length} tokens takes {size / 2**30:.1f} GiB; name the rows, Pattern(rows=...), or read what you need of it")
    return [read for read in reads if not isinstance(read, NextToken)]


def _run(hf: Any, tap: Tap, ids_BT: Tensor, reads: Sequence[Read]) -> dict[Read, Any]:
    nexts = [read for read in reads if isinstance(read, NextToken)]
    rows = sorted({int(row) for read in nexts for row in tap.prompts.row_positions(read.rows).flat}) or [ids_BT.shape[1] - 1]
    logit_BRV = hf(ids_BT, use_cache=False, logits_to_keep=torch.tensor(rows, device=ids_BT.device)).logits
    values: dict[Read, Any] = {read: _joined(tap, read) for read in tap.reads}
    return values | {read: _next_token(logit_BRV, rows, tap.prompts.row_positions(read.rows), ids_BT) for read in nexts}


def _next_token(logit_BRV: Tensor, kept: list[int], row_BR: np.ndarray, ids_BT: Tensor) -> NextTokenValue:
    place_BR = torch.as_tensor(np.searchsorted(kept, row_BR), device=ids_BT.device)
    logprob_BRV = logit_BRV.float().log_softmax(-1).gather(1, place_BR[:, :, None].expand(-1, -1, logit_BRV.shape[-1]))
    after_BR = torch.as_tensor(np.array(row_BR), device=ids_BT.device) + 1
    follower_BR = ids_BT.gather(1, after_BR.clamp(max=ids_BT.shape[1] - 1))
    logprob_BR = logprob_BRV.gather(2, follower_BR[:, :, None])[:, :, 0].masked_fill(after_BR == ids_BT.shape[1], torch.nan)
    return NextTokenValue(_array(logprob_BRV.argmax(-1)), _array(logprob_BR))


def _joined(tap: Tap, read: Any) -> Any:
    """One read over all KV heads (side by side) and layers (a new axis behind the batch)."""
    layers = [_zip_each(lambda *parts: torch.cat(parts, dim=1), tap.seen[read][layer]) for layer in sorted(tap.seen[read])]
    return _zip_each(lambda *parts: _array(torch.stack(parts, dim=1)), layers)


def _zip_each(join: Callable, values: list) -> Any:
    """Join a list of arrays, or a list of named tuples of arrays field by field."""
    return type(values[0])(*map(join, *values)) if isinstance(values[0], tuple) else join(*values)


def _each(change: Callable, value: Any) -> Any:
    return type(value)(*map(change, value)) if isinstance(value, tuple) else change(value)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.setflags(write=False)
    return array


def _ended(model: HFModel, chosen: list[int], stop: Callable[[str], bool] | None) -> bool:
    if chosen[-1] == getattr(model.tokenizer, "eos_token_id", None):
        return True
    return stop is not None and stop(model.tokenizer.decode(chosen))


def _answered(model: HFModel, base: Prompts, chosen: list[int], matching: Callable[[np.ndarray], np.ndarray]) -> Prompts:
    rows = np.arange(base.decode_from, base.decode_from + len(chosen))[None]
    response = model.tokenizer.decode(chosen, skip_special_tokens=True) if model.tokenizer is not None else ""
    facts = {**(base.facts[0] if base.facts else {}), "response": response}
    return replace(_with_answer(base, chosen, matching), rows={"answer": rows}, facts=(facts,))


def _with_answer(base: Prompts, chosen: list[int], matching: Callable[[np.ndarray], np.ndarray]) -> Prompts:
    """The prompt with the chosen tokens behind it; they match by their own ids, or as `matching` says."""
    answer_BT = np.array([chosen], np.int64)
    return replace(base, ids_BT=np.concatenate([base.ids_BT, answer_BT], axis=1), match=np.concatenate([base.match_BT, matching(answer_BT)], axis=1))


def _provenance(model: HFModel, edits: Sequence[Edit]) -> dict[str, Any]:
    place = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    return {"implementation": NAME.removeprefix("workbench_"), **place, "edits": [edit.describe() for edit in edits]}


class _MemoryErrors:
    """Turns running out of memory into an `InputError` that says what it would take and what lowers it."""

    def __init__(self, model: HFModel, prompts: Prompts) -> None:
        self._model, self._prompts = model, prompts

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type | None, error: BaseException | None, _trace: object) -> None:
        text = str(error).lower()
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and "can't allocate memory" in text):
            shape, tokens = self._model.shape, self._prompts.length
            need = 4 * self._prompts.count * shape.group * tokens**2 * 3
            raise InputError(
                f"out of memory: {self._prompts.count} × {tokens} tokens take about {need / 2**30:.2f} GiB for the probabilities of one KV head, "
                "beside the weights; use shorter prompts (--lengths), fewer at once, or --dtype bfloat16"
            ) from error
