"""Is a circuit the whole story? The circuit alone, its complement, and parts of both, against the full model, under three ablations, with intervals.

A head outside of a circuit is ablated at all positions; MLPs always stay. Wang et al. 2022 (2211.00593) for faithfulness, completeness and minimality,
Mueller et al. 2025 (MIB, 2504.13151) for the curves. Each number depends on the ablation and the granularity (Miller et al. 2024, 2407.08734).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from workbench.circuits import statistics
from workbench.circuits.alternatives import ABLATIONS
from workbench.circuits.attribution import EdgeScores
from workbench.circuits.edges import through
from workbench.circuits.graph import WRITTEN, pruned
from workbench.circuits.patching import replace_sets, scenes
from workbench.circuits.tasks import TaskSet
from workbench.errors import InputError
from workbench.heads import Head, Shape
from workbench.models import HFModel

BUDGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all heads or edges that MIB's curves keep."""

RESAMPLES = 1000

COLUMNS = {
    "ablation": "what heads outside of the circuit put out: resample (the corrupted prompt's), mean (over corrupted prompts of one template and length), zero",
    "mean_over": "over how many prompts at least the mean was taken; over one, it is resampling",
    "full": "the metric of the full model",
    "empty": "with all heads ablated",
    "circuit": "with the circuit's heads alone",
    "complement": "without the circuit's heads",
    "faithfulness": "(circuit − empty) / (full − empty), a ratio of means; 1 is the full model. Empty if full − empty is within 3 standard errors of 0",
    "low": "lower end of its 95% bootstrap interval over prompts",
    "high": "upper end",
    "complement_faithfulness": "the same of the complement: what is left without the circuit",
    "complement_faithfulness_low": "lower end of its interval",
    "complement_faithfulness_high": "upper end",
    "random": "the mean faithfulness of random circuits with as many heads in each layer",
    "recovered": "the mean over prompts of (circuit − empty) / (full − empty), a mean of ratios, those with a divisor near 0 left out",
    "recovered_low": "lower end of its interval",
    "recovered_high": "upper end",
    "kl": "mean divergence of the circuit's next-token distribution from the full model's, nats",
    "kl_low": "lower end of its interval",
    "kl_high": "upper end",
    "incompleteness": "largest |metric(circuit less K) − metric(model less K)| over the sets K, in the metric's unit",
    "incompleteness_low": "lower end of the interval of that set's difference; that it is the largest of several is not corrected for",
    "incompleteness_high": "upper end",
    "n": "prompts",
}
"""What the columns of `Faithfulness.table` mean."""


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How a circuit of `heads` fares: `table` has a row for every ablation (`COLUMNS`), `minimality` one for every head and ablation.

    `minimality` tells by how much the metric falls when the head leaves the circuit, as a share of full − empty (`drop`), with its 95% bootstrap interval
    (`low`, `high`). Heads, all positions; MLPs stay.
    """

    heads: tuple[Head, ...]
    table: pd.DataFrame
    minimality: pd.DataFrame


def evaluate(
    model: HFModel,
    data: TaskSet,
    heads: Sequence[Head],
    *,
    ablations: Sequence[str] = tuple(ABLATIONS),
    sets: int = 10,
    seed: int = 0,
    metric: str | None = None,
) -> Faithfulness:
    """Evaluate a circuit on prompts, ideally on others than those it was found on.

    `sets` random parts K of the circuit test completeness, and as many random circuits of the same layers stand beside it.
    Raises `InputError` for heads that are not there, none, and unknown ablations.
    """
    if not heads:
        raise InputError("a circuit of no heads cannot be evaluated")
    for head in heads:
        model.shape.check(head)
    inside_LH, rng = mask(model.shape, heads), np.random.default_rng(seed)
    parts = [inside_LH & (rng.random(inside_LH.shape) < 0.5) for _ in range(sets)]
    rivals = [layer_matched(inside_LH, rng) for _ in range(sets)]
    members = [mask(model.shape, [head]) for head in heads]
    every = np.ones_like(inside_LH)
    replaced = [every, ~inside_LH, inside_LH, *(~rival for rival in rivals)]
    replaced += [*(~inside_LH | part for part in parts), *parts, *(~inside_LH | member for member in members)]
    rows, minimal = [], []
    for ablation in ablations:
        value_SN, full_N, _ = replace_sets(model, data, np.stack(replaced), ablation=ablation, metric=metric)
        kl_SN, _, _ = replace_sets(model, data, ~inside_LH[None], ablation=ablation, metric="kl")
        empty_N, circuit_N, complement_N = value_SN[:3]
        rest, whole_N = value_SN[3 + sets :], full_N - empty_N
        row = {
            "ablation": ablation,
            "mean_over": _smallest(data) if ablation == "mean" else np.nan,
            "full": full_N.mean(),
            "empty": empty_N.mean(),
            "circuit": circuit_N.mean(),
            "complement": complement_N.mean(),
        }
        row |= _bounded("faithfulness", faithfulness(circuit_N, empty_N, full_N, seed), "")
        row |= _bounded("complement_faithfulness", faithfulness(complement_N, empty_N, full_N, seed), "complement_faithfulness_")
        row |= {"random": float(np.mean([faithfulness(rival, empty_N, full_N, seed)[0] for rival in value_SN[3 : 3 + sets]])) if sets else np.nan}
        row |= _bounded("recovered", recovered(circuit_N, empty_N, full_N, seed), "recovered_")
        row |= _bounded("kl", _mean(-kl_SN[0], seed), "kl_")
        row |= _bounded("incompleteness", _farthest(rest[:sets] - rest[sets : 2 * sets], seed), "incompleteness_")
        rows.append(row | {"n": len(full_N)})
        for head, without_N in zip(heads, rest[2 * sets :], strict=True):
            minimal.append({"head": str(head), "ablation": ablation} | _bounded("drop", share(circuit_N - without_N, whole_N, seed), ""))
    return Faithfulness(tuple(heads), pd.DataFrame(rows)[list(COLUMNS)], pd.DataFrame(minimal))


Bounded = tuple[float, float, float]
"""A number and its 95% bootstrap interval over prompts."""


def _bounded(name: str, value: Bounded, prefix: str) -> dict[str, float]:
    return dict(zip((name, f"{prefix}low", f"{prefix}high"), value, strict=True))


def _smallest(data: TaskSet) -> int:
    """Prompts of the template and length that has the fewest."""
    return min(count for pairs in data.pairs for count in Counter(pairs.templates).values())


def _mean(value_N: Float[np.ndarray, " N"], seed: int) -> Bounded:
    low, high = statistics.interval(value_N, draws=RESAMPLES, seed=seed)
    return float(value_N.mean()), float(low), float(high)


def _farthest(apart_SN: Float[np.ndarray, "S N"], seed: int) -> Bounded:
    """The set whose mean difference is the farthest from 0, its size; 0 without sets."""
    if not len(apart_SN):
        return 0.0, 0.0, 0.0
    mean_S = apart_SN.mean(1)
    worst = int(np.abs(mean_S).argmax())
    return _mean(apart_SN[worst] * (1 if mean_S[worst] >= 0 else -1), seed)


def faithfulness(circuit_N: Float[np.ndarray, " N"], empty_N: Float[np.ndarray, " N"], full_N: Float[np.ndarray, " N"], seed: int = 0) -> Bounded:
    """(circuit − empty) / (full − empty) of the means, and its 95% bootstrap interval; NaN where `share` is."""
    return share(circuit_N - empty_N, full_N - empty_N, seed)


def share(part_N: Float[np.ndarray, " N"], whole_N: Float[np.ndarray, " N"], seed: int = 0) -> Bounded:
    """The ratio of the means of part and whole, a difference such as full − empty, and its 95% bootstrap interval.

    NaN where the whole is within 3 standard errors of 0, and with one prompt.
    """
    error = whole_N.std(ddof=1) / len(whole_N) ** 0.5 if len(whole_N) > 1 else np.inf
    if abs(whole_N.mean()) <= 3 * error or not whole_N.mean():
        return np.nan, np.nan, np.nan
    drawn_RN = np.random.default_rng(seed).integers(len(whole_N), size=(RESAMPLES, len(whole_N)))
    low, high = np.quantile(part_N[drawn_RN].mean(1) / whole_N[drawn_RN].mean(1), [0.025, 0.975])
    return float(part_N.mean() / whole_N.mean()), float(low), float(high)


def recovered(circuit_N: Float[np.ndarray, " N"], empty_N: Float[np.ndarray, " N"], full_N: Float[np.ndarray, " N"], seed: int = 0) -> Bounded:
    """The mean over prompts of (circuit − empty) / (full − empty), prompts left out whose divisor is below a tenth of the mean one; NaN where `share` is."""
    whole_N = full_N - empty_N
    able_N = np.abs(whole_N) > 0.1 * abs(whole_N.mean())
    if np.isnan(share(circuit_N - empty_N, whole_N)[0]) or not able_N.any():
        return np.nan, np.nan, np.nan
    return _mean((circuit_N - empty_N)[able_N] / whole_N[able_N], seed)


def mask(shape: Shape, heads: Sequence[Head]) -> Bool[np.ndarray, "L H"]:
    """Which heads are meant, as a map."""
    found_LH = np.zeros((shape.n_layers, shape.n_heads), bool)
    for head in heads:
        found_LH[head.layer, head.index] = True
    return found_LH


def layer_matched(inside_LH: Bool[np.ndarray, "L H"], rng: np.random.Generator) -> Bool[np.ndarray, "L H"]:
    """As many heads in each layer, at random."""
    return np.stack([rng.permutation(row) for row in inside_LH])


def areas(budgets: Sequence[float], share: Sequence[float]) -> dict[str, float]:
    """MIB's CPR, the area under the faithfulness over the share kept (more is better), and CMD, that of its distance from 1 (less is better)."""
    curve = np.asarray(share, float)
    return {"cpr": float(np.trapezoid(curve, budgets)), "cmd": float(np.trapezoid(np.abs(1 - curve), budgets))}


def head_curve(
    model: HFModel, data: TaskSet, ranking: Sequence[Head], *, ablation: str = "resample", budgets: Sequence[float] = BUDGETS, metric: str | None = None
) -> pd.DataFrame:
    """The faithfulness of the first heads of a ranking, for each share of all heads kept: budget, heads, faithfulness, low, high."""
    total = model.shape.n_layers * model.shape.n_heads
    counts = [round(budget * total) for budget in budgets]
    replaced = np.stack([np.ones((model.shape.n_layers, model.shape.n_heads), bool), *(~mask(model.shape, ranking[:count]) for count in counts)])
    value_SN, full_N, _ = replace_sets(model, data, replaced, ablation=ablation, metric=metric)
    rows = [
        {"budget": budget, "kept": count, **dict(zip(("faithfulness", "low", "high"), faithfulness(value_N, value_SN[0], full_N), strict=True))}
        for budget, count, value_N in zip(budgets, counts, value_SN[1:], strict=True)
    ]
    return pd.DataFrame(rows)


def edge_curve(model: HFModel, data: TaskSet, scores: EdgeScores, *, budgets: Sequence[float] = BUDGETS, metric: str | None = None) -> pd.DataFrame:
    """The faithfulness of the best edges by |score|, dead ones pruned, for each share of all edges kept; other edges carry the corrupted prompt's share.

    MLPs are nodes here as heads are. Columns: budget, kept (edges after pruning), faithfulness, low, high.
    """
    graph, ranked = scores.graph, scores.ranked()
    kept = []
    for budget in budgets:
        chosen = np.zeros_like(graph.edges_UW)
        for edge in ranked[: round(budget * len(ranked))]:
            chosen[edge] = True
        kept.append(pruned(graph, chosen))
    values, full, empty = [], [], []
    for scene in scenes(model, data, "noising", metric, tokens=WRITTEN):
        cut = [torch.from_numpy(graph.edges_UW & ~keep).to(model.device, scene.base.x[0].dtype) for keep in kept]
        logits = torch.cat([through(scene.anatomy, scene.base, scene.other, cut_UW) for cut_UW in cut])
        values.append(scene.measure(logits, len(kept)).float().cpu().numpy().reshape(len(kept), -1))
        full.append(scene.numbers(scene.base))
        empty.append(scene.numbers(scene.other))
    value_SN, full_N, empty_N = np.concatenate(values, axis=1), np.concatenate(full), np.concatenate(empty)
    rows = [
        {"budget": budget, "kept": int(keep.sum()), **dict(zip(("faithfulness", "low", "high"), faithfulness(value_N, empty_N, full_N), strict=True))}
        for budget, keep, value_N in zip(budgets, kept, value_SN, strict=True)
    ]
    return pd.DataFrame(rows)
