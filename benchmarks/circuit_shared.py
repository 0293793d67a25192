"""What the benchmarks of circuits share: prompts of few lengths, rankings, and tables inside of a report."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.circuits.tasks import TaskSet, prepare
from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel


def drawn(model: HFModel, task: str, count: int, lengths: int, seed: int) -> TaskSet:
    """About `count` items of a task, of the few most frequent lengths: every length takes passes of its own."""
    try:
        data = prepare(model, task, 2 * count, seed)
    except InputError:  # it has no more
        data = prepare(model, task, count, seed)
    kept = replace(data, pairs=data.pairs[:lengths])
    return kept.split(count / len(kept), "item", seed)[0] if len(kept) > count else kept


def halves(data: TaskSet, share: float, seed: int) -> tuple[TaskSet, TaskSet]:
    """Prompts to search on and prompts held out, templates and all where there are two or more; else items."""
    return data.split(share, "template" if len({item.template for item in data.items}) > 1 else "item", seed)


def ordered(score_LH: Float[np.ndarray, "L H"]) -> list[Head]:
    """All heads, the largest score in size first, ties in the order of the model; what has no score comes last."""
    size_LH = np.nan_to_num(np.abs(score_LH), nan=-1.0)
    return [Head(*divmod(int(place), score_LH.shape[1])) for place in np.argsort(-size_LH, axis=None, kind="stable")]


def spread(values: Iterable[float], digits: int = 2) -> str:
    """A mean ± standard deviation over seeds; how many have no value where some have none."""
    kept = np.array([value for value in values if np.isfinite(value)], float)
    if not len(kept):
        return "–"
    error = f"±{kept.std(ddof=1):.{digits}f}" if len(kept) > 1 else ""
    return f"{kept.mean():.{digits}f}{error}"


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table for the remarks of a report."""
    rows = ([f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.itertuples(index=False))
    return "\n".join("| " + " | ".join(row) + " |" for row in [[*map(str, table.columns)], ["---"] * len(table.columns), *rows])
