"""What do tables about many circuits say in short, and how far are they to be believed? Methods compared, heads shared, transfer, and heads turned."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from workbench.circuits import compared
from workbench.results.caveats import counted, listed
from workbench.results.of_circuits import FEW

SEEDS = 5
"""With fewer samples of prompts than this their spread says little."""

STANDS_OUT = 0.05
"""The false discovery rate up to which an overlap is more than chance."""

STABLE = 0.6
"""The Jaccard index of a circuit with itself, from halves of its prompts, below which it is not the same circuit twice."""

OWN = 0.5
"""The faithfulness from which on a circuit does its own task by half."""

Said = Iterator[tuple[str, str]]


def numbers(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """The rows of one part of a table of methods, their values as numbers."""
    return rows[rows["part"] == part].assign(value=lambda found: found["value"].astype(float))


def areas_in_short(rows: pd.DataFrame) -> pd.DataFrame:
    """`compared.areas`, the best first, with the `least` and the `most` CPR of the seeds."""
    of_seed = numbers(rows, "head curve").query("measure == 'cpr'").groupby("method")["value"].agg(least="min", most="max").reset_index()
    return compared.areas(rows).merge(of_seed, on="method").sort_values("cpr", ascending=False, kind="stable", ignore_index=True)


def of_methods(rows: pd.DataFrame) -> Said:
    """What a table of `benchmarks/circuit_methods.py` calls for, as level and text."""
    areas = areas_in_short(rows)
    best, random = areas.iloc[0], areas[areas["method"] == "random"]
    if not len(random):
        yield "stop", "no random rankings were measured, so that nothing tells what the methods are worth"
    elif len(poor := areas[(areas["least"] <= random["most"].iloc[0]) & (areas["method"] != "random")]):
        yield "care", f"not clearly better than random rankings (CPR up to {random['most'].iloc[0]:.2f}): {listed(poor['method'])}"
    if len(alike := areas[(areas["most"] >= best["least"]) & (areas["method"] != best["method"])]):
        yield "care", f"these seeds do not tell apart {best['method']} and {listed(alike['method'])}"
    yield from _of_faithfulness(rows)
    if (seeds := rows["seed"].nunique()) < SEEDS:
        yield "know", f"{counted(seeds, 'sample')} of prompts only: least and most are shown, not an interval"
    held = numbers(rows, "held out").query("measure == 'prompts'")["value"]
    if len(held) and held.min() < FEW:
        yield "care", f"faithfulness is of {held.min():.0f} to {held.max():.0f} held-out prompts"


def _of_faithfulness(rows: pd.DataFrame) -> Said:
    """Whether faithfulness rises with more heads, and whether the ablation decides it."""
    tables = {name: compared.kept(rows, name) for name in compared.ablations(rows)}
    most = {name: float(table.loc[table["method"] != "random", "faithfulness"].max()) for name, table in tables.items()}
    if dead := [f"{name} (at most {value:.2f})" for name, value in most.items() if value < 0.1]:
        yield "care", f"under some ablations no method's heads keep the task: {listed(dead)}"
    for name, table in tables.items():
        falling = [
            f"{method} {part['faithfulness'].iloc[0]:.2f} → {part['faithfulness'].min():.2f}"
            for method, part in table.groupby("method", sort=False)
            if method != "random" and part["faithfulness"].iloc[0] > OWN and part["faithfulness"].min() < part["faithfulness"].iloc[0] - 0.1
        ]
        if falling and most[name] >= 0.1:
            yield "care", f"more heads can keep less ({name}), as some work against the task: {listed(falling)}"


def hardest(rows: pd.DataFrame) -> list[tuple[str, float, float]]:
    """Of heads and of edges, the models of the largest leak and then β among those with the most seeds: what is looked for, β, leak."""
    seeds = rows.groupby(["what", "beta", "leak"])["seed"].nunique().reset_index()
    most = seeds[seeds["seed"] == seeds.groupby("what")["seed"].transform("max")].sort_values(["leak", "beta"]).groupby("what", sort=False).tail(1)
    return [(str(row["what"]), float(row["beta"]), float(row["leak"])) for row in most.to_dict("records")]


def of_recovery(rows: pd.DataFrame) -> Said:
    """What a table of methods on a known circuit calls for, as level and text."""
    for what, beta, leak in hardest(rows):
        part = rows[(rows["what"] == what) & (rows["beta"] == beta) & (rows["leak"] == leak)]
        least = part.groupby("method", sort=False)["average_precision"].min()
        if len(poor := least[least <= part["chance"].max()]):
            yield "care", f"{what}, β {beta:g} and leak {leak:g}: not clearly better than chance ({part['chance'].max():.2f}): {listed(poor.index)}"
    seeds = rows.groupby(["what", "beta", "leak"])["seed"].nunique().to_numpy()
    if single := int((seeds == 1).sum()):
        yield "know", f"one seed only for {single} of {len(seeds)} kinds of models"
    yield "know", "the models are written by hand: what finds their circuit need not find that of a trained one"


SETTINGS = ["examples", "latents", "pairs"]
"""What codes of a known circuit are varied by: prompts to train on, size of the code book, pairs of prompts that are coded."""

BY_CHANCE = 0.5
"""AUROC of heads that are ranked at random."""


def of_code_sizes(rows: pd.DataFrame) -> Said:
    """What a table of codes by their settings calls for, as level and text."""
    least = rows.groupby(SETTINGS)["auroc"].min()
    if poor := int((least <= BY_CHANCE).sum()):
        yield "care", f"not clearly better than chance (AUROC {BY_CHANCE}) with {poor} of {len(least)} settings, their worst seed counted"
    if (single := rows[["model_seed", "seed"]].drop_duplicates()).shape[0] == 1:
        yield "know", f"one seed only, {single['seed'].iloc[0]}"


def overlap_of(rows: pd.DataFrame, budget: float) -> pd.DataFrame:
    """The Jaccard index of every two tasks' circuits of one size, both ways round; nothing on the diagonal."""
    part = rows[rows["budget"] == budget]
    order = list(dict.fromkeys([*part["first_task"], *part["second_task"]]))
    table = pd.DataFrame(np.nan, order, order)
    for row in part.to_dict("records"):
        table.loc[row["first_task"], row["second_task"]] = table.loc[row["second_task"], row["first_task"]] = row["jaccard"]
    return table


def middle(rows: pd.DataFrame) -> float:
    """The size of circuits of which there are as many larger as smaller ones, as a share of all heads."""
    sizes = sorted(rows["budget"].unique())
    return float(sizes[len(sizes) // 2])


def of_overlap(rows: pd.DataFrame) -> Said:
    """What a table of overlaps calls for, as level and text."""
    stand = rows[rows["q_layer"] <= STANDS_OUT]
    if len(stand) < len(rows):
        counts = ", ".join(
            f"{int((part['q_layer'] <= STANDS_OUT).sum())} of {len(part)} at {budget:.0%} of the heads" for budget, part in rows.groupby("budget")
        )
        yield "care", f"pairs of tasks that share more heads than their layers explain (q ≤ {STANDS_OUT}): {counts}"
    if len(low := rows[rows["ceiling"] < STABLE]):
        least = low.loc[low["ceiling"].idxmin()]
        told = f"least for {least['first_task']} and {least['second_task']}, {least['ceiling']:.2f}"
        yield "care", f"circuits are not stable: from halves of the same prompts they overlap by less than {STABLE} in {len(low)} of {len(rows)} rows ({told})"
    if "q_layer_without_generic" in rows and len(gone := stand[stand["q_layer_without_generic"] > STANDS_OUT]):
        told = listed(f"{row['first_task']} and {row['second_task']} ({row['budget']:.0%})" for row in gone.to_dict("records"))
        yield "care", f"not without the heads that matter for plain text as well: {told}"


def own(rows: pd.DataFrame, kind: str, budget: float) -> pd.DataFrame:
    """Every circuit on the task that it is of, of one kind and size."""
    return rows[(rows["circuit"] == rows["task"]) & (rows["kind"] == kind) & (rows["budget"] == budget)]


def of_transfer(rows: pd.DataFrame) -> Said:
    """What a table of circuits on other tasks calls for, as level and text."""
    budget = middle(rows)
    mine = own(rows, "kept", budget)
    if len(poor := mine[mine["value"] < OWN]):
        told = listed(f"{row['circuit']} ({row['value']:.2f})" for row in poor.to_dict("records"))
        yield "care", f"with {budget:.0%} of the heads these circuits do not do even their own task by half, so that their transfer says nothing: {told}"
    if len(chance := mine[mine["value"] <= mine["random_mean"] + 2 * mine["random_sd"]]):
        yield "care", f"on their own task not clearly better than random heads of the same layers: {listed(chance['circuit'])}"
    kept = rows[(rows["kind"] == "kept") & (rows["budget"] == budget)]
    by_task = mine.set_index("task")["value"]
    if better := [f"{row['circuit']} on {row['task']}" for row in kept.to_dict("records") if row["value"] > max(OWN, by_task[row["task"]])]:
        yield "know", f"another task's circuit does the task better than its own: {listed(better)}"
    yield "know", "a value has no interval; beside it stand the mean and standard deviation of a few random circuits with as many heads in each layer"


def of_turned(rows: pd.DataFrame) -> Said:
    """What a table of heads turned in another task calls for, as level and text."""
    nothing, random = rows[rows["heads turned"] == "nothing"].iloc[0], rows[rows["heads turned"].str.startswith("random")]
    tried = rows[~rows.index.isin([nothing.name, *random.index])]
    if len(same := tried[(tried["low"] <= nothing["accuracy"]) & (tried["high"] >= nothing["accuracy"])]):
        told = listed(f"{row['heads turned']} to {row['to']}" for row in same.to_dict("records"))
        yield "care", f"no change of accuracy that these items could tell: {told}"
    if not len(random):
        yield "stop", "no random heads were turned, so that nothing tells what the chosen ones are worth"
    elif len(alike := tried[tried["accuracy"] <= random["accuracy"].max()]):
        told = listed(f"{row['heads turned']} to {row['to']}" for row in alike.to_dict("records"))
        yield "care", f"some random heads do as well or better ({random['accuracy'].max():.2f}): {told}"


def of_streams(rows: pd.DataFrame) -> Said:
    """What a table of losses with a short cache calls for, as level and text."""
    tokens = rows.groupby("way")["tokens"].sum()
    if len(few := tokens[tokens < tokens.max()]):
        told = listed(f"{way} ({counted(int(count), 'row')})" for way, count in few.items())
        yield "care", f"measured at sampled rows alone, not to be compared with the others: {told}"
    yield "know", "all losses are of one text, so that they have no intervals over texts"
