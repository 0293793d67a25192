"""What do the codes of a small sparse autoencoder say of a task's heads, and what of that is chance, size or variety? All of it side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.circuits.code_controls import PERMUTATIONS, distinct, label_null, norms
from workbench.circuits.codes import CodeSettings, encode
from workbench.circuits.finding import residual_means
from workbench.circuits.statistics import false_discoveries
from workbench.circuits.tasks import TaskSet
from workbench.heads import Shape
from workbench.models import HFModel
from workbench.scores import rank_agreement

COLUMNS = {
    "head": "the head",
    "codes": "the method's score: how many codes it has on clean prompts and never on corrupted ones",
    "excess": "codes less their mean where clean and corrupted are swapped at random within pairs: 0 on average for a head that knows nothing of the task",
    "p": "how often swapped pairs give at least as many codes",
    "q": "the same with the false-discovery rate held (Benjamini–Hochberg) over all heads",
    "norm": "a control: the mean length of what the head writes into the residual stream",
    "distinct": "a control: how many different codes it has on all prompts, whatever they are",
}
"""What the columns of `Coded.table` mean."""


@dataclass(frozen=True, eq=False)
class Coded:
    """Every head by its codes and by controls, layer by layer (`COLUMNS`); how the ranking by codes agrees with each; pairs of prompts; the last loss."""

    shape: Shape
    table: pd.DataFrame
    agreement: Mapping[str, Mapping[str, float]]
    pairs: int
    loss: float

    def matrix(self, column: str) -> Float[np.ndarray, "L H"]:
        """A column as a map."""
        return self.table[column].to_numpy(float).reshape(self.shape.n_layers, self.shape.n_heads)


def coded(model: HFModel, data: TaskSet, seed: int = 0) -> Coded:
    """Train the autoencoder on what heads write on a few pairs of prompts (mean over positions), and measure every head. Raises `InputError` as `encode`."""
    write_NLHD, clean_N = residual_means(model, data)
    codes = encode(write_NLHD, clean_N, CodeSettings(seed=seed))
    null = label_null(codes, PERMUTATIONS, seed)
    every = {"codes": null.score_LH, "excess": null.excess_LH, "p": null.p_LH, "q": false_discoveries(null.p_LH)}
    every |= {"norm": norms(write_NLHD), "distinct": distinct(codes)}
    names = [str(head) for head in model.shape.heads()]
    table = pd.DataFrame({"head": names, **{name: value_LH.ravel() for name, value_LH in every.items()}})[list(COLUMNS)]
    agreement = {name: rank_agreement(every["codes"], every[name], 10) for name in ("excess", "norm", "distinct")}
    return Coded(model.shape, table, agreement, len(data), codes.loss)
