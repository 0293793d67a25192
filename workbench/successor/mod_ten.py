"""Is a number's last digit a feature of its own? A dictionary of representations, its modal features, and a linear probe, put side by side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.errors import unknown
from workbench.successor.features import RESIDUES, Dictionary, Representations, autoencoder, nmf, represent
from workbench.successor.residues import LinearProbe, Modal, agreement, left_out, linear_probe, modal, transfer
from workbench.token_circuits import Norms
from workbench.weights import Weights

KINDS: Mapping[str, Callable[[Representations], Dictionary]] = MappingProxyType({"NMF": nmf, "sparse autoencoder": autoencoder})
"""The dictionaries, each with its usual settings: the first takes about a second, the second half a minute on two cores."""


@dataclass(frozen=True, eq=False)
class ModTen:
    """What a dictionary and a probe say about numbers modulo ten.

    `row` is one line of a comparison: see `compared`. `active_RF` tells how active the modal feature of each residue (columns) is for the tokens of each
    residue (rows), in standard deviations from the feature's mean: a model with features modulo ten has a diagonal. `transfer` has the accuracy of a probe
    trained on numbers in other classes, `left_out` that of a probe trained on all classes but the one (0–1, with the share of the commonest residue).
    """

    found: Representations
    dictionary: Dictionary
    modal: Modal
    row: Mapping[str, Any]
    active_RF: Float[np.ndarray, "10 10"]
    transfer: pd.DataFrame
    left_out: pd.DataFrame


def mod_ten(weights: Weights, kind: str = "NMF", norms: Norms | None = None) -> ModTen:
    """Representations, features and probes of a model, with a dictionary of one of `KINDS`.

    Raises `InputError` for another kind, without a tokenizer, and for one that has no number as one token.
    """
    if kind not in KINDS:
        raise unknown("kind of dictionary", kind, KINDS)
    found = represent(weights, norms=norms)
    moved = transfer(found)
    dictionary = KINDS[kind](found)
    modes = modal(dictionary, found)
    row = compared(dictionary, modes, linear_probe(found))
    return ModTen(found, dictionary, modes, row, activity(dictionary, modes, found), moved, left_out(found))


def compared(dictionary: Dictionary, modes: Modal, probe: LinearProbe) -> dict[str, Any]:
    """One line of a comparison of dictionaries: kind, seed, number of features, how many are active per token, explained variance, modal coverage.

    `modal coverage` is the share of tokens whose strongest feature is that of their residue (58.5% in the paper), `by chance` the same with residues dealt
    to the wrong tokens; `cosine with probe` is that of directions of features and probe, −1 to 1 (0.71 in the paper).
    """
    record = dictionary.record
    return {
        "dictionary": dictionary.kind,
        "seed": record["seed"],
        "features": dictionary.direction_FD.shape[0],
        "active per token": record.get("active_per_token", float("nan")),
        "explained": record["explained"],
        "explained, held out": record.get("explained_held_out", float("nan")),
        "modal coverage": modes.coverage,
        "by chance": modes.chance,
        "cosine with probe": agreement(probe, dictionary, modes),
    }


def activity(dictionary: Dictionary, modes: Modal, found: Representations) -> Float[np.ndarray, "10 10"]:
    """The mean activity of the modal features (columns) over the tokens of each residue (rows), in standard deviations; NaN for residues without a token."""
    mean_F, spread_F = dictionary.active_NF.mean(0), dictionary.active_NF.std(0)
    active_RF = np.full((RESIDUES, RESIDUES), np.nan)
    for row in range(RESIDUES):
        own_N = found.residue == row
        for column, feature in enumerate(modes.feature):
            if own_N.any() and feature >= 0:
                active_RF[row, column] = (dictionary.active_NF[own_N, feature].mean() - mean_F[feature]) / max(spread_F[feature], 1e-12)
    return active_RF
