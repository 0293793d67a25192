"""How far is an approximation to be believed? The best edges by a first-order score are measured exactly, and so is a random sample of the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from workbench.circuits import statistics
from workbench.circuits.attribution import EdgeScores
from workbench.circuits.edges import Edge, exact_effects
from workbench.circuits.patching import Progress
from workbench.circuits.tasks import TaskSet
from workbench.models import HFModel
from workbench.scores import rank_agreement

COLUMNS = {
    "edge": "sender -> receiver",
    "chosen": "top: among the best by score; sample: drawn at random from the others",
    "score": "first-order change of the metric by patching the edge, mean over prompts",
    "exact": "measured change",
    "low": "lower end of its 95% bootstrap interval over prompts",
    "high": "upper end",
    "p": "sign-flip p-value of the measured change",
    "q": "the same with the false-discovery rate held over the edges measured, not over those that could have been",
    "n": "prompts",
}
"""What the columns of `Verified.table` mean."""


@dataclass(frozen=True, eq=False)
class Verified:
    """Edges measured exactly: `table` (`COLUMNS`), rank agreement of scores and effects among the top and in the sample, and what the scores `missed`.

    `missed` tells the share of the sample whose measured effect is at least `threshold` (a change of the metric), with a 95% interval, and how many edges
    there are that were not measured.
    """

    table: pd.DataFrame
    agreement: Mapping[str, Mapping[str, float]]
    missed: Mapping[str, float]


def verify(
    model: HFModel,
    data: TaskSet,
    scores: EdgeScores,
    *,
    top: int | Sequence[Edge] = 50,
    sample: int = 100,
    share: float = 0.01,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Verified:
    """Measure the `top` edges by |score| (or those that are named) and a random `sample` of all others.

    Measured on the prompts that the scores come from, the best are flattered: give prompts that were held out.
    An edge counts as missed if it moves the metric by at least `share` of the difference between clean and corrupted prompts.
    Raises `InputError` as `exact_effects` does.
    """
    ranked = scores.ranked()
    best = ranked[:top] if isinstance(top, int) else list(top)
    named = set(best)
    rest = [edge for edge in ranked if edge not in named]
    drawn = np.random.default_rng(seed).permutation(len(rest))[:sample]
    chosen = [*best, *(rest[place] for place in sorted(drawn))]
    direction, metric = scores.facts["direction"], scores.facts["metric"]
    effect_NE = exact_effects(model, data, chosen, direction=direction, metric=metric, progress=progress)
    low, high = statistics.interval(effect_NE, seed=seed)
    p = statistics.sign_flips(effect_NE, seed=seed)
    table = pd.DataFrame({
        "edge": [scores.graph.name(*edge) for edge in chosen],
        "chosen": ["top"] * len(best) + ["sample"] * len(drawn),
        "score": [scores.mean_UW[edge] for edge in chosen],
        "exact": effect_NE.mean(0),
        "low": low,
        "high": high,
        "p": p,
        "q": statistics.false_discoveries(p),
        "n": len(effect_NE),
    })[list(COLUMNS)]  # fmt: skip
    return Verified(table, _agreement(table), _missed(table, len(rest), share * abs(float(scores.other_N.mean() - scores.base_N.mean()))))


def _agreement(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    found = {}
    for name, rows in {"top": table[table["chosen"] == "top"], "sample": table[table["chosen"] == "sample"]}.items():
        if len(rows) > 2:
            k = min(10, len(rows) // 2)
            found[name] = {"edges": len(rows), **rank_agreement(rows["score"].abs().to_numpy(), rows["exact"].abs().to_numpy(), k)}
    return found


def _missed(table: pd.DataFrame, rest: int, threshold: float) -> dict[str, float]:
    sample = table[table["chosen"] == "sample"]
    if sample.empty:
        return {"threshold": threshold, "not_measured": rest, "sampled": 0, "rate": np.nan, "low": np.nan, "high": np.nan}
    count = int((sample["exact"].abs() >= threshold).sum())
    interval = binomtest(count, len(sample)).proportion_ci(0.95, "wilson")
    return {
        "threshold": threshold,
        "not_measured": rest - len(sample),
        "sampled": len(sample),
        "rate": count / len(sample),
        "low": float(interval.low),
        "high": float(interval.high),
    }
