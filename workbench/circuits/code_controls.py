"""How much of a score by integer codes is the task? A null within pairs, baselines, information about the label, seeds, and sizes.

The method's score grows with how much a head's writes vary, task or no task; its paper has none of these controls.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from workbench.circuits.codes import Codes, CodeSettings, encode, node_scores, seen
from workbench.circuits.statistics import auroc, average_precision, curve
from workbench.errors import InputError

PERMUTATIONS = 200


@dataclass(frozen=True, eq=False)
class Null:
    """A measure of every head [L, H] against the same with labels swapped at random within pairs.

    `p_LH` (0–1, at least 1/(permutations + 1)) is how often a swapped labelling gives at least as much, ties counted, so that it is cautious where scores
    are small counts; `excess_LH` is the measure less its mean over swapped labellings: 0 on average for a head that knows nothing of the label,
    however much it varies.
    """

    score_LH: Float[np.ndarray, "L H"]
    p_LH: Float[np.ndarray, "L H"]
    excess_LH: Float[np.ndarray, "L H"]


def label_null(codes: Codes, permutations: int = PERMUTATIONS, seed: int = 0, normalise: bool = False) -> Null:
    """`node_scores` under the null that positive and negative examples of a pair can be exchanged. The autoencoder, which sees no labels, stays.

    Raises `InputError` unless every positive example has its negative one.
    """
    swapped = [node_scores(one, normalise) for one in _swapped(codes, permutations, seed)]
    return _against(node_scores(codes, normalise), np.array(swapped))


def information(codes: Codes, permutations: int = PERMUTATIONS, seed: int = 0) -> Null:
    """Mutual information of a head's code and the label, in bits, and what swapped labels give: the difference is free of the bias of few examples.

    A replacement of the node score that is ours: 0–1 before the correction, 1 if the code tells the label for certain. It credits also codes that
    are only seen on negative examples, and codes that are more frequent on one side. Raises as `label_null`.
    """
    swapped = [_bits(one) for one in _swapped(codes, permutations, seed)]
    return _against(_bits(codes), np.array(swapped))


def _swapped(codes: Codes, permutations: int, seed: int) -> list[Codes]:
    positive_PLH, negative_PLH = codes.pairs
    both_NLH, rng = np.concatenate([positive_PLH, negative_PLH]), np.random.default_rng(seed)
    turned = rng.integers(0, 2, (permutations, len(positive_PLH))).astype(bool)
    return [replace(codes, code_NLH=both_NLH, positive_N=np.concatenate([~turned_P, turned_P])) for turned_P in turned]


def _against(score_LH: np.ndarray, swapped_SLH: np.ndarray) -> Null:
    p_LH = (1 + (swapped_SLH >= score_LH - 1e-12).sum(0)) / (1 + len(swapped_SLH))
    return Null(score_LH, p_LH, score_LH - swapped_SLH.mean(0))


def _bits(codes: Codes) -> np.ndarray:
    """Mutual information [L, H], from counts."""
    count, layers, heads = codes.code_NLH.shape
    size = codes.settings.latents
    cell_NM = codes.code_NLH.reshape(count, -1) + size * np.arange(layers * heads)
    counted = [
        np.bincount(cell_NM[rows].ravel(), minlength=size * layers * heads).reshape(layers, heads, size) for rows in (codes.positive_N, ~codes.positive_N)
    ]
    share_CLHF = np.stack(counted) / count
    expected_CLHF = share_CLHF.sum(0) * np.array([codes.positive_N.mean(), 1 - codes.positive_N.mean()]).reshape(2, 1, 1, 1)
    ratio_CLHF = np.divide(share_CLHF, expected_CLHF, out=np.ones_like(share_CLHF), where=share_CLHF > 0)
    return (share_CLHF * np.log2(ratio_CLHF)).sum((0, -1))


def norms(write_NLHD: Float[np.ndarray, "N L H D"]) -> Float[np.ndarray, "L H"]:
    """The baseline of size: the mean length of what a head writes. A method that ranks heads no better than this has found loud heads."""
    return np.linalg.norm(write_NLHD, axis=-1).mean(0).astype(np.float64)


def distinct(codes: Codes) -> Float[np.ndarray, "L H"]:
    """The baseline of variety: how many different codes a head has on all examples, whatever their label."""
    positive_LHF, negative_LHF = seen(codes)
    return (positive_LHF | negative_LHF).sum(-1).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Stability:
    """Node scores by seed of the autoencoder [S, L, H], and the mean Spearman correlation between two seeds (−1 to 1; NaN where a score is constant)."""

    score_SLH: Float[np.ndarray, "S L H"]
    correlation: float


def stability(
    write_NLHD: Float[np.ndarray, "N L H D"], positive_N: Bool[np.ndarray, " N"], settings: CodeSettings | None = None, seeds: Sequence[int] = range(5)
) -> Stability:
    """How much the ranking of heads depends on the autoencoder's seed: its first weights and the examples that it is trained on.

    Raises `InputError` for fewer than two seeds, and as `encode`.
    """
    if len(seeds) < 2:
        raise InputError("stability is measured over two seeds or more")
    chosen = settings or CodeSettings()
    score_SLH = np.array([node_scores(encode(write_NLHD, positive_N, replace(chosen, seed=seed))) for seed in seeds])
    flat = score_SLH.reshape(len(seeds), -1)
    found = [stats.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else float("nan") for a, b in itertools.combinations(flat, 2)]
    return Stability(score_SLH, float(np.mean(found)))


def sensitivity(
    write_NLHD: Float[np.ndarray, "N L H D"],
    positive_N: Bool[np.ndarray, " N"],
    truth_LH: Bool[np.ndarray, "L H"],
    settings: CodeSettings | None = None,
    examples: Sequence[int] = (5, 10, 25, 50, 100),
    latents: Sequence[int] = (200,),
    seeds: Sequence[int] = range(3),
    pairs: Sequence[int] = (),
) -> pd.DataFrame:
    """How well the node score finds a known truth, by training examples × latents × seed × pairs of examples that are coded (all by default).

    One row each: `examples`, `latents`, `seed`, `pairs`, `auroc`, `average_precision`, `f1` and `f1_released` at their best thresholds, `codes` (how
    many different ones a head has, on average) and `loss`. In the paper fewer training examples did better. Raises as `encode` and `curve`.
    """
    chosen, rows = settings or CodeSettings(), []
    for count, size, seed in itertools.product(examples, latents, seeds):
        codes = encode(write_NLHD, positive_N, replace(chosen, examples=count, latents=size, seed=seed))
        for used in pairs or (len(codes.pairs[0]),):
            part = codes.only(used)
            score_LH = node_scores(part)
            measured = curve(score_LH, truth_LH)
            keys = {"examples": count, "latents": size, "seed": seed, "pairs": used}
            ranked = {"auroc": auroc(score_LH, truth_LH), "average_precision": average_precision(score_LH, truth_LH)}
            best = {"f1": float(measured.f1.max()), "f1_released": float(measured.f1_released.max())}
            rows.append({**keys, **ranked, **best, "codes": float(distinct(part).mean()), "loss": codes.loss})
    return pd.DataFrame(rows)
