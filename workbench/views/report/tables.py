"""How do the tables of tests stand in a report? Needle tests, policies, calibration, memory against context, presets, and a run's samples."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from workbench.circuits.statistics import share_interval
from workbench.recall import MEASURES, VARIANTS, Recall
from workbench.results import Result
from workbench.results.of_needles import needles_in_short
from workbench.results.of_runs import caveats_of_run, samples_of
from workbench.results.of_tables import caveats_of_table, presets_in_short
from workbench.runs import Run
from workbench.scores import HeadScores
from workbench.views.quality import COLOURS, LOOKS
from workbench.views.report.head_tables import OF_HEADS
from workbench.views.report.method_tables import OF_CIRCUITS
from workbench.views.report.parts import Block, Card, Picture, Section, Table, Told
from workbench.views.svg import Curve, Dot, curves_picture, intervals_picture, map_picture

MEMORY = "KV memory, share of the full model's"


def table_section(result: Result, scores: HeadScores | None) -> Section:
    """A section about a table of one of the kinds of `results.reading.TABLES`; `scores` has the intervals of those about heads."""
    stem = result.name.rpartition(".")[0]
    told = OF_HEADS[result.kind](result.value, stem, scores) if result.kind in OF_HEADS else _OF[result.kind](result.value, stem)
    title, words, blocks, in_short = told
    return Section(f"{title}: {result.name}", words, blocks, tuple(caveats_of_table(result.kind, result.value, result.name)), in_short, sources=(result.name,))


def _needles(rows: pd.DataFrame, stem: str) -> Told:
    short = needles_in_short(rows)
    heads = sorted({str(text) for text in rows.loc[~rows["condition"].str.contains("random"), "heads"].dropna() if str(text)})
    words = ["Recall of needles hidden in text (0–1, the share of the answer's words) with all heads, and with some of them ablated."]
    words += [f"The heads: {text}." for text in heads]
    dots = [
        Dot(_way(row), row["recall"], row["least"] if row["seeds"] > 1 else None, row["most"] if row["seeds"] > 1 else None, filled=row["seeds"] == 1)
        for row in short.to_dict("records")
    ]
    svg = intervals_picture(dots, "recall", "Mean recall for each way of ablating heads", left=172)
    picture = Picture(f"{stem}_recall", svg, "Mean recall; open dots are random heads, with the least and the most of their draws.")
    caption = "Mean recall over tests and draws; `change` is paired, against all heads, with a 95% bootstrap interval over the tests."
    blocks = (picture, Table(f"{stem}_in_short", short, caption), Table(stem, rows, "Every test.", rows.head(0)))
    told = [f"{_way(row)} {row['recall']:.2f}" + (f" ({row['least']:.2f}–{row['most']:.2f})" if row["seeds"] > 1 else "") for row in short.to_dict("records")]
    return "Needle tests", tuple(words), blocks, f"Needle recall: {', '.join(told)}."


def _way(row: Mapping[str, object]) -> str:
    return "all heads" if row["kind"] == "none" else f"{row['kind']}: {str(row['condition']).removeprefix('without ')}"


def _recall(rows: pd.DataFrame, stem: str) -> Told:
    found = Recall(rows)
    words = [f"Recall: {MEASURES['recall']}."]
    words += [f"The heads: {', '.join(map(str, found.heads))}."] if (rows["variant"] == "without").any() else []
    totals = found.totals()
    dots = [Dot(VARIANTS[row["variant"]], row["mean"], row["low"], row["high"], filled=row["variant"] != "control") for row in totals.to_dict("records")]
    picture = Picture(
        f"{stem}_recall", intervals_picture(dots, "recall", "Mean recall of each variant", left=166), "Mean recall with 95% intervals over the tests."
    )
    grids = [
        Table(f"{stem}_{variant}", found.grid(variant).reset_index().rename(columns=str), f"Recall by depth (down) and length in tokens, {VARIANTS[variant]}.")
        for variant in totals["variant"]
    ]
    caption = "Over all tests; `least` and `most` are of single draws of heads."
    blocks = (picture, Table(f"{stem}_in_short", totals, caption), *grids, Table(stem, rows, "Every test.", rows.head(0)))
    return "Needle recall", tuple(words), blocks, found.verdict()


def _policies(rows: pd.DataFrame, stem: str) -> Told:
    words = (
        "What a model keeps of itself when only some KV heads see the whole context, and the others sinks and a window.",
        "Random heads are means over their draws, with the least and the most.",
    )
    blocks = [
        Picture(f"{stem}_{column}", curves_picture(_curves(rows, column), MEMORY, alt, zero=column == "kept"), caption)
        for column, alt, caption in (
            ("kept", "Needle recall kept against KV memory", "Needle recall, as a share of the full model's; bars are 95% intervals of the paired difference."),
            ("agreement", "Agreement of next tokens against KV memory", "How often the next token is the full model's."),
        )
    ]
    means = rows.groupby(["policy", "budget"], sort=False)[
        ["full_heads", "kv_share", "recall", "kept", "kept_low", "kept_high", "perplexity", "agreement"]
    ].mean()
    shown = means.reset_index().sort_values(["budget", "kept"], ascending=[True, False], ignore_index=True)
    table = Table(stem, rows, "By budget, the best first; random heads are means of their draws.", shown)
    return "Policies", words, (*blocks, table), _least(shown[~shown["policy"].isin(("full", *LOOKS))], rows)


def _least(ranked: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What the smallest budget keeps, the best ranking beside random heads."""
    if not len(ranked):
        return "No ranking was measured."
    best = ranked.iloc[0]
    random = rows[(rows["policy"] == "random") & (rows["budget"] == best["budget"])]["kept"]
    beside = f"; random heads {random.min():.0%}–{random.max():.0%}" if len(random) else ""
    kept = f"`{best['policy']}` keeps {best['kept']:.0%} ({best['kept_low']:.0%}–{best['kept_high']:.0%}) of the recall"
    return f"With {best['full_heads']:.0f} KV heads full ({best['kv_share']:.0%} of the memory) {kept}{beside}."


def _curves(rows: pd.DataFrame, column: str) -> list[Curve]:
    names = [name for name in dict.fromkeys(rows["policy"]) if name != "full"]
    rankings = [name for name in names if name not in LOOKS]
    curves = []
    for name in names:
        part = rows[rows["policy"] == name].groupby("budget").agg({"kv_share": "mean", column: ["mean", "min", "max"], "kept_low": "mean", "kept_high": "mean"})
        drawn = rows.loc[rows["policy"] == name, "seed"].nunique() > 1
        bounds = (part[column]["min"], part[column]["max"]) if drawn else (part["kept_low"]["mean"], part["kept_high"]["mean"])
        if column != "kept" and not drawn:
            bounds = (np.full(len(part), np.nan), np.full(len(part), np.nan))
        colour = LOOKS[name][1] if name in LOOKS else COLOURS[rankings.index(name) % len(COLOURS)]
        points = (list(map(float, values)) for values in (part["kv_share"]["mean"], part[column]["mean"], *bounds))
        curves.append(Curve(name, *points, colour, dotted=name in LOOKS))
    return curves


def _search(rows: pd.DataFrame, stem: str) -> Told:
    kept = rows[rows["kept"].astype(bool)].sort_values("gain", ascending=False)
    names = ", ".join(kept["head"]) or "none"
    words = (f"{len(rows)} heads measured one by one with their sinks calibrated (ACT); kept for a gain above 0: {names}.",)
    columns = [name for name in ("head", "n", "fixed", "broken", "gain", "e_helps", "e_hurts", "kept") if name in rows]
    shown = rows.sort_values("gain", ascending=False)[columns]
    caption = "Answers turned right and wrong by calibrating one head alone; `gain` is the change of accuracy, the e-values are the evidence (20 decides)."
    return "Calibration, the search", words, (Table(stem, rows, caption, shown),), f"{len(kept)} of {len(rows)} heads searched for calibration are kept."


def _held_out(rows: pd.DataFrame, stem: str) -> Told:
    mean = rows[rows["task"] == "mean"]
    words = ("Accuracy on questions that the search did not see, with the kept heads' sinks calibrated, beside random and all heads.",)
    dots = [
        Dot(row["heads"] + ("" if pd.isna(row["seed"]) else f" {int(row['seed'])}"), row["difference"], row["difference_low"], row["difference_high"])
        for row in mean[mean["heads"] != "none"].to_dict("records")
    ]
    svg = intervals_picture(dots, "change of accuracy, mean over tasks", "Change of accuracy for each set of heads with intervals", [0.0])
    picture = Picture(f"{stem}_difference", svg, "Change of accuracy against no calibration, with 95% intervals (paired bootstrap).")
    kept = mean[mean["heads"] == "kept"].to_dict("records")
    told = [f"{row['difference']:+.1%} ({row['difference_low']:+.1%} to {row['difference_high']:+.1%})" for row in kept]
    in_short = f"Calibrating the kept heads changes held-out accuracy by {told[0]}." if told else "No head was kept for calibration."
    return "Calibration, held out", words, (picture, Table(stem, rows, "By set of heads and task; `mean` weighs the tasks alike.", mean)), in_short


def _ph3(rows: pd.DataFrame, stem: str) -> Told:
    words = ("Answers to held-out conflicts between what the model knows (memory) and what the text states (context): shares, 0–1.",)
    group = ["steer", *(["way"] if "way" in rows else [])]
    numbers = [name for name in ("memory", "context", "other", "clean", "perplexity", "heads", "n") if name in rows]
    means = rows.groupby(group, sort=False)[numbers].mean().reset_index()
    blocks: list[Block] = []
    told = []
    for steer, part in means.groupby("steer", sort=False):
        side = str(steer)
        if side in part and "way" in part:
            dots = [Dot(row["way"], row[side], *share_interval(row[side], round(row["n"]))) for row in part.to_dict("records")]
            svg = intervals_picture(dots, f"answers from {side}", f"Share of answers from {side} when steered to {side}", left=88)
            share = part.set_index("way")[side]
            told += [f"to {side} {share['none']:.0%} → {share['pruned']:.0%}"] if {"none", "pruned"} <= set(share.index) else []
            caption = f"Steered to {side}: the share of such answers, means of seeds, with the 95% interval of one seed's conflicts."
            blocks.append(Picture(f"{stem}_{side}", svg, caption))
    table = Table(stem, rows, "Means of seeds; `clean` is what the model still knows closed-book.", means)
    return "Memory or context", words, (*blocks, table), f"Pruning steers answers {', '.join(told)}." if told else ""


def _presets(rows: pd.DataFrame, stem: str) -> Told:
    words = ("The same heads by the quick preset and by the papers' sizes.",)
    short = presets_in_short(rows)
    told = [f"{row['probe']} {row['top10_overlap']:.0%} of the ten strongest" for row in short.to_dict("records")]
    blocks = (Table(f"{stem}_in_short", short, "By probe."), Table(stem, rows, "Every head.", rows.head(0)))
    return "Quick or paper preset", words, blocks, f"Both presets agree: {', '.join(told)}."


def run_section(run: Run, name: str) -> Section:
    """A section about the samples of one run on disk."""
    cards = []
    for one in samples_of(run):
        order = np.argsort(-one.score_LH, axis=None, kind="stable")[:10]
        best = one.table.iloc[order]
        dots = [Dot(row["head"], row["score"], row["ci_low"], row["ci_high"]) for row in best.to_dict("records")]
        pictures = (
            Picture(f"map_{one.probe}", map_picture(one.score_LH, {}, "", f"Layer by head map of {one.probe}"), "Mean score of every head."),
            Picture(f"strongest_{one.probe}", intervals_picture(dots, f"{one.probe} score", f"The strongest heads by {one.probe}"), "With 95% intervals."),
        )
        cards.append(Card(one.probe, (f"{one.counted} of {one.tests} samples count.",), pictures))
    question = run.question
    told = {name: question.get(name) for name in ("model", "seed", "dtype", "device", "implementation")}
    tables = [one.table for one in samples_of(run)]
    table = [Table("samples", pd.concat(tables, ignore_index=True), "Mean scores of the samples that count.")] if tables else []
    words = (", ".join(f"{key} {value}" for key, value in told.items()) + ".",)
    in_short = f"Samples of {', '.join(one.probe for one in samples_of(run)) or 'no probe'}."
    return Section(f"Run {name}", words, (*cards, *table), tuple(caveats_of_run(run, name)), in_short, sources=(name,))


_OF: Mapping[str, Callable[[pd.DataFrame, str], Told]] = {
    "needles": _needles,
    "recall": _recall,
    "policies": _policies,
    "search": _search,
    "held_out": _held_out,
    "ph3": _ph3,
    "presets": _presets,
    **OF_CIRCUITS,
}
