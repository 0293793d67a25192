"""Do methods that find circuits agree on a real model, and how faithful is what each finds? Templates held out, several seeds, heads and edges.

    python benchmarks/circuit_methods.py --model smollm2-135m --task ioi --out reports/smollm2-135m/circuits_ioi

No truth is known here: agreement with exact patching is agreement, and no more. Writes OUT.md and OUT.csv (a row per seed, method and number).
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
from circuit_shared import drawn, halves, markdown, ordered, spread
from report import write_report

from workbench.circuits import code_controls
from workbench.circuits.alternatives import ABLATIONS
from workbench.circuits.attribution import edge_attribution
from workbench.circuits.codes import CodeSettings, encode, node_scores
from workbench.circuits.effects import Effects
from workbench.circuits.faithfulness import areas, edge_curve, faithfulness, head_curve, mask
from workbench.circuits.finding import METHODS, accuracy, residual_means
from workbench.circuits.patching import replace_sets, scenes
from workbench.circuits.reuse import top
from workbench.circuits.statistics import auroc, curve, interval
from workbench.circuits.tasks import TaskSet
from workbench.circuits.verify import verify
from workbench.models import HFModel, load
from workbench.scores import rank_agreement

SIZES = (5, 10, 20, 40)
REFERENCE = 10
"""How many heads of exact patching's ranking stand for its circuit."""

EDGE_METHODS = ("eap", "eap-ig-inputs")
SHOWN = (0.01, 0.05, 0.2)
"""Shares of edges whose faithfulness the report tells; the file has all."""

HOW = (
    "Every seed draws other prompts and holds other templates out; ± is the standard deviation over seeds. Heads are ranked on the prompts searched, and "
    "evaluated on those held out."
)
SHARES = (
    "(circuit − nothing) / (full − nothing); other heads put out what they do on the corrupted prompt (resample), their mean over corrupted prompts, or zero; "
    "MLPs stay."
)
EDGES = (
    "On the most frequent length of either half. CPR, CMD and faithfulness: held out, the best edges by |score|, dead ones pruned. `top`, `sample`: rank "
    "correlation of scores and measured effects among the {top} best edges and {sample} drawn from the rest; `missed rate`: the share of those drawn that "
    "move the metric by 1% of the clean–corrupted difference or more; `missed high`: the upper end of its 95% interval."
)
AGREEMENT = (
    f"Not a truth: AUROC and the F1s are against its first {REFERENCE} heads. F1 as released is what the figures of the method of codes call F1. Codes, their "
    "excess over labels swapped within pairs, norm and distinct codes watch only; the last three and random are controls."
)
CONTROLS = ("codes, excess", "norm", "distinct codes", "random")
Row = dict[str, object]
Scores = dict[str, tuple[np.ndarray, float]]


def rankings(model: HFModel, data: TaskSet, seed: int) -> Scores:
    """Scores of all heads by every method and control, with the seconds that they took."""
    found: Scores = {}
    for name, (_, rank) in METHODS.items():
        if name != "codes":
            begin = perf_counter()
            effects: Effects = rank(model, data, None, seed)
            found[name] = np.abs(effects.mean_LH), perf_counter() - begin
    begin = perf_counter()
    write_NLHD, clean_N = residual_means(model, data)
    codes = encode(write_NLHD, clean_N, CodeSettings(seed=seed))
    found["codes"] = node_scores(codes), perf_counter() - begin
    shape = model.shape
    by_chance = np.random.default_rng(seed).random((shape.n_layers, shape.n_heads))
    values = code_controls.label_null(codes, seed=seed).excess_LH.clip(0), code_controls.norms(write_NLHD), code_controls.distinct(codes), by_chance
    return {**found, **{name: (value, np.nan) for name, value in zip(CONTROLS, values, strict=True)}}


def agreements(found: Scores, seed: int) -> Iterator[Row]:
    """How each ranking agrees with exact activation patching on the same prompts."""
    exact = np.nan_to_num(found["patching"][0])
    chosen = top(exact, min(REFERENCE, exact.size // 2))
    for name, (score, seconds) in found.items():
        size = np.nan_to_num(np.abs(score))
        seen, ranked = curve(size, chosen), rank_agreement(size, exact, REFERENCE)
        numbers = {"spearman": ranked["spearman"], "top-10 overlap": list(ranked.values())[1], "AUROC": auroc(size, chosen)}
        numbers |= {"F1": float(seen.f1.max()), "F1 as released": float(seen.f1_released.max()), "seconds": seconds}
        yield from ({"seed": seed, "part": "agreement", "method": name, "measure": measure, "value": value} for measure, value in numbers.items())
        yield {"seed": seed, "part": "heads", "method": name, "measure": "first", "value": " ".join(map(str, ordered(size)[:REFERENCE]))}


def head_faithfulness(model: HFModel, data: TaskSet, found: Scores, seed: int) -> Iterator[Row]:
    """Faithfulness of the first heads of every ranking on held-out prompts, under three ablations; CPR and CMD under resampling."""
    shape, orders = model.shape, {name: ordered(score) for name, (score, _) in found.items()}
    keys = [(name, size) for name in orders for size in SIZES if size < shape.n_layers * shape.n_heads]
    replaced = np.stack([np.ones((shape.n_layers, shape.n_heads), bool), *(~mask(shape, orders[name][:size]) for name, size in keys)])
    for ablation in ABLATIONS:
        value_SN, full_N, _ = replace_sets(model, data, replaced, ablation=ablation)
        for (name, size), value_N in zip(keys, value_SN[1:], strict=True):
            share, low, high = faithfulness(value_N, value_SN[0], full_N, seed)
            yield {"seed": seed, "part": f"faithfulness, {ablation}", "method": name, "measure": f"{size}", "value": share, "low": low, "high": high}
    for name, order in orders.items():
        kept = head_curve(model, data, order)
        numbers = areas(kept["budget"].tolist(), kept["faithfulness"].tolist())
        yield from ({"seed": seed, "part": "head curve", "method": name, "measure": measure, "value": value} for measure, value in numbers.items())


def edge_facts(model: HFModel, searched: TaskSet, held_out: TaskSet, given: argparse.Namespace, seed: int) -> Iterator[Row]:
    """Curves of edges on held-out prompts, and how first-order scores fare when edges are measured; on the most frequent length of either half."""
    found, kept = (replace(data, pairs=data.pairs[:1]) for data in (searched, held_out))
    for method in EDGE_METHODS:
        begin = perf_counter()
        scores = edge_attribution(model, found, method)
        seconds = perf_counter() - begin
        points = edge_curve(model, kept, scores)
        checked = verify(model, found, scores, top=given.top, sample=given.sample, seed=seed)
        numbers = areas(points["budget"].tolist(), points["faithfulness"].tolist()) | {"seconds": seconds}
        numbers |= {f"faithfulness of {row['budget']:.1%}": row["faithfulness"] for row in points.to_dict("records")}
        numbers |= {f"{name}: {measure}": value for name, part in checked.agreement.items() for measure, value in part.items() if measure != "edges"}
        numbers |= {f"missed {measure}": value for measure, value in checked.missed.items()}
        numbers |= {"prompts searched": len(found), "prompts held out": len(kept)}
        yield from ({"seed": seed, "part": "edges", "method": method, "measure": measure, "value": value} for measure, value in numbers.items())


def task_facts(model: HFModel, data: TaskSet, seed: int, part: str) -> Iterator[Row]:
    """How well the full model does: accuracy, and its metric with the standard deviation over prompts and the interval of the mean."""
    value_N = np.concatenate([scene.numbers(scene.base) for scene in scenes(model, data)])
    low, high = interval(value_N[:, None], seed=seed)
    numbers = {"prompts": len(data), "templates": len({item.template for item in data.items}), "accuracy": accuracy(model, data), "sd": value_N.std(ddof=1)}
    yield from ({"seed": seed, "part": part, "method": "full model", "measure": measure, "value": float(value)} for measure, value in numbers.items())
    yield {
        "seed": seed,
        "part": part,
        "method": "full model",
        "measure": "metric",
        "value": float(value_N.mean()),
        "low": float(low[0]),
        "high": float(high[0]),
    }


def of_seed(model: HFModel, given: argparse.Namespace, seed: int) -> Iterator[Row]:
    """All rows of one seed."""
    data = drawn(model, given.task, given.items + given.held_out, given.lengths, seed)
    searched, held_out = halves(data, given.items / (given.items + given.held_out), seed)
    yield from task_facts(model, searched, seed, "searched")
    yield from task_facts(model, held_out, seed, "held out")
    found = rankings(model, searched, seed)
    yield from agreements(found, seed)
    yield from head_faithfulness(model, held_out, found, seed)
    yield from edge_facts(model, searched, held_out, given, seed)


def wide(rows: pd.DataFrame, part: str, digits: int = 2) -> pd.DataFrame:
    """One row per method, one column per measure of a part: means ± standard deviations over seeds."""
    chosen = rows[rows["part"] == part]
    made = []
    for method in chosen["method"].unique():
        own = chosen[chosen["method"] == method]
        made.append({"method": method, **{name: spread(own[own["measure"] == name]["value"].astype(float), digits) for name in own["measure"].unique()}})
    return pd.DataFrame(made)


def first_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """The first heads of each ranking by the first seed, and how many of the first ten two seeds share, on average."""
    made = []
    for method, own in rows[rows["part"] == "heads"].groupby("method", sort=False):
        sets = [set(text.split()) for text in own["value"]]
        shared = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
        made.append({"method": method, "first ten, the first seed": own["value"].iloc[0], "Jaccard of two seeds": spread([np.mean(shared)] if shared else [])})
    return pd.DataFrame(made)


def remarks(rows: pd.DataFrame, model: HFModel, given: argparse.Namespace) -> list[str]:
    """What was measured, the tables but the first, and how to read them."""
    edges = wide(rows, "edges")
    told = ["method", "cpr", "cmd", *(f"faithfulness of {share:.1%}" for share in SHOWN), "top: spearman", "sample: spearman", "missed rate", "missed high"]
    kept = [wide(rows, f"faithfulness, {ablation}").assign(ablation=ablation) for ablation in ABLATIONS]
    what = f"{model.name}, {str(model.dtype).removeprefix('torch.')}, {Path(given.task).name}; {given.seeds} seeds, at most {given.lengths} lengths of prompts."
    return [
        what, "## The full model", markdown(pd.concat([wide(rows, part).assign(prompts_are=part) for part in ("searched", "held out")])),
        "`metric` is that of the task, `sd` its standard deviation over prompts.",
        "## Heads: the faithfulness of the first k, held out", "\n\n".join(markdown(table) for table in kept), SHARES,
        "## Heads: CPR (more is better) and CMD (less is better), held out, resample", markdown(wide(rows, "head curve", 3)),
        "## Which heads", markdown(first_heads(rows)),
        "## Edges", markdown(edges[[name for name in told if name in edges]]), EDGES.format(top=given.top, sample=given.sample),
        "## Agreement with exact activation patching, on the prompts searched", AGREEMENT,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--lengths", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = load(given.model, device=given.device, dtype=given.dtype)
    begin, rows = perf_counter(), []
    for seed in range(given.seeds):
        rows += list(of_seed(model, given, seed))
        print(f"seed {seed}: {perf_counter() - begin:.1f} s", flush=True)
    table = pd.DataFrame(rows)
    write_report(
        given.out, f"Methods that find circuits: {Path(given.task).name} of {model.name}", remarks(table, model, given), wide(table, "agreement"), table
    )
    print(given.out.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
