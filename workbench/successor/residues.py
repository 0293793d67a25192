"""Do features and a linear probe agree on the number mod 10, and do other classes use the same ones?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from workbench.errors import InputError
from workbench.successor.features import RESIDUES, Dictionary, Representations


@dataclass(frozen=True, eq=False)
class Modal:
    """The modal feature of each residue [10] (−1 where no token has it), and the share of tokens whose strongest feature is that of their residue.

    `coverage` is that share, 0–1; `chance` the same with residues dealt to the wrong tokens, the mean of 20 times.
    """

    feature: Int[np.ndarray, "10"]
    coverage: float
    chance: float


def modal(dictionary: Dictionary, found: Representations, chosen: Bool[np.ndarray, " N"] | None = None, seed: int = 0) -> Modal:
    """The feature that is most often the strongest among the tokens of each residue; 58.5% coverage in the paper.

    Strongest: furthest above the feature's mean over the tokens, so that one that is active for all does not count. This reading of "modal" is a
    reconstruction. Raises `InputError` if no token is chosen.
    """
    chosen = np.ones(len(found.number), bool) if chosen is None else chosen
    if not chosen.any():
        raise InputError("no token is chosen, so no feature can be modal")
    active_NF, residue_N = dictionary.active_NF[chosen], found.residue[chosen]
    strongest_N = (active_NF - active_NF.mean(0)).argmax(1)
    rng = np.random.default_rng(seed)
    dealt = [_covered(strongest_N, rng.permutation(residue_N))[1] for _ in range(20)]
    feature, coverage = _covered(strongest_N, residue_N)
    return Modal(feature, coverage, float(np.mean(dealt)))


def _covered(strongest_N: np.ndarray, residue_N: np.ndarray) -> tuple[np.ndarray, float]:
    feature, hits = np.full(RESIDUES, -1), 0
    for residue in np.unique(residue_N):
        values, counts = np.unique(strongest_N[residue_N == residue], return_counts=True)
        feature[residue], hits = values[counts.argmax()], hits + counts.max()
    return feature, float(hits / len(residue_N))


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear map to the residue: `direction` [10, D] and what is added [10]; the largest output is the prediction."""

    direction_RD: Float[np.ndarray, "10 D"]
    bias_R: Float[np.ndarray, "10"]

    def accuracy(self, found: Representations) -> float:
        """The share of tokens, 0–1, whose residue it tells; NaN for no tokens."""
        guess_N = (found.x_ND @ self.direction_RD.T + self.bias_R).argmax(1)
        return float((guess_N == found.residue).mean()) if len(guess_N) else float("nan")


def linear_probe(found: Representations, ridge: float = 0.1) -> LinearProbe:
    """Ridge regression to the residue as one of ten, in closed form. `ridge` is in units of the mean eigenvalue of the tokens' Gram matrix."""
    x_ND = found.x_ND.astype(float)
    mean_D, target_NR = x_ND.mean(0), np.eye(RESIDUES)[found.residue]
    gram_NN = (x_ND - mean_D) @ (x_ND - mean_D).T
    penalty = max(ridge * np.trace(gram_NN) / len(gram_NN), 1e-12)
    dual_NR = np.linalg.solve(gram_NN + penalty * np.eye(len(gram_NN)), target_NR - target_NR.mean(0))
    direction_RD = dual_NR.T @ (x_ND - mean_D)
    return LinearProbe(direction_RD, target_NR.mean(0) - direction_RD @ mean_D)


def agreement(probe: LinearProbe, dictionary: Dictionary, found: Modal) -> float:
    """Mean cosine, −1 to 1, of the probe's direction and the direction of the modal feature of each residue that has one; 0.71 in the paper."""
    there = found.feature >= 0
    feature_RD, direction_RD = dictionary.direction_FD[found.feature[there]], probe.direction_RD[there]
    length_R = np.linalg.norm(feature_RD, axis=1) * np.linalg.norm(direction_RD, axis=1)
    return float(np.mean((feature_RD * direction_RD).sum(1) / np.maximum(length_R, 1e-12)))


def transfer(found: Representations, trained: Sequence[str] = ("numbers",), held_out: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """How well a probe trained on some classes tells the residue in others: class, tokens, `accuracy` and `majority` (of the commonest residue), 0–1.

    The trained classes keep a part aside, which their own row stands on (as "trained classes, tokens held out"). Residues that the trained classes
    lack cannot be told. Raises `InputError` if the trained classes have no token.
    """
    inside = np.flatnonzero(found.of(trained))
    if not len(inside):
        raise InputError(f"no token of the classes to be trained on: {', '.join(trained)}")
    held = np.random.default_rng(seed).permutation(inside)[: round(held_out * len(inside))]
    probe = linear_probe(found.only(np.isin(np.arange(len(found.number)), np.setdiff1d(inside, held))))
    parts = {"trained classes, tokens held out": np.isin(np.arange(len(found.number)), held)}
    parts |= {name: found.of([name]) for name in dict.fromkeys(found.name) if name not in trained}
    rows = [(name, found.only(chosen)) for name, chosen in parts.items() if chosen.any()]
    columns = ["class", "tokens", "accuracy", "majority"]
    return pd.DataFrame(
        [(name, len(one.number), probe.accuracy(one), float(np.bincount(one.residue).max() / len(one.number))) for name, one in rows], columns=columns
    )


def left_out(found: Representations) -> pd.DataFrame:
    """For each class, the accuracy of a probe trained on all the others: class, tokens, `accuracy`, `majority`."""
    names = list(dict.fromkeys(found.name))
    parts = [transfer(found, [other for other in names if other != name], held_out=0.0) for name in names] if len(names) > 1 else []
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["class", "tokens", "accuracy", "majority"])
