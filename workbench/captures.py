"""What happened inside? `capture` runs a model once over prompts, with edits, and returns what the reads saw."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from workbench.attention import Tap, tapped
from workbench.edits import Edit, Memory
from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.implementations import choose, each
from workbench.models import HFModel
from workbench.passes import MemoryErrors, check, chosen_layers, joined, run, without_padding
from workbench.prompts import SAMPLED, Prompts
from workbench.reads import Distances, Entropy, LayerRead, LogSumExp, Mass, Peak, Read, TopMass
from workbench.showing import Shown

CHUNKS = "a chunk has at least one token, and the reference implementation makes none; use torch or triton"
SAMPLES = (Mass, Distances, TopMass, Entropy, Peak, LogSumExp)
"""The reads that can be made on a sample of the rows."""


@dataclass(frozen=True, eq=False)
class Capture(Shown):
    """What the reads saw in one pass: `capture[read]` is a read-only array (or a named tuple of them) in the read's shape.

    `provenance` has implementation, dtype, device and edits, and what is worth a remark. The `sampled` reads were made on a sample of the rows. `found` is
    what each edit found, in their order: of `Calibrate` the number of sinks [B, L, H], those of the last row where rows have their own.
    """

    card: ModelCard
    prompts: Prompts
    values: Mapping[Any, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sampled: frozenset[Read] = frozenset()
    found: tuple[Int[np.ndarray, "B L H"], ...] = ()

    def __post_init__(self) -> None:
        frozen = {read: each(_frozen, value) for read, value in self.values.items()}
        object.__setattr__(self, "values", MappingProxyType(frozen))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))
        object.__setattr__(self, "found", tuple(map(_frozen, self.found)))

    def __getitem__(self, read: Read) -> Any:
        if read not in self.values:
            raise InputError(f"{read} was not read in this capture; it has: {', '.join(map(str, self.values)) or 'nothing'}")
        return self.values[read]

    def over_rows(self, read: Read, skip: int = 0) -> Float[np.ndarray, "B L H"]:
        """The mean of a read that gives a number per row, over its rows from the `skip`-th token on, padding not counted.

        Raises `InputError` if no rows are left, or unequally many in the prompts.
        """
        return self._per_row(read, skip).mean(-1)

    def standard_error(self, read: Read, skip: int = 0) -> Float[np.ndarray, "B L H"]:
        """How far `over_rows` may be from the mean of all rows, where rows were sampled: s/√n · √(1 − n/N); 0 where all were read.

        It takes the strided rows for a random sample of the n out of N rows: what changes within a stride at the start of a prompt may exceed it.
        """
        value_BLHR = self._per_row(read, skip).astype(float)
        read_rows, rows = value_BLHR.shape[-1], self.prompts.length - skip - int(self.prompts.start_B.max())
        if read not in self.sampled:
            return np.zeros(value_BLHR.shape[:3])
        return value_BLHR.std(-1, ddof=1) / np.sqrt(read_rows) * np.sqrt(1 - read_rows / rows)

    def _per_row(self, read: Read, skip: int) -> np.ndarray:
        if not read.per_row:
            raise InputError(f"{read} gives no number per row")
        value_BLHR = self[read]
        if isinstance(value_BLHR, tuple):
            raise InputError(f"{read} gives several numbers per row: {', '.join(value_BLHR._fields)}")
        position_BR = self.prompts.row_positions(SAMPLED if read in self.sampled else read.rows) - self.prompts.start_B[:, None]
        kept_BR = position_BR >= skip
        if len(counts := set(kept_BR.sum(1).tolist())) > 1 or counts == {0}:
            raise InputError(f"the prompts have {sorted(counts)} rows from the {skip}th token on; take prompts of one length, longer than that")
        if read in self.sampled and counts == {1}:
            raise InputError(f"only one sampled row is left from the {skip}th token on; sample more rows")
        return np.stack([value_LHR[..., kept_R] for value_LHR, kept_R in zip(value_BLHR, kept_BR, strict=True)])


def capture(
    model: HFModel,
    prompts: Prompts | str | Iterable[str],
    reads: Sequence[Read],
    edits: Sequence[Edit] = (),
    *,
    implementation: str = "auto",
    chunk: int | None = None,
    sample: int | None = None,
    layers: Sequence[int] | None = None,
) -> Capture:
    """Run the model once over the prompts and compute all reads, layer by layer.

    Texts are tokenised as the model's tokenizer does by default; shorter ones are padded on the left, and reads that give a number per row give NaN
    (a key of −1) there. `implementation` is one of `implementations.IMPLEMENTATIONS` or `auto`; the provenance says which it was. With a `chunk` the
    prompts go through the model one by one in pieces of that many tokens, which bounds the memory of activations. With a `sample` that many evenly
    strided rows stand for all in the reads of all rows (`SAMPLES`): see `Capture.standard_error`. With `layers` only these are read, in this order.
    Prompts beyond the context that the model was trained for run; a warning in the provenance says so. Raises `InputError` for prompts that the model has
    no positions for, for edits of heads that it does not have, for what an implementation cannot do, and when memory does not suffice.
    """
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_text(model, prompts)
    chosen = choose(implementation, model.device, prompts.length, model.shape.d_head)
    remarks = check(model, prompts, prompts.length, reads, edits, chunk)
    if chunk is not None and (chunk < 1 or chosen == "reference"):
        raise InputError(CHUNKS)
    sampled = sample is not None and sample < prompts.length - int(prompts.start_B.max())
    prompts = prompts.with_sampled_rows(sample) if sample is not None and sampled else prompts
    made = {read: replace(read, rows=SAMPLED) if sampled and isinstance(read, SAMPLES) and read.rows is None else read for read in reads}
    less = frozenset(read for read, making in made.items() if making != read)
    make = partial(run, model, reads=list(made.values()), edits=edits, implementation=chosen, layers=chosen_layers(model, layers))
    with torch.inference_mode(), MemoryErrors(model, prompts, chosen, chunk):
        if chunk is None or chunk >= prompts.length:
            memories = [Memory()]
            values = make(prompts, memory=memories[0])
        else:
            memories = [Memory() for _ in range(prompts.count)]
            values = _side_by_side([make(prompts.only(number), chunk=chunk, memory=memory) for number, memory in enumerate(memories)])
    values = {read: without_padding(making, values[making], prompts) for read, making in made.items()}
    facts = {
        **({"chunk": chunk} if chunk is not None else {}),
        **({"layers": list(layers)} if layers is not None else {}),
        **({"rows": {"sampled": sample, "of": prompts.length}} if less else {}),
    }
    found = _found(model, prompts, edits, memories)
    return Capture(model.card, prompts, values, {**_provenance(model, edits, chosen, found), **facts, **remarks}, less, found)


def generate(
    model: HFModel,
    prompts: Prompts,
    reads: Sequence[LayerRead],
    *,
    max_new_tokens: int = 50,
    edits: Sequence[Edit] = (),
    implementation: str = "auto",
    chunk: int | None = None,
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
    if prompts.count != 1 or prompts.length < 2 or max_new_tokens < 1 or prompts.start_B.any():
        raise InputError("generation takes one prompt of at least two tokens at a time, without padding, and makes at least one token")
    if wrong := [read for read in reads if not (read.per_row and read.rows == "answer")]:
        raise InputError(f"while generating, only reads that give a number per row, at the rows 'answer', can be made; not {wrong[0]}")
    total = prompts.length + max_new_tokens
    chosen_way = choose(implementation, model.device, prompts.length, model.shape.d_head)
    if chunk is not None and (chunk < 1 or chosen_way == "reference"):
        raise InputError(CHUNKS)
    end = prompts.length - 1
    chosen: list[int] = []
    seen: list[dict[Read, Any]] = []
    base = Prompts(prompts.ids_BT, prompts.spans, {}, prompts.match_BT, end, prompts.facts, prompts.padding)
    remarks = check(model, base, total, reads, edits, chunk)
    memory = Memory()
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    with torch.inference_mode(), MemoryErrors(model, prompts, chosen_way, chunk):
        cache = DynamicCache()  # without the configuration: every layer keeps all keys, so that a key's index is its position
        for begin in range(0, end, chunk or end):
            with tapped(model, Tap(base, (), edits, chosen_way, begin, memory=memory)) as hf:
                hf(ids_BT[:, begin : min(begin + (chunk or end), end)], past_key_values=cache, use_cache=True, logits_to_keep=1)
        fed_BT = ids_BT[:, end:]
        while len(chosen) < max_new_tokens:
            place = end + len(chosen)
            step = replace(_with_answer(base, chosen, matching), rows={"answer": np.array([[place]])})
            tap = Tap(step, reads, edits, chosen_way, place, range(model.shape.n_layers), memory=memory)
            with tapped(model, tap) as hf:
                result = hf(fed_BT, past_key_values=cache, use_cache=True, logits_to_keep=1, output_attentions=True)
            fed_BT = model.agreed(result.logits[:, -1].argmax(-1, keepdim=True))
            chosen.append(int(fed_BT))
            seen.append(joined(model, step, reads, [(tap, result.attentions)]))
            if _ended(model, chosen, stop):
                break
    values = {read: each(lambda *parts: torch.cat(parts, dim=-1), *[step[read] for step in seen]) for read in reads}
    found = _found(model, base, edits, [memory])
    facts = {**_provenance(model, edits, chosen_way, found), **remarks}
    return Capture(model.card, _answered(model, base, chosen, matching), values, facts, found=found)


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


def _found(model: HFModel, prompts: Prompts, edits: Sequence[Edit], memories: Sequence[Memory]) -> tuple[np.ndarray, ...]:
    """What each edit found in the prompts, which went through the model together or one by one."""
    each_of = prompts.count // len(memories)
    found = [np.concatenate([memory.found(number, model.own.shape, each_of) for memory in memories]) for number in range(len(edits))]
    return tuple(found) if model.shards is None else tuple(model.shards.gathered(torch.from_numpy(part), dim=2).numpy() for part in found)


def _provenance(model: HFModel, edits: Sequence[Edit], implementation: str, found: Sequence[np.ndarray]) -> dict[str, Any]:
    place = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    return {"implementation": implementation, **place, "edits": [edit.describe() | edit.said(seen) for edit, seen in zip(edits, found, strict=True)]}


def _frozen(array: Tensor | np.ndarray) -> np.ndarray:
    array = array.numpy() if isinstance(array, Tensor) else np.array(array)
    array.setflags(write=False)
    return array


def _side_by_side(prompts: list[dict[Read, Any]]) -> dict[Read, Any]:
    return {read: each(lambda *tensors: torch.cat(tensors, dim=0), *[values[read] for values in prompts]) for read in prompts[0]}
