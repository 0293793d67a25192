"""How is the map of one head on a long prompt made? One pass of the model, which ends where the head's layer has its queries and keys."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from workbench.attention import Tap, tapped
from workbench.errors import InputError
from workbench.heads import Head
from workbench.implementations import choose
from workbench.kept_maps import CELLS, Asked, KeptMap, text_name
from workbench.models import HFModel, Model
from workbench.needles import NeedleTests, load_needles
from workbench.ops.blocked import statistics
from workbench.ops.changed import subset
from workbench.ops.inputs import Attention, Wanted
from workbench.passes import MemoryErrors, check
from workbench.prompts import Prompts
from workbench.reads import Received
from workbench.rows import Rows
from workbench.runs import versions

CHUNK = 8192
"""Tokens that go through the model at once: it bounds the memory of activations."""


def prompt_of(model: Model, asked: Asked, text: str = "") -> Prompts:
    """The prompt that is asked for: a needle test, or the first tokens of `text`, of all its tokens at most. It takes the tokenizer alone.

    Raises `InputError` for a text other than the one named, a needle that does not fit, a haystack that is too short, or a tokenizer that cannot be used.
    """
    if not asked.text:
        tests = NeedleTests(lengths_=(asked.length,), depths=(asked.depth,), per_cell=None)
        return tests.build(model, asked.seed)[asked.seed % len(load_needles(tests.needles))]
    if model.tokenizer is None:
        raise InputError(f"{model.card.name} has no tokenizer, so that it cannot read a text")
    if text_name(text) != asked.text:
        raise InputError("the text is not the one of this address; upload it again")
    whole = Prompts.from_text(model, text)
    return Prompts(whole.ids_BT[:, : asked.length], facts=({"text_tokens": whole.length},))


def beforehand(model: HFModel, asked: Asked, text: str = "") -> tuple[int, str]:
    """How many tokens the prompt will have, and what has to be said of that, if anything. It takes no weights. Raises `InputError` as `long_map` does."""
    prompts = prompt_of(model, asked, text)
    return prompts.length, check(model, prompts, prompts.length, [], []).get("warning", "")


def long_map(model: HFModel, asked: Asked, text: str = "", progress: Callable[[float], None] = lambda _: None) -> KeptMap:
    """The map of a head, from one pass over the prompt; `progress` hears which share of the pass is done (0–1), and ends it by raising.

    Layers behind the head's are not run. Prompts beyond the context that the model was trained for run; a warning in `facts` says so. Raises `InputError`
    as `prompt_of` does, for a head or a fingerprint that is not the model's, for more tokens than it has positions, and when memory does not suffice.
    """
    model.shape.check(asked.head)
    if asked.model != model.card.fingerprint:
        raise InputError(f"the map is asked of the model {asked.model}, which {model.name} ({model.card.fingerprint}) is not")
    prompts = prompt_of(model, asked, text)
    remarks = check(model, prompts, prompts.length, [], [])
    attention = _until(model, prompts, asked.head, progress)
    block = -(-prompts.length // CELLS)
    seen = statistics(attention, Wanted(received=frozenset({"sum"}), maps=frozenset({(block, "max")})))
    rows = Rows.of(prompts, prompts.row_positions(None), prompts.length, attention.window, attention.q_BHRE.device)
    received_BHK = Received().finished(seen.received["sum"], rows)
    place = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    told = {key: prompts.facts[0][key] for key in ("needle", "depth_found", "answer", "haystack", "chat", "text_tokens") if key in prompts.facts[0]}
    kept = KeptMap(
        asked.head,
        _array(seen.maps[block, "max"][0, 0]),
        block,
        _array(received_BHK[0, 0]),
        tuple(model.tokenizer.decode([token]) for token in prompts.ids_BT[0].tolist()),
        _marks(prompts),
        {"model": model.name, "asked": asked.question, "tokens": prompts.length, **told, **place, **remarks, "versions": versions()},
        attention.window,
        attention.softcap,
        attention.scaling,
        _array(attention.q_BHRE[0, 0]),
        _array(attention.k_BGKE[0, 0]),
        _array(seen.lse_BHR[0, 0]),
    )
    share = needle_share(kept)
    return kept if share is None else replace(kept, facts={**kept.facts, "needle_share": share})


def needle_share(kept: KeptMap) -> float | None:
    """How much of their attention the rows that give the answer put on the needle: their mean (0–1), or None for a prompt without a needle."""
    if not {"needle", "answer"} <= set(kept.marks):
        return None
    ((rows,), keys) = kept.marks["answer"], kept.marks["needle"]
    return float(sum(kept.probabilities(rows, span).sum(1) for span in keys).mean())


class _Enough(Exception):  # noqa: N818 no error: the pass has shown what it was made for
    """The pass has come to the layer that it was made for."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention


@dataclass
class _Until(Tap):
    """A tap that ends the pass at the attention of a layer; `tell` hears of every layer before it."""

    last: int = 0
    tell: Callable[[int], None] = lambda _: None

    def __call__(
        self, layer: int, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> tuple[Tensor, dict[Any, Any]]:
        """As of any tap, up to the layer."""
        self.tell(layer)
        if layer < self.last:
            return super().__call__(layer, q_BHQE, k_BGKE, v_BGKE, mask, scaling, softcap, window)
        rows = self.rows(None, k_BGKE.shape[2], window, q_BHQE.device)
        raise _Enough(Attention(q_BHQE, k_BGKE, v_BGKE, rows.pos_BR, rows.start_B, scaling, softcap, window))


def _until(model: HFModel, prompts: Prompts, head: Head, progress: Callable[[float], None]) -> Attention:
    """The queries of one head and the keys that it reads, of all rows of the prompt."""
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    begins = range(0, prompts.length, CHUNK)
    cache = DynamicCache() if len(begins) > 1 else None  # without the configuration: every layer keeps all keys
    way = choose("auto", model.device, prompts.length, model.shape.d_head)
    parts: list[Attention] = []
    with torch.inference_mode(), MemoryErrors(model, prompts, way, CHUNK if cache is not None else None):
        for number, begin in enumerate(begins):
            done = (number + np.arange(head.layer + 1) / (head.layer + 1)) / len(begins)
            tap = _Until(prompts, (), (), way, begin, last=head.layer, tell=lambda layer, done=done: progress(float(done[layer])))
            try:
                with tapped(model, tap) as hf:
                    hf(ids_BT[:, begin : begin + CHUNK], past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
            except _Enough as enough:
                parts.append(subset(enough.attention, (head.index,)))
        q_BHRE, pos_BR = (torch.cat([getattr(part, name) for part in parts], dim=dim) for name, dim in (("q_BHRE", 2), ("pos_BR", 1)))
    for name, tensor in (("queries", q_BHRE), ("keys", parts[-1].k_BGKE)):
        if not tensor.isfinite().all():
            raise InputError(f"{model.name}, {head}: its {name} are not finite; try --dtype float32, or look at the weights")
    return replace(parts[-1], q_BHRE=q_BHRE, pos_BR=pos_BR, memo={})


def _marks(prompts: Prompts) -> dict[str, list[tuple[int, int]]]:
    """The needle among the keys and the rows that give the answer, where there are any."""
    spans = {name: [(int(begin), int(end)) for begin, end in span_B2] for name, span_B2 in prompts.spans.items()}
    return spans | {name: [(int(row_BR.min()), int(row_BR.max()) + 1)] for name, row_BR in prompts.rows.items()}


def _array(tensor: Float[Tensor, "..."]) -> np.ndarray:
    return tensor.float().cpu().numpy()
