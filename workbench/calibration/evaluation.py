"""Does calibrating the kept heads help on questions that chose none of them? Held-out accuracy beside the plain model, all heads, and as many random heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from scipy.stats import binomtest

from workbench.attention import Tap, tapped
from workbench.calibration.crew import Crew
from workbench.calibration.measuring import batched
from workbench.calibration.taps import WAY
from workbench.edits import Calibrate, Edit
from workbench.heads import Head
from workbench.models import HFModel
from workbench.questions import Batch, Encoded, feed
from workbench.scores import bootstrap_interval

COLUMNS = {
    "heads": "which heads are calibrated: none, kept, all (of every layer, ACT's control), or random (as many as are kept, from the same candidates)",
    "seed": "of a random choice",
    "count": "how many heads",
    "task": "the task; `mean` is the mean over tasks",
    "n": "held-out questions",
    "accuracy": "share answered rightly, 0–1, with a 95% interval (Wilson) in `low` and `high`; none for `mean`",
    "difference": "change of accuracy, with a 95% interval (paired bootstrap over the questions)",
    "fixed": "answers turned right",
    "broken": "answers turned wrong",
    "p": "McNemar's exact test, two-sided, of fixed against broken",
    "sinks": "sinks per question, in all heads calibrated",
}
"""What the columns of the held-out table mean."""


def mcnemar(fixed: int, broken: int) -> float:
    """McNemar's exact p, two-sided: the chance of so unequal a split or one more so, were changed answers as often fixed as broken; 1 if none changed."""
    return float(binomtest(min(fixed, broken), fixed + broken, 0.5).pvalue) if fixed + broken else 1.0


def answers(model: HFModel | Crew, questions: Sequence[Encoded], edits: Sequence[Edit] = ()) -> tuple[Bool[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Which questions are answered rightly under the edits, and how many sinks the first of them found in each."""
    return _every_way(Crew.of(model), questions, [edits])[0]


def _every_way(crew: Crew, questions: Sequence[Encoded], ways: Sequence[Sequence[Edit]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """`answers` under the edits of each way; a batch under the edits of one is a task."""
    parts = batched(crew.device, questions, range(len(questions)))
    found = iter(crew.run("held-out answers", _answered, [{"batch": batch, "edits": edits} for edits in ways for batch in parts]))
    every = []
    for _ in ways:
        right_N, sinks_N = np.zeros(len(questions), bool), np.zeros(len(questions), np.int64)
        for batch in parts:
            right_N[list(batch.numbers)], sinks_N[list(batch.numbers)] = next(found)
        every.append((right_N, sinks_N))
    return every


def _answered(model: HFModel, batch: Batch, edits: Sequence[Edit]) -> tuple[Bool[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    ids_BT, how = feed(model, batch.prompts)
    tap = Tap(batch.prompts, (), edits, WAY)
    with torch.inference_mode(), tapped(model, tap) as hf:
        logits_BV = hf(ids_BT, use_cache=False, logits_to_keep=1, **how).logits[:, -1]
    count = batch.prompts.count
    return batch.right(logits_BV), tap.memory.found(0, model.shape, count).sum((1, 2)) if edits else np.zeros(count, np.int64)


def conditions(kept: Sequence[Head], candidates: Sequence[Head], seeds: Sequence[int]) -> Iterator[tuple[str, int | None, tuple[Head, ...] | None]]:
    """Name, seed and heads of each way to calibrate; None stands for all heads. Without kept heads, only all."""
    if kept:
        yield "kept", None, tuple(kept)
    yield "all", None, None
    for seed in seeds if kept else ():
        place = np.random.default_rng(seed).permutation(len(candidates))[: len(kept)]
        yield "random", seed, tuple(sorted(candidates[number] for number in place))


def evaluate(
    model: HFModel | Crew,
    questions: Mapping[str, Sequence[Encoded]],
    edit: Calibrate,
    kept: Sequence[Head],
    candidates: Sequence[Head],
    seeds: Sequence[int] = (0, 1, 2),
) -> pd.DataFrame:
    """The held-out table (`COLUMNS`): a row for every way to calibrate and every task, and one for the mean over tasks."""
    crew, every = Crew.of(model), [one for task in questions.values() for one in task]
    parts = np.split(np.arange(len(every)), np.cumsum([len(task) for task in questions.values()])[:-1])
    named = dict(zip(questions, parts, strict=True))
    ways = list(conditions(kept, candidates, seeds))
    (plain_N, sinks_N), *found = _every_way(crew, every, [(), *((replace(edit, heads=heads),) for _, _, heads in ways)])
    rows = _rows({"heads": "none", "seed": None, "count": 0}, named, plain_N, plain_N, sinks_N)
    for (name, seed, heads), (right_N, sinks_N) in zip(ways, found, strict=True):
        count = crew.card.shape.n_layers * crew.card.shape.n_heads if heads is None else len(heads)
        rows += _rows({"heads": name, "seed": seed, "count": count}, named, right_N, plain_N, sinks_N)
    return pd.DataFrame(rows)


def _rows(shown: dict, tasks: Mapping[str, np.ndarray], right_N: np.ndarray, plain_N: np.ndarray, sinks_N: np.ndarray) -> list[dict]:
    rows = []
    for task, index in tasks.items():
        interval = binomtest(int(right_N[index].sum()), len(index)).proportion_ci(method="wilson")
        change_N = right_N[index].astype(float) - plain_N[index]
        known = {"n": len(index), "accuracy": float(right_N[index].mean()), "low": float(interval.low), "high": float(interval.high)}
        rows.append({**shown, "task": task, **known, **_compared(change_N, change_N), "sinks": float(sinks_N[index].mean())})
    # Each task weighs the same: its questions' changes are scaled so that their mean over all questions is the mean over tasks.
    weight = {task: len(right_N) / (len(tasks) * len(index)) for task, index in tasks.items()}
    change_N = np.concatenate([(right_N[index].astype(float) - plain_N[index]) for index in tasks.values()])
    scaled_N = np.concatenate([weight[task] * (right_N[index].astype(float) - plain_N[index]) for task, index in tasks.items()])
    known = {"n": len(right_N), "accuracy": float(np.mean([right_N[index].mean() for index in tasks.values()])), "low": np.nan, "high": np.nan}
    return [*rows, {**shown, "task": "mean", **known, **_compared(change_N, scaled_N), "sinks": float(sinks_N.mean())}]


def _compared(change_N: np.ndarray, scaled_N: np.ndarray) -> dict[str, float]:
    low, high = (float(edge[0, 0]) for edge in bootstrap_interval(scaled_N[:, None, None]))
    fixed, broken = int((change_N > 0).sum()), int((change_N < 0).sum())
    return {
        "difference": float(scaled_N.mean()), "difference_low": low, "difference_high": high, "fixed": fixed, "broken": broken, "p": mcnemar(fixed, broken),
    }  # fmt: skip
