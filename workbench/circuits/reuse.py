"""Do two tasks use the same heads? Overlap of circuits, what chance and layers alone would give, how stable a circuit is, and tables over many tasks."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from workbench.circuits.statistics import false_discoveries
from workbench.errors import InputError

PERMUTATIONS = 2000


@dataclass(frozen=True)
class Overlap:
    """How much two sets of heads share, against chance.

    `shared` of `first` and `second` heads among `heads`; `jaccard` is shared/union and `containment` shared/smaller (both 0–1, and 0 for two empty sets).
    `expected` is what two random sets of these sizes share, and `p` how often they share as much or more (hypergeometric; Merullo et al. 2024's 25 of 28
    and 29 heads among 384 have 2.1 expected). `layer_expected` and `p_layer` are the same for random sets with as many heads in every layer as these (drawn;
    p at least 1/(draws + 1)): late layers matter for every task, so this is the fairer null. `excess` is the Jaccard index less its mean under it.
    """

    shared: int
    first: int
    second: int
    heads: int
    jaccard: float
    containment: float
    expected: float
    p: float
    layer_expected: float
    p_layer: float
    excess: float


def overlap(
    first_LH: Bool[np.ndarray, "L H"],
    second_LH: Bool[np.ndarray, "L H"],
    without_LH: Bool[np.ndarray, "L H"] | None = None,
    draws: int = PERMUTATIONS,
    seed: int = 0,
) -> Overlap:
    """Compare two sets of heads of one model, given as tables; `without_LH` are heads that are left out of both, and of what chance draws from."""
    among_LH = np.ones_like(first_LH) if without_LH is None else ~without_LH
    first_LH, second_LH = first_LH & among_LH, second_LH & among_LH
    shared, sizes, total = int((first_LH & second_LH).sum()), (int(first_LH.sum()), int(second_LH.sum())), int(among_LH.sum())
    among_L, a_L, b_L = among_LH.sum(1), first_LH.sum(1), second_LH.sum(1)
    drawn_S = np.random.default_rng(seed).hypergeometric(a_L, among_L - a_L, b_L, (draws, len(among_L))).sum(1)
    jaccard, chance_S = (part / np.maximum(sum(sizes) - part, 1) for part in (shared, drawn_S))
    return Overlap(
        shared=shared,
        first=sizes[0],
        second=sizes[1],
        heads=total,
        jaccard=float(jaccard),
        containment=shared / max(min(sizes), 1),
        expected=sizes[0] * sizes[1] / max(total, 1),
        p=float(stats.hypergeom.sf(shared - 1, total, *sizes)),
        layer_expected=float(drawn_S.mean()),
        p_layer=float((1 + (drawn_S >= shared).sum()) / (1 + draws)),
        excess=float(jaccard - chance_S.mean()),
    )


def chance_jaccard(share: float) -> float:
    """About the Jaccard index of two random sets that each hold this share of all heads: K/(2 − K). 0.01 for 2%, 0.053 for 10%, 0.11 for 20%."""
    if not 0 <= share <= 1:
        raise InputError(f"a share of heads lies between 0 and 1, it is not {share}")
    return share / (2 - share)


@dataclass(frozen=True)
class Agreement:
    """How alike two tasks weigh all heads.

    `weighted` is Σmin/Σmax of the sizes of the scores (0–1); `spearman` and `kendall` are rank correlations (−1 to 1, NaN where all scores of a task are
    equal), `p` is Spearman's p-value.
    """

    weighted: float
    spearman: float
    kendall: float
    p: float


def agreement(first_LH: Float[np.ndarray, "L H"], second_LH: Float[np.ndarray, "L H"]) -> Agreement:
    """Compare the scores of all heads on two tasks. Raises `InputError` for scores that are not finite."""
    a, b = first_LH.ravel().astype(np.float64), second_LH.ravel().astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("scores must be finite numbers to be compared")
    most = np.maximum(abs(a), abs(b)).sum()
    weighted = float(np.minimum(abs(a), abs(b)).sum() / most) if most else 0.0
    if not (np.ptp(a) and np.ptp(b)):
        return Agreement(weighted, float("nan"), float("nan"), float("nan"))
    spearman = stats.spearmanr(a, b)
    return Agreement(weighted, float(spearman.statistic), float(stats.kendalltau(a, b).statistic), float(spearman.pvalue))


def top(score_LH: Float[np.ndarray, "L H"], count: int) -> Bool[np.ndarray, "L H"]:
    """The `count` heads of the largest scores in size; ties go to the earlier layer, then the smaller index. Raises `InputError` for more than there are."""
    if not 0 <= count <= score_LH.size:
        raise InputError(f"of {score_LH.size} heads, {count} cannot be taken")
    chosen = np.zeros(score_LH.size, bool)
    chosen[np.argsort(-abs(score_LH.ravel()), kind="stable")[:count]] = True
    return chosen.reshape(score_LH.shape)


@dataclass(frozen=True)
class Ceiling:
    """The Jaccard index of a circuit with itself, found from two disjoint halves of the prompts: mean and standard deviation over splits, 0–1.

    Overlap with another task cannot well exceed it: give observed/ceiling. With few prompts a low ceiling means an unstable circuit.
    """

    mean: float
    sd: float
    splits: int


def split_half(effect_NLH: Float[np.ndarray, "N L H"], count: int, splits: int = 100, seed: int = 0) -> Ceiling:
    """The ceiling for circuits of the `count` heads of the largest mean effect. Raises `InputError` for fewer than two prompts, and for no heads."""
    if len(effect_NLH) < 2 or count < 1:
        raise InputError(f"halves need two prompts and one head at least, not {len(effect_NLH)} and {count}")
    rng, half, found = np.random.default_rng(seed), len(effect_NLH) // 2, []
    for _ in range(splits):
        order = rng.permutation(len(effect_NLH))
        one, other = (top(effect_NLH[rows].mean(0), count) for rows in (order[:half], order[half:]))
        found.append((one & other).sum() / (one | other).sum())
    return Ceiling(float(np.mean(found)), float(np.std(found)), splits)


def resampled_jaccard(
    first_NLH: Float[np.ndarray, "N L H"], second_NLH: Float[np.ndarray, "M L H"], count: int, draws: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the Jaccard index of the `count` strongest heads of two tasks, over samples of their prompts with replacement."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        one, other = (top(effect[rng.integers(len(effect), size=len(effect))].mean(0), count) for effect in (first_NLH, second_NLH))
        found.append((one & other).sum() / max((one | other).sum(), 1))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def overlaps(
    circuits: Mapping[str, Bool[np.ndarray, "L H"]],
    without_LH: Bool[np.ndarray, "L H"] | None = None,
    ceilings: Mapping[str, Ceiling] | None = None,
    method: str = "by",
    seed: int = 0,
) -> pd.DataFrame:
    """All pairs of tasks, one row each: `first_task`, `second_task`, the fields of `Overlap`, and `q` and `q_layer`, the p-values adjusted over the pairs.

    Pairs of the same tasks depend on each other, hence Benjamini–Yekutieli by default. `without_LH` are heads that matter on unrelated text, which would make
    any two tasks alike. With `ceilings` by task, `ceiling` is the mean of the two and `of_ceiling` the Jaccard index as a share of it. Raises `InputError` for
    fewer than two tasks.
    """
    if len(circuits) < 2:
        raise InputError("reuse is a matter of two tasks or more")
    rows = []
    for a, b in itertools.combinations(circuits, 2):
        row = {"first_task": a, "second_task": b, **vars(overlap(circuits[a], circuits[b], without_LH, seed=seed))}
        if ceilings is not None:
            row["ceiling"] = (ceilings[a].mean + ceilings[b].mean) / 2
            row["of_ceiling"] = row["jaccard"] / row["ceiling"] if row["ceiling"] else float("nan")
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(**{q: false_discoveries(table[p].to_numpy(float), method) for p, q in (("p", "q"), ("p_layer", "q_layer"))})
