"""How do methods that find circuits compare? What benchmarks measured, summed up over seeds: what is recovered of a known circuit, and faithfulness."""

import io
from collections.abc import Mapping

import pandas as pd

from workbench.errors import InputError, unknown

RECOVERY = {
    "auroc": "area under the ROC curve: how often a true head (or edge) ranks above another one; 0.5 by chance",
    "average_precision": "average precision; by chance the share of true ones",
    "precision_at_truth": "the share of true ones among as many as there are",
    "f1": "F1 at its best threshold",
    "f1_released": "what the figures of the method of codes call F1: the harmonic mean of recall and 1 − fallout",
}
"""The measures of `recovery`, 0–1."""

KEPT = "faithfulness, "


def parse(content: bytes, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table of a benchmark from the bytes of a CSV file. Raises `InputError` for what is none, or lacks columns."""
    try:
        table = pd.read_csv(io.BytesIO(content))
    except ValueError as error:
        raise InputError(f"{name} is no table that can be read: {error}") from error
    if missing := [column for column in columns if column not in table]:
        raise InputError(f"{name} has no column {', '.join(missing)}")
    return table


def settings(methods: pd.DataFrame) -> dict[str, list[tuple[float, float]]]:
    """Which models there are for heads and for edges: pairs of β and leak."""
    return {str(what): sorted({(float(b), float(k)) for b, k in zip(rows["beta"], rows["leak"], strict=True)}) for what, rows in methods.groupby("what")}


def recovery(methods: pd.DataFrame, what: str, beta: float, leak: float) -> pd.DataFrame:
    """How well each method finds the known heads or edges (`what`) of the compiled models of one β and leak, over their seeds.

    One row per method: the means of `RECOVERY`, their standard deviations (`auroc_sd`, …; empty with one seed), `chance`, the share of true ones, `seeds`.
    Measures that were not taken are left out. Raises `InputError` where nothing was measured.
    """
    rows = methods[(methods["what"] == what) & (methods["beta"] == beta) & (methods["leak"] == leak)]
    if rows.empty:
        raise InputError(f"no {what} of models with β = {beta:g} and leak {leak:g} were measured")
    taken = [name for name in RECOVERY if name in rows and rows[name].notna().any()]
    by_method = rows.groupby("method", sort=False)
    spread = by_method[taken].std().add_suffix("_sd")
    found = by_method[taken].mean().join(spread).join(by_method.agg(chance=("chance", "mean"), seeds=("seed", "nunique")))
    order = [column for name in taken for column in (name, f"{name}_sd")]
    return found[[*order, "chance", "seeds"]].sort_values("average_precision", ascending=False, kind="stable").reset_index()


def ablations(circuits: pd.DataFrame) -> list[str]:
    """Under which ablations faithfulness was measured."""
    return [str(part).removeprefix(KEPT) for part in circuits["part"].unique() if str(part).startswith(KEPT)]


def kept(circuits: pd.DataFrame, ablation: str) -> pd.DataFrame:
    """The faithfulness of the first k heads of every method on held-out prompts, under one ablation.

    One row per method and number of `heads`: `faithfulness`, the mean over seeds, `lowest` and `highest` of the ends of the seeds' 95% intervals, and `seeds`.
    Raises `InputError` for an ablation that was not measured.
    """
    if ablation not in ablations(circuits):
        raise unknown("ablation", ablation, ablations(circuits))
    rows = circuits[circuits["part"] == KEPT + ablation].assign(
        heads=lambda found: found["measure"].astype(int), value=lambda found: found["value"].astype(float)
    )
    found = rows.groupby(["method", "heads"], sort=False).agg(
        faithfulness=("value", "mean"), lowest=("low", "min"), highest=("high", "max"), seeds=("seed", "nunique")
    )
    return found.reset_index()


def areas(circuits: pd.DataFrame) -> pd.DataFrame:
    """CPR (more is better) and CMD (less is better) of every method's curve, resample ablation, held-out prompts: mean and standard deviation over seeds."""
    rows = circuits[circuits["part"] == "head curve"].assign(value=lambda found: found["value"].astype(float))
    found = rows.pivot_table(index="method", columns="measure", values="value", aggfunc=["mean", "std"], sort=False)
    names: Mapping[tuple[str, str], str] = {("mean", "cpr"): "cpr", ("std", "cpr"): "cpr_sd", ("mean", "cmd"): "cmd", ("std", "cmd"): "cmd_sd"}
    found.columns = [names[column] for column in found.columns]
    return found[list(names.values())].reset_index()


def steered(conflicts: pd.DataFrame, steer: str) -> pd.DataFrame:
    """What every way to steer to `memory` or `context` did, means over seeds: the columns of `steering.COLUMNS` that the file has, and `seeds`.

    Intervals (`…_low`, `…_high`) reach from the lowest to the highest end of the seeds'. Raises `InputError` for another side.
    """
    rows = conflicts[conflicts["steer"] == steer]
    if rows.empty:
        raise unknown("side to steer to", steer, [str(side) for side in conflicts["steer"].unique()])
    by_way = rows.groupby("way", sort=False)
    how = {name: "min" if name.endswith("_low") else "max" if name.endswith("_high") else "mean" for name in rows if name not in ("way", "steer", "seed")}
    return by_way.agg(how).assign(seeds=by_way["seed"].nunique()).reset_index()
