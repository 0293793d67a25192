"""Does pruning steer a model, and what does it cost? Rates of answers, closed-book accuracy and perplexity, beside random heads, instructions and decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from workbench.circuits.conflicts import answers, closed_book, contrastive, instructed, rates
from workbench.circuits.faithfulness import layer_matched, mask
from workbench.circuits.statistics import share_interval
from workbench.circuits.tasks import TaskSet
from workbench.edits import Ablate
from workbench.heads import Head
from workbench.models import HFModel
from workbench.streaming_text import losses

COLUMNS = {
    "way": "what was done: nothing, pruned heads, random heads of the same layers (mean over seeds), heads by gradient, an instruction, contrastive decoding",
    "steer": "what the model is steered to",
    "memory": "internal-memory rate: the share of items answered with what the model knows",
    "memory_low": "lower end of its 95% interval (Wilson)",
    "memory_high": "upper end",
    "context": "external-context rate: with what the text states",
    "context_low": "lower end of its interval",
    "context_high": "upper end",
    "other": "with something else",
    "clean": "the share of closed-book queries answered rightly",
    "clean_low": "lower end of its interval",
    "clean_high": "upper end",
    "perplexity": "on text without a conflict",
    "heads": "heads pruned",
    "n": "items",
}
"""What the columns of `Ph3.table` mean."""


def steered(
    model: HFModel, data: TaskSet, steer: str, heads: Sequence[Head], gradient: Sequence[Head], text_T: Int[np.ndarray, " T"], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Conflicts answered in every way that steers to one side, a row each: `heads` pruned, and beside it the controls.

    `gradient` are the heads that first-order effects rank for the same, `text_T` token ids for perplexity.
    """
    shape, clean = model.shape, closed_book(model, data)
    mine_LH = mask(shape, heads)
    rivals = [layer_matched(mine_LH, np.random.default_rng(seed)) for seed in seeds]
    ways = {"none": [np.zeros_like(mine_LH)], "pruned": [mine_LH], "random": rivals, "gradient": [mask(shape, gradient[: len(heads)])]}
    rows = []
    for way, sets in ways.items():
        kind_SN, clean_SN = answers(model, data, np.stack(sets))[0], answers(model, clean, np.stack(sets))[0]
        found = pd.DataFrame([rates(kind_N) for kind_N in kind_SN]).mean().to_dict()
        text = [_perplexity(model, text_T, pruned_LH) for pruned_LH in sets]
        row = {**found, "clean": float(np.mean([rates(clean_N)["memory"] for clean_N in clean_SN])), "perplexity": float(np.mean(text))}
        rows.append({"way": way, "steer": steer, **bounded(row, len(data)), "heads": int(sets[0].sum()), "n": len(data)})
    nothing = np.zeros_like(mine_LH)[None]
    said = {"instruction": answers(model, instructed(model, data, steer), nothing)[0][0], "contrastive": contrastive(model, data, steer)}
    return rows + [
        {"way": way, "steer": steer, **bounded({**rates(kind_N), "clean": np.nan, "perplexity": np.nan}, len(data)), "heads": 0, "n": len(data)}
        for way, kind_N in said.items()
    ]


def bounded(row: Mapping[str, float], count: int) -> dict[str, float]:
    """A row with a 95% interval beside each of the shares of `count` items that it has (memory, context, clean)."""
    found: dict[str, float] = {}
    for name, value in row.items():
        found[name] = value
        if name in ("memory", "context", "clean"):
            low, high = (np.nan, np.nan) if np.isnan(value) else share_interval(value, count)
            found |= {f"{name}_low": low, f"{name}_high": high}
    return found


def transferred(model: HFModel, name: str, data: TaskSet, pruned_for: Mapping[str, Sequence[Head]]) -> list[dict[str, Any]]:
    """Other conflicts with nothing pruned, and with the heads pruned that steer to each side."""
    sets = {"none": (), **{f"to {steer}": heads for steer, heads in pruned_for.items()}}
    pruned = np.stack([mask(model.shape, heads) for heads in sets.values()])
    kind_SN, clean_SN = answers(model, data, pruned)[0], answers(model, closed_book(model, data), pruned)[0]
    return [
        {"items": name, "steer": way, **bounded({**rates(kind_N), "clean": rates(clean_N)["memory"]}, len(data)), "n": len(data)}
        for way, kind_N, clean_N in zip(sets, kind_SN, clean_SN, strict=True)
    ]


def _perplexity(model: HFModel, text_T: np.ndarray, pruned_LH: np.ndarray) -> float:
    heads = tuple(Head(int(layer), int(index)) for layer, index in np.argwhere(pruned_LH))
    return float(np.exp(losses(model, text_T, [Ablate(heads)] if heads else []).mean()))
