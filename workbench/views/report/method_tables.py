"""How do tables about many circuits stand in a report? Methods side by side, heads that circuits share, circuits on other tasks, and short caches."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from workbench.circuits import compared, transfer
from workbench.heads import Head
from workbench.results.of_methods import BY_CHANCE, SETTINGS, areas_in_short, hardest, middle, numbers, overlap_of, own
from workbench.views.methods import COLOURS
from workbench.views.report.parts import Block, Picture, Table, Told
from workbench.views.svg import Curve, Dot, curves_picture, intervals_picture, map_picture
from workbench.views.svg_graph import matrix_picture

BEST = 5
"""Methods whose curves are drawn, beside random rankings."""

BINS = 12
"""Points of a curve of losses."""

GREY = "#888888"


def _methods(rows: pd.DataFrame, stem: str) -> Told:
    areas, ablation = areas_in_short(rows), compared.ablations(rows)[0]
    kept = compared.kept(rows, ablation)
    dots = [Dot(row["method"], row["cpr"], row["least"], row["most"], filled=row["method"] != "random") for row in areas.to_dict("records")]
    drawn = [*[name for name in areas["method"] if name != "random"][:BEST], *(["random"] if (areas["method"] == "random").any() else [])]
    curves = []
    for name, colour in zip(drawn, COLOURS, strict=False):
        part = kept[kept["method"] == name].sort_values("heads")
        points = (part[column].tolist() for column in ("heads", "faithfulness", "lowest", "highest"))
        curves.append(Curve(name, *points, GREY if name == "random" else colour, dotted=name == "random"))
    cells = [f"{_two(row['faithfulness'])} ({_two(row['lowest'])} to {_two(row['highest'])})" for row in kept.to_dict("records")]
    table = kept.assign(cell=cells).pivot_table(index="method", columns="heads", values="cell", aggfunc="first", sort=False)
    table = table.loc[[name for name in areas["method"] if name in table.index]].rename(columns=lambda count: f"{count} heads").reset_index()
    held = {name: numbers(rows, "held out").query(f"measure == '{name}'")["value"] for name in ("prompts", "accuracy")}
    words = [f"Each method ranks all heads; kept are the first, on {rows['seed'].nunique()} samples of prompts."]
    if len(held["prompts"]) and len(held["accuracy"]):
        tested = f"{held['prompts'].min():.0f}–{held['prompts'].max():.0f} held-out prompts"
        words.append(f"Measured on {tested}; the model does {held['accuracy'].mean():.0%} of them right.")
    cpr = intervals_picture(dots, "CPR", "CPR of every method", left=100)
    first = curves_picture(curves, "heads kept", "Faithfulness of the first heads of each method", shown="{:.2g}".format, place="{:g}".format)
    means = "CPR (more is better) and CMD (distance from a perfect curve, less is better): means and standard deviations over the samples of prompts."
    spans = f"Faithfulness of the first heads, {ablation} ablation: mean, and from the lowest to the highest end of the samples' 95% intervals."
    blocks: list[Block] = [
        Picture(
            f"{stem}_cpr", cpr, f"Area under faithfulness by circuit size (CPR; {ablation}); 1: all of the behaviour. Mean, least and most of the samples."
        ),
        Picture(f"{stem}_first", first, f"Faithfulness of the first heads ({ablation}); 1: all of the behaviour. Bars span the samples' 95% intervals."),
        Table(f"{stem}_areas", areas, means),
        Table(f"{stem}_first", table, spans),
        Table(stem, rows, "Everything.", rows.head(0)),
    ]
    best = areas.iloc[0]
    told = ", ".join(
        f"{row['method']} {_two(row['cpr'])} ({_two(row['least'])} to {_two(row['most'])})"
        for row in areas[areas["method"].isin([best["method"], "random"])].to_dict("records")
    )
    return "Methods that find circuits", tuple(words), tuple(blocks), f"CPR of methods that find circuits: {told}."


def _recovery(rows: pd.DataFrame, stem: str) -> Told:
    blocks: list[Block] = []
    told = []
    for what, beta, leak in hardest(rows):
        part = rows[(rows["what"] == what) & (rows["beta"] == beta) & (rows["leak"] == leak)]
        spread = part.groupby("method")["average_precision"].agg(["mean", "min", "max"]).sort_values("mean", ascending=False, kind="stable").reset_index()
        dots = [Dot(row["method"], row["mean"], row["min"], row["max"]) for row in spread.to_dict("records")]
        svg = intervals_picture(dots, "average precision", f"Average precision of every method that looks for {what}", [float(part["chance"].mean())], 172)
        shown = f"models with β = {beta:g} and leak {leak:g}"
        caption = f"{what.capitalize()} of {shown}: average precision (0–1), mean, least and most of {part['seed'].nunique()} seeds; dashed, by chance."
        blocks += [
            Picture(f"{stem}_{what}", svg, caption),
            Table(f"{stem}_{what}", compared.recovery(rows, what, beta, leak), f"{what.capitalize()} of {shown}."),
        ]
        told.append(f"{what} {spread['method'][0]} {spread['mean'][0]:.2f}")
    by_model = rows.groupby(["what", "beta", "leak", "method"], sort=False)["average_precision"].agg(["mean", "std", "count"]).reset_index()
    blocks.append(Table(stem, rows, "Average precision for every kind of model: mean, standard deviation and number of seeds.", by_model))
    words = (
        "How well each method finds the heads and edges of a circuit that is known, in models written by hand; β and the leak say how sharp their heads are.",
    )
    return "Methods where the circuit is known", words, tuple(blocks), f"Best average precision where the circuit is known: {', '.join(told)}."


def _code_sizes(rows: pd.DataFrame, stem: str) -> Told:
    spread = rows.groupby(SETTINGS)["auroc"].agg(["mean", "min", "max", "count"]).reset_index()
    named = [f"{row['examples']:.0f} examples, {row['latents']:.0f} latents, {row['pairs']:.0f} pairs" for row in spread.to_dict("records")]
    dots = [Dot(name, row["mean"], row["min"], row["max"]) for name, row in zip(named, spread.to_dict("records"), strict=True)]
    svg = intervals_picture(dots, "AUROC", "AUROC of codes for the heads of a known circuit, for every setting", [BY_CHANCE], 210)
    means = rows.groupby(SETTINGS)[["auroc", "average_precision", "f1", "codes", "loss"]].mean().reset_index()
    blocks = (
        Picture(f"{stem}_auroc", svg, f"AUROC (0–1): mean, least and most of {spread['count'].min()} seeds and models or more; dashed, by chance."),
        Table(stem, rows, "Means over seeds and models; codes: how many different ones a head has; loss: of the autoencoder.", means),
    )
    best = int(spread["mean"].argmax())
    words = ("How well the codes of a small autoencoder find the heads of a known circuit: prompts to train on, size of the code book, pairs that are coded.",)
    told = f"Codes find a known circuit best, AUROC {spread['mean'][best]:.2f}, with {named[best]}; by chance {BY_CHANCE}."
    return "Codes where the circuit is known, by their settings", words, blocks, told


def _overlap(rows: pd.DataFrame, stem: str) -> Told:
    budget = middle(rows)
    part = rows[rows["budget"] == budget].sort_values(["q_layer", "jaccard"], ascending=[True, False], kind="stable")
    matrix = overlap_of(rows, budget)
    columns = ("first_task", "second_task", "shared", "expected", "jaccard", "low", "high", "p_layer", "q_layer", "ceiling", "of_ceiling")
    shown = part[[name for name in columns if name in part]]
    caption = f"Jaccard index of two tasks' circuits of {budget:.0%} of the heads: 0 none in common, 1 the same."
    meaning = (
        f"At {budget:.0%} of the heads, the least likely by chance first. `expected`: what random sets share; `low`, `high`: 95% over samples of prompts; "
        "`p_layer`: random sets with as many heads in each layer; `q_layer`: over all pairs; `ceiling`: the index of circuits from two halves of the prompts."
    )
    blocks = (Picture(f"{stem}_jaccard", matrix_picture(matrix, "Jaccard index of every two tasks' circuits"), caption), Table(stem, rows, meaning, shown))
    best = rows[rows["budget"] == budget].loc[lambda found: found["jaccard"].idxmax()]
    index = f"Jaccard {best['jaccard']:.2f} ({best['low']:.2f} to {best['high']:.2f}), q {best['q_layer']:.3f}"
    told = f"Circuits of {budget:.0%} of the heads overlap most for {best['first_task']} and {best['second_task']}: {index}."
    return "Heads that tasks share", ("Do the circuits of two tasks have heads in common, more than chance and layers explain?",), blocks, told


def _shared_heads(rows: pd.DataFrame, stem: str) -> Told:
    heads = [Head.parse(name) for name in rows["head"]]
    count_LH = np.full((max(head.layer for head in heads) + 1, max(head.index for head in heads) + 1), np.nan)
    for head, count in zip(heads, rows["circuits"], strict=True):
        count_LH[head.layer, head.index] = count
    ranked = rows.sort_values("circuits", ascending=False, kind="stable")
    many = ranked[ranked["circuits"] > 1]
    told = {Head.parse(row["head"]): f"{row['head']}: {row['circuits']} ({row['tasks']})" for row in many.to_dict("records")}
    blocks = (
        Picture(f"{stem}_map", map_picture(count_LH, told, "in two or more", "In how many circuits each head is"), "In how many tasks' circuits each head is."),
        Table(stem, rows, "Heads of two circuits or more; files have the effect of every head on every task.", many[["head", "circuits", "tasks", "labels"]]),
    )
    most = ranked.iloc[0]
    in_short = f"{len(many)} of {len(rows)} heads are in the circuits of two tasks or more; {most['head']} in most, {most['circuits']}."
    return "In how many circuits each head is", (), blocks, in_short


def _transfer(rows: pd.DataFrame, stem: str) -> Told:
    budget = middle(rows)
    parts = {kind: rows[(rows["kind"] == kind) & (rows["budget"] == budget)] for kind in ("kept", "drop") if (rows["kind"] == kind).any()}
    what = {"kept": "faithfulness of a circuit (row) alone on a task (column)", "drop": "what is lost without a circuit (row) on a task (column)"}
    blocks: list[Block] = [
        Picture(
            f"{stem}_{kind}",
            matrix_picture(transfer.matrix(part), what[kind], signed=True),
            f"{what[kind].capitalize()}, {budget:.0%} of the heads; 1: all of it.",
        )
        for kind, part in parts.items()
    ]
    mine = own(rows, "kept", budget)
    short = mine[["circuit", "value", "random_mean", "random_sd"]].rename(columns={"value": "own task"})
    if "drop" in parts:
        short = short.assign(specificity=transfer.specificity(transfer.matrix(parts["drop"])).reindex(short["circuit"]).to_numpy())
    caption = "Faithfulness on a circuit's own task, beside random circuits; specificity: own loss / (own + mean of the others'), 0.5 hurts all alike."
    blocks.append(Table(stem, rows, caption, short))
    others = parts["kept"][parts["kept"]["circuit"] != parts["kept"]["task"]]
    told = f"Circuits of {budget:.0%} of the heads keep {mine['value'].median():.2f} of their own task and {others['value'].median():.2f} of others (medians)."
    return "Circuits on other tasks", (), tuple(blocks), told


def _turned(rows: pd.DataFrame, stem: str) -> Told:
    alone = rows["heads turned"].str.startswith(("random", "nothing"))
    names = np.where(alone, rows["heads turned"], rows["heads turned"] + " → " + rows["to"].fillna("")).tolist()
    given = zip(names, rows.to_dict("records"), strict=True)
    dots = [Dot(name, row["accuracy"], row["low"], row["high"], filled=not name.startswith(("random", "nothing"))) for name, row in given]
    svg = intervals_picture(dots, "accuracy", "Accuracy with each set of heads turned", left=186)
    words = ("Accuracy on another task when heads of a circuit are made to look at given words; `random` are as many heads of the same layers.",)
    blocks = (
        Picture(f"{stem}_accuracy", svg, "Accuracy (0–1) with 95% intervals over items; open dots are controls."),
        Table(stem, rows, "Every set of heads."),
    )
    nothing = rows[rows["heads turned"] == "nothing"].iloc[0]
    best = rows[~rows["heads turned"].str.startswith(("random", "nothing"))].loc[lambda found: found["accuracy"].idxmax()]
    told = f"{best['accuracy']:.2f} ({best['low']:.2f} to {best['high']:.2f}) with {best['heads turned']} turned to {best['to']}"
    return "Heads turned in another task", words, blocks, f"Accuracy in another task: {told}, {nothing['accuracy']:.2f} without."


def _streams(rows: pd.DataFrame, stem: str) -> Told:
    tokens = rows.groupby("way", sort=False)["tokens"].sum()
    loss = (rows["nll"] * rows["tokens"]).groupby(rows["way"], sort=False).sum() / tokens
    short = pd.DataFrame({"way": tokens.index, "tokens": tokens.to_numpy(), "nats per token": loss.to_numpy(), "perplexity": np.exp(loss.to_numpy())})
    whole = tokens[tokens == tokens.max()].index
    curves = []
    for way, colour in zip(whole, COLOURS, strict=False):
        part = rows[rows["way"] == way]
        spans = pd.cut(part["position"], BINS, labels=False)
        binned = (
            part.assign(loss=part["nll"] * part["tokens"]).groupby(spans).agg(position=("position", "mean"), loss=("loss", "sum"), tokens=("tokens", "sum"))
        )
        nothing = [float("nan")] * len(binned)
        curves.append(Curve(str(way), binned["position"].tolist(), (binned["loss"] / binned["tokens"]).tolist(), nothing, nothing, colour))
    svg = curves_picture(
        curves,
        "position in the text, thousands of tokens",
        "Loss by position for each kind of cache",
        zero=False,
        shown="{:.2g}".format,
        place=_thousands,
    )
    blocks = (
        Picture(f"{stem}_loss", svg, "Loss (nats per token, less is better) along the text for each kind of cache."),
        Table(f"{stem}_in_short", short, "Over the whole text; perplexity is e to the loss."),
        Table(stem, rows, "Every stretch.", rows.head(0)),
    )
    ways = short[short["way"].isin(whole)].sort_values("perplexity")
    told = ", ".join(f"{row['way']} {row['perplexity']:.1f}" for row in ways.to_dict("records"))
    return (
        "A long text with a short cache",
        ("The loss of a text that is longer than the cache, by what the cache keeps.",),
        blocks,
        f"Perplexity of a long text: {told}.",
    )


def _two(number: float) -> str:
    """Two digits; what is 0 in these has no sign."""
    return f"{round(number, 2) + 0.0:.2f}"


def _thousands(number: float) -> str:
    return f"{number / 1000:g}"


OF_CIRCUITS: Mapping[str, Callable[[pd.DataFrame, str], Told]] = {
    "methods": _methods,
    "recovery": _recovery,
    "code_sizes": _code_sizes,
    "overlap": _overlap,
    "shared_heads": _shared_heads,
    "transfer": _transfer,
    "turned": _turned,
    "streams": _streams,
}
"""The tables about many circuits, and about short caches."""
