"""Does one task's circuit do another task, and does its loss hurt only its own? Transfer and specificity over tasks, and double dissociation of two."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from workbench.circuits.statistics import sign_flips
from workbench.errors import InputError, unknown

Measure = Callable[[Bool[np.ndarray, "L H"], str], float]
"""What a set of heads does on a task: the faithfulness of that circuit alone, or the drop when it is ablated."""


def random_like(circuit_LH: Bool[np.ndarray, "L H"], seed: int = 0) -> Bool[np.ndarray, "L H"]:
    """A random set of heads with as many in every layer as this one; it may share heads with it."""
    return np.random.default_rng(seed).permuted(circuit_LH, axis=1)


def measured(circuits: Mapping[str, Bool[np.ndarray, "L H"]], measure: Measure, randoms: int = 5, seed: int = 0) -> pd.DataFrame:
    """Every circuit on every task: one row per pair, `circuit`, `task`, `value`, and `random_mean` and `random_sd` of random circuits.

    `measure(circuit_LH, task)` is asked once per pair and for each of `randoms` random circuits with as many heads in every layer, which are the same for all
    tasks. With faithfulness it is the transfer matrix, f(C_A on task B); with the drop under ablation, what `specificity` takes. The circuit that a
    task itself has is its own row, the reference for the others. Not symmetric. Raises `InputError` for fewer than two tasks.
    """
    if len(circuits) < 2:
        raise InputError("transfer is a matter of two tasks or more")
    rows = []
    for number, (name, circuit_LH) in enumerate(circuits.items()):
        drawn = [random_like(circuit_LH, seed + 1000 * number + one) for one in range(randoms)]
        for task in circuits:
            by_chance = [measure(random_LH, task) for random_LH in drawn]
            spread = (float(np.mean(by_chance)), float(np.std(by_chance))) if by_chance else (float("nan"), float("nan"))
            rows.append({"circuit": name, "task": task, "value": measure(circuit_LH, task), "random_mean": spread[0], "random_sd": spread[1]})
    return pd.DataFrame(rows)


def matrix(table: pd.DataFrame, column: str = "value") -> pd.DataFrame:
    """A column of `measured` as a matrix: one row per circuit, one column per task, in their order. Raises `InputError` for an unknown column."""
    if column not in table.columns:
        raise unknown("column", column, table.columns)
    order = list(dict.fromkeys(table["circuit"]))
    return table.pivot(index="circuit", columns="task", values=column).loc[order, order]


def specificity(drop: pd.DataFrame) -> pd.Series:
    """How much of the damage that ablating a circuit does is on its own task: own/(own + mean of the others), per circuit.

    0–1; 0.5 for a circuit that hurts all tasks alike. `drop` is a matrix of drops, circuits × the same tasks, each in shares of the task's own score, so that
    they can be compared. A drop below 0 (the task became better) counts as 0; NaN where nothing is hurt. After Li and Subramani 2026 (arXiv 2605.08348).
    """
    names = list(drop.index)
    if names != list(drop.columns) or len(names) < 2:
        raise InputError("specificity needs the drops of two circuits or more on the same tasks, in the same order")
    value_CT = np.maximum(drop.to_numpy(float), 0)
    own_C = np.diagonal(value_CT)
    others_C = (value_CT.sum(1) - own_C) / (len(names) - 1)
    total_C = own_C + others_C
    return pd.Series(np.divide(own_C, total_C, out=np.full(len(names), np.nan), where=total_C > 0), index=drop.index, name="specificity")


@dataclass(frozen=True)
class Dissociation:
    """Does A without B hurt A more than B without A does, and the other way round on B?

    `first` and `second` are these differences of mean drops, each with a two-sided sign-flip p-value; `interaction` is their sum, with the p-value of
    swapping the two circuits at random, prompt by prompt. A double dissociation has both differences above 0 and both p-values small.
    """

    first: float
    p_first: float
    second: float
    p_second: float
    interaction: float
    p: float

    def double(self, level: float = 0.05) -> bool:
        """Whether both differences are above 0 at this level."""
        return min(self.first, self.second) > 0 and max(self.p_first, self.p_second) <= level


def dissociation(first_2N: Float[np.ndarray, "2 N"], second_2M: Float[np.ndarray, "2 M"], draws: int = 10_000, seed: int = 0) -> Dissociation:
    """Double dissociation of two circuits, from drops per prompt: of the first task's N prompts, and of the second task's M.

    Row 0 is the drop when the heads of only the first circuit (A without B) are ablated, row 1 of only the second; both tasks in shares of their own score.
    Raises as `sign_flips`.
    """
    first_N, second_M = first_2N[0] - first_2N[1], second_2M[1] - second_2M[0]
    size_N, size_M = len(first_N), len(second_M)
    both_P = np.concatenate([first_N / max(size_N, 1), second_M / max(size_M, 1)])
    p_first, p_second, p = (float(sign_flips(one[:, None], draws, seed)[0]) for one in (first_N, second_M, both_P))
    return Dissociation(float(first_N.mean()), p_first, float(second_M.mean()), p_second, float(both_P.sum()), p)
