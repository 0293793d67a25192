"""What do the codes of a small sparse autoencoder say of a task's heads, and what of that is chance, size or variety? All of it side by side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.circuits import kept
from workbench.circuits.code_controls import PERMUTATIONS, distinct, label_null, norms
from workbench.circuits.codes import CodeSettings, encode
from workbench.circuits.finding import residual_means
from workbench.circuits.statistics import false_discoveries
from workbench.circuits.tasks import TaskSet
from workbench.heads import ModelCard
from workbench.models import HFModel
from workbench.scores import rank_agreement

SCHEMA = "workbench.codes/1"
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
    """Every head by its codes and by controls, layer by layer (`COLUMNS`); how the ranking by codes agrees with each; pairs of prompts; the last loss.

    `task` and `seed` are what was asked.
    """

    card: ModelCard
    task: str
    seed: int
    table: pd.DataFrame
    agreement: Mapping[str, Mapping[str, float]]
    pairs: int
    loss: float

    def matrix(self, column: str) -> Float[np.ndarray, "L H"]:
        """A column as a map."""
        return self.table[column].to_numpy(float).reshape(self.card.shape.n_layers, self.card.shape.n_heads)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        agreement = {name: {key: None if np.isnan(value) else value for key, value in agreed.items()} for name, agreed in self.agreement.items()}
        told = {"task": self.task, "seed": self.seed, "pairs": self.pairs, "loss": self.loss, "agreement": agreement}
        return kept.write(path, SCHEMA, self.card, {**told, "table": kept.records(self.table)})

    @classmethod
    def load(cls, path: str | Path) -> "Coded":
        """Read what `save` wrote. Raises `InputError` for a file that is missing or is something else."""
        card, data = kept.read(path, SCHEMA)
        agreement = {name: {key: np.nan if value is None else value for key, value in agreed.items()} for name, agreed in data["agreement"].items()}
        return cls(card, data["task"], data["seed"], pd.DataFrame(data["table"], columns=list(COLUMNS)), agreement, data["pairs"], data["loss"])


def coded(model: HFModel, data: TaskSet, seed: int = 0, told: Callable[[str, int, int], None] = lambda *_: None) -> Coded:
    """Train the autoencoder on what heads write on a few pairs of prompts (mean over positions), and measure every head.

    `told` is told what is being done, and how many of the three parts are. Raises `InputError` as `encode`.
    """
    told("reading what heads write", 0, 3)
    write_NLHD, clean_N = residual_means(model, data)
    told("training the autoencoder", 1, 3)
    codes = encode(write_NLHD, clean_N, CodeSettings(seed=seed))
    told("swapping clean and corrupted", 2, 3)
    null = label_null(codes, PERMUTATIONS, seed)
    every = {"codes": null.score_LH, "excess": null.excess_LH, "p": null.p_LH, "q": false_discoveries(null.p_LH)}
    every |= {"norm": norms(write_NLHD), "distinct": distinct(codes)}
    names = [str(head) for head in model.shape.heads()]
    table = pd.DataFrame({"head": names, **{name: value_LH.ravel() for name, value_LH in every.items()}})[list(COLUMNS)]
    agreement = {name: rank_agreement(every["codes"], every[name], 10) for name in ("excess", "norm", "distinct")}
    return Coded(model.card, data.task, seed, table, agreement, len(data), codes.loss)
