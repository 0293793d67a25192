"""How far are measured effects, and rankings by them, to be believed? P-values, false discoveries, intervals, and agreement with a known truth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from workbench.errors import InputError, unknown

EXACT = 14
"""Up to so many prompts all sign flips are counted; beyond it, drawn."""

CORRECTIONS = {
    "bh": "Benjamini and Hochberg 1995: tests that are independent or positively dependent",
    "by": "Benjamini and Yekutieli 2001: tests that depend on each other in any way; costs a factor of about ln N",
}


def sign_flips(effect: Float[np.ndarray, "N ..."], draws: int = 10_000, seed: int = 0) -> Float[np.ndarray, "..."]:
    """Two-sided p-value per head that its paired effects [N, …] have a mean of 0: how often flipping signs at random gives a mean as far from 0.

    0–1. Exact for up to 14 prompts (the smallest value is 2/2ᴺ); else from `draws` flips, the observed one counted in, so at least 1/(draws + 1). All
    heads share the flips, as they share the prompts. Valid if the effects of a head without influence are symmetric about 0; effects that are all 0 give 1.
    Raises `InputError` without prompts and for values that are not finite.
    """
    flat_NH = _rows(effect)
    count = len(flat_NH)
    if count <= EXACT:
        sign_SN = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        drawn_SN = np.random.default_rng(seed).integers(0, 2, (draws, count)) * 2.0 - 1.0
        sign_SN = np.concatenate([np.ones((1, count)), drawn_SN])
    observed_H, slack_H = np.abs(flat_NH.sum(0)), 1e-9 * np.abs(flat_NH).sum(0)  # flips that give the same sum differ by rounding
    reached_H = sum((np.abs(part_SN @ flat_NH) >= observed_H - slack_H).sum(0) for part_SN in np.array_split(sign_SN, 1 + len(sign_SN) // 1024))
    return (reached_H / len(sign_SN)).reshape(effect.shape[1:])


def false_discoveries(p: Float[np.ndarray, "*heads"], method: str = "bh") -> Float[np.ndarray, "*heads"]:
    """Adjusted p-values over all heads together: label those ≤ α, and on average at most the share α of the labels is false.

    0–1, of the same shape. `method` is one of `CORRECTIONS`. Raises `InputError` for an unknown one and for values that are no probabilities.
    """
    if method not in CORRECTIONS:
        raise unknown("correction", method, CORRECTIONS)
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError("p-values lie between 0 and 1")
    return np.asarray(stats.false_discovery_control(p, axis=None, method=method)).reshape(p.shape)


def interval(
    effect: Float[np.ndarray, "N ..."], level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Lower and upper bound of each head's mean effect: percentiles over `draws` samples of N prompts, with replacement (Efron's bootstrap).

    All heads share the samples. Raises `InputError` without prompts, for values that are not finite, and for a level outside 0–1.
    """
    if not 0 < level < 1:
        raise InputError(f"the level of an interval lies between 0 and 1, it is not {level}")
    flat_NH = _rows(effect)
    count = len(flat_NH)
    times_SN = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws) / count
    low_H, high_H = np.quantile(times_SN @ flat_NH, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low_H.reshape(effect.shape[1:]), high_H.reshape(effect.shape[1:])


def share_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound of a share of `count` items, 0–1 (Wilson's score interval), which holds at shares of 0 and 1 too, where a bootstrap has no width.

    `share` may be the mean of several runs on the same items; the interval is that of one. Raises `InputError` without items and for a share outside 0–1.
    """
    if count < 1 or not 0 <= share <= 1:
        raise InputError(f"an interval is of a share between 0 and 1 of at least one item, not of {share} of {count}")
    z = float(stats.norm.isf((1 - level) / 2))
    middle, half = share + z * z / (2 * count), z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, (middle - half) / (1 + z * z / count)), min(1.0, (middle + half) / (1 + z * z / count))


def _rows(effect: Float[np.ndarray, "N ..."]) -> Float[np.ndarray, "N H"]:
    """One row per prompt, in double precision."""
    if not len(effect):
        raise InputError("effects of at least one prompt are needed")
    if not np.isfinite(effect).all():
        raise InputError("effects must be finite numbers")
    return effect.reshape(len(effect), -1).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Curve:
    """What a ranking finds as its threshold falls: one entry per distinct score, the highest first; of `size` items, `positives` are true.

    `found` and `wrong` [K] count the true and the other items that score at least `threshold` [K].
    """

    threshold: Float[np.ndarray, " K"]
    found: Int[np.ndarray, " K"]
    wrong: Int[np.ndarray, " K"]
    positives: int
    size: int

    @property
    def recall(self) -> Float[np.ndarray, " K"]:
        """Share of the true items that are found (true-positive rate), 0–1."""
        return self.found / self.positives

    @property
    def fallout(self) -> Float[np.ndarray, " K"]:
        """Share of the other items that are taken for true (false-positive rate), 0–1."""
        return self.wrong / (self.size - self.positives)

    @property
    def precision(self) -> Float[np.ndarray, " K"]:
        """Share of what is found that is true, 0–1."""
        return self.found / (self.found + self.wrong)

    @property
    def f1(self) -> Float[np.ndarray, " K"]:
        """Harmonic mean of precision and recall, 0–1."""
        return 2 * self.found / (self.found + self.wrong + self.positives)

    @property
    def f1_released(self) -> Float[np.ndarray, " K"]:
        """What the figures of O'Neill and Bui 2024 (arXiv 2405.12522) call F1, by their code: the harmonic mean of recall and 1 − fallout, 0–1.

        Where few items are true it lies far above `f1`: with 26 true heads of 144, recall 0.8 and fallout 0.2 it is 0.80, and `f1` is 0.59.
        """
        kept = 1 - self.fallout
        return 2 * self.recall * kept / np.maximum(self.recall + kept, np.finfo(float).tiny)


def curve(score: Float[np.ndarray, "*items"], truth: Bool[np.ndarray, "*items"]) -> Curve:
    """The curve of a ranking; items that tie are found together. Raises `InputError` if all items are true or none is, and for NaN."""
    if np.isnan(score).any():
        raise InputError("scores must be numbers; leave out what was not measured")
    if truth.all() or not truth.any():
        raise InputError(f"a ranking is judged by true and by other items; here {int(truth.sum())} of {truth.size} are true")
    order = np.argsort(-score.ravel(), kind="stable")
    sorted_score, sorted_truth = score.ravel()[order], truth.ravel()[order]
    last = np.append(np.flatnonzero(sorted_score[1:] != sorted_score[:-1]), len(order) - 1)
    found, wrong = np.cumsum(sorted_truth)[last], np.cumsum(~sorted_truth)[last]
    return Curve(sorted_score[last].astype(np.float64), found, wrong, int(truth.sum()), truth.size)


def auroc(score: Float[np.ndarray, "*items"], truth: Bool[np.ndarray, "*items"]) -> float:
    """The chance that a true item scores above another one, ties counting half: the area under the ROC curve.

    0–1; 0.5 for a random ranking. Raises as `curve`.
    """
    seen = curve(score, truth)
    return float(np.trapezoid(np.append(0, seen.recall), np.append(0, seen.fallout)))


def average_precision(score: Float[np.ndarray, "*items"], truth: Bool[np.ndarray, "*items"]) -> float:
    """Precision at each threshold, weighted by how much recall rises there, as scikit-learn defines it; ties are found together.

    0–1; about the share of true items for a random ranking. It tells rankings of few true items apart where `auroc` is near 1 for all.
    Raises as `curve`.
    """
    seen = curve(score, truth)
    return float(np.sum(np.diff(seen.recall, prepend=0) * seen.precision))


def precision_at_truth(score: Float[np.ndarray, "*items"], truth: Bool[np.ndarray, "*items"]) -> float:
    """Precision of the first |truth| items: the share of them that are true; where the last ones tie, its mean over their orders.

    0–1; the share of true items for a random ranking. Raises as `curve`.
    """
    seen = curve(score, truth)
    taken = seen.found + seen.wrong
    at = int(np.argmax(taken >= seen.positives))
    before, found_before = (int(taken[at - 1]), int(seen.found[at - 1])) if at else (0, 0)
    share = (seen.positives - before) / (taken[at] - before)
    return float((found_before + share * (seen.found[at] - found_before)) / seen.positives)


@dataclass(frozen=True)
class Recovery:
    """How well a ranking finds a known truth: three numbers from 0 to 1, and the share of true items, which is what chance gives the last two."""

    auroc: float
    average_precision: float
    precision_at_truth: float
    chance: float


def recovery(score: Float[np.ndarray, "*items"], truth: Bool[np.ndarray, "*items"]) -> Recovery:
    """All three measures of a ranking against a truth; for effects with a sign, give their size. Raises as `curve`."""
    measured = auroc(score, truth), average_precision(score, truth), precision_at_truth(score, truth)
    return Recovery(*measured, chance=float(truth.mean()))
