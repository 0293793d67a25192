"""How well do all methods, and the controls of the method of codes, find the 7 heads of the compiled IOI model among 24? For `circuit_truth.py`."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from workbench.circuits import code_controls
from workbench.circuits.code_edges import endpoint_counts
from workbench.circuits.codes import Codes, CodeSettings, encode, node_scores
from workbench.circuits.compiled_ioi import HEADS, INHIBITION, LAYERS, MOVERS, ROLES, Edge, ioi_model
from workbench.circuits.edges import through
from workbench.circuits.faithfulness import mask
from workbench.circuits.finding import METHODS, accuracy, residual_means
from workbench.circuits.graph import graph_of
from workbench.circuits.patching import activation_patching, replace_sets, scenes
from workbench.circuits.paths import LOGITS, path_patching
from workbench.circuits.statistics import curve, recovery
from workbench.circuits.tasks import TaskSet
from workbench.heads import Head
from workbench.models import HFModel

DIGITS = 6
"""As for edges."""

SETTINGS = ((5, 0.0), (5, 0.001), (20, 0.0))
"""β and leak."""

ALL = [Head(layer, index) for layer in range(LAYERS) for index in range(HEADS)]
TRUTH_LH = np.array([head in ROLES for head in ALL]).reshape(LAYERS, HEADS)

CONTROLS = {
    "codes, as a share of all codes": "the method's normalised score",
    "codes in pairs": 'the method\'s "edge" score of heads: ends of the best pairs',
    "codes at unit size": "as codes, what heads write brought to one mean length before",
    "codes, excess": "codes less their mean under labels swapped within pairs",
    "codes, swapped labels": "1 − p under labels swapped within pairs",
    "information": "mutual information of code and label, less its mean under swapped labels; ours",
    "norm": "how long what the head writes is: a control",
    "distinct codes": "how many codes it has, whatever the label: a control",
}
"""What is reported beside the method of codes; none intervenes."""


def head_rows(beta: float, leak: float, seed: int, data: TaskSet) -> Iterator[dict]:
    """One row per method for one model. `f1_released` is what the method's paper calls F1."""
    model = ioi_model(beta, leak, seed)
    facts = {"what": "heads", "beta": beta, "leak": leak, "seed": seed, "accuracy": accuracy(model, data), "prompts": len(data)}
    scores = {name: np.abs(rank(model, data, None, seed).mean_LH) for name, (_, rank) in METHODS.items()}
    scores |= controls(*residual_means(model, data), seed)
    if beta > SATURATED:
        scores |= {name: np.abs(effect_LH) for name, effect_LH in co_ablation(model, data).items()}
    for method, score_LH in scores.items():
        size_LH = score_LH.astype(np.float64).round(DIGITS)
        found = curve(size_LH, TRUTH_LH)
        best = {"f1": float(found.f1.max()), "f1_released": float(found.f1_released.max())}
        yield {**facts, "method": method, **vars(recovery(size_LH, TRUTH_LH)), **best}


def controls(write_NLHD: np.ndarray, positive_N: np.ndarray, seed: int) -> dict[str, Float[np.ndarray, "L H"]]:
    """The scores of `CONTROLS`."""
    settings = CodeSettings(seed=seed)
    codes = encode(write_NLHD, positive_N, settings)
    length_LH = code_controls.norms(write_NLHD)
    level = encode((write_NLHD / np.maximum(length_LH, 1e-9)[None, :, :, None]).astype(np.float32), positive_N, settings)
    return dict(zip(CONTROLS, (*_code_scores(codes), node_scores(level), *_against_nulls(codes, seed), length_LH, code_controls.distinct(codes)), strict=True))


def _code_scores(codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    return node_scores(codes, normalise=True), endpoint_counts(codes)


def _against_nulls(codes: Codes, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    null = code_controls.label_null(codes, seed=seed)
    return null.excess_LH, 1 - null.p_LH, code_controls.information(codes, seed=seed).excess_LH


SATURATED = 12
"""From this β on attention is hard, and heads are also sought together with others."""


def co_ablation(model: HFModel, data: TaskSet) -> dict[str, Float[np.ndarray, "L H"]]:
    """The largest change that replacing a head makes beside other heads that are replaced already, none included.

    `patching in pairs`: beside each other head. `patching beside the writers`: beside the two heads whose direct path to the logits helps most, together;
    which they are is measured, not taken from the truth.
    """
    single_LH = activation_patching(model, data).mean_LH
    pairs = list(combinations(range(len(ALL)), 2))
    value_S, base = _replaced(model, data, [[ALL[place] for place in pair] for pair in pairs])
    best_H = np.abs(single_LH).ravel().copy()
    for (a, b), value in zip(pairs, value_S, strict=True):
        for head, beside in ((a, b), (b, a)):
            best_H[head] = max(best_H[head], abs(value - base - single_LH.ravel()[beside]))
    writers = writers_of(model, data)
    others = [head for head in ALL if head not in writers]
    value_S, _ = _replaced(model, data, [list(writers), *([*writers, head] for head in others)])
    beside_LH = np.abs(single_LH).copy()
    for head, value in zip(others, value_S[1:], strict=True):
        beside_LH[head.layer, head.index] = max(beside_LH[head.layer, head.index], abs(value - value_S[0]))
    return {"patching in pairs": best_H.reshape(LAYERS, HEADS), "patching beside the writers": beside_LH}


def writers_of(model: HFModel, data: TaskSet) -> tuple[Head, Head]:
    """The two heads whose direct path to the logits helps the answer most."""
    direct_LH = path_patching(model, data)[LOGITS].mean_LH
    first, second = np.argsort(direct_LH, axis=None)[:2]
    return ALL[int(first)], ALL[int(second)]


def _replaced(model: HFModel, data: TaskSet, sets: list[list[Head]]) -> tuple[np.ndarray, float]:
    value_SN, base_N, _ = replace_sets(model, data, np.stack([mask(model.shape, heads) for heads in sets]))
    return value_SN.mean(1), float(base_N.mean())


def cut(model: HFModel, data: TaskSet, cuts: list[list[Edge]]) -> list[float]:
    """The change of the logit difference when edges into queries carry the corrupted prompt's share, several at a time."""
    graph = graph_of(model)
    found = []
    for edges in cuts:
        values = []
        for scene in scenes(model, data):
            cut_UW = torch.zeros(graph.senders, graph.receivers)
            for sender, receiver, _ in edges:
                cut_UW[graph.number(f"{sender}->{receiver}.q")] = 1
            values.append(scene.numbers(scene.base) * -1 + scene.measure(through(scene.anatomy, scene.base, scene.other, cut_UW)).numpy())
        found.append(float(np.concatenate(values).mean()))
    return found


def blind_spots(data: TaskSet, beta: float = 20.0) -> pd.DataFrame:
    """What patching one thing does at hard attention, and what patching several does: the change of the logit difference."""
    model = ioi_model(beta)
    backup = next(head for head, role in ROLES.items() if role == "backup mover")
    sets = {"the backup": [backup], "both movers": list(MOVERS), "both movers and the backup": [*MOVERS, backup]}
    value_S, base = _replaced(model, data, list(sets.values()))
    rows = [{"replaced": name, "change": float(value - base), "logit difference": float(value)} for name, value in zip(sets, value_S, strict=True)]
    into: dict[str, list[Edge]] = {f"{head} → queries of {MOVERS[0]}": [(head, MOVERS[0], "q")] for head in INHIBITION}
    into["both at once"] = [(head, MOVERS[0], "q") for head in INHIBITION]
    into["both, into both movers"] = [(head, mover, "q") for head in INHIBITION for mover in MOVERS]
    changes = cut(model, data, list(into.values()))
    rows += [{"replaced": name, "change": change, "logit difference": base + change} for name, change in zip(into, changes, strict=True)]
    return pd.DataFrame(rows)


def head_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per method; for each setting AUROC, average precision and precision at 7, means over seeds, ± their standard deviation."""
    heads, made = rows[rows["what"] == "heads"], []
    for method in heads["method"].unique():
        row = {"method": method, "what it is": METHODS[method][0] if method in METHODS else CONTROLS.get(method, "activation patching of several heads")}
        for beta, leak in SETTINGS:
            part = heads[(heads["method"] == method) & (heads["beta"] == beta) & (heads["leak"] == leak)]
            numbers = " / ".join(_spread(part[name]) for name in ("auroc", "average_precision", "precision_at_truth"))
            row[f"β = {beta:g}, leak {leak:g}"] = "–" if part.empty else numbers
        made.append(row)
    return pd.DataFrame(made)


def _spread(values: pd.Series) -> str:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.2f}" + (f"±{spread:.2f}" if spread >= 0.005 else "")


def significant(data: TaskSet, seed: int = 0, level: float = 0.05) -> tuple[Bool[np.ndarray, "L H"], float]:
    """Which heads' codes the swapped labels call significant, and how stable the scores are over seeds of the autoencoder (mean Spearman correlation)."""
    write_NLHD, positive_N = residual_means(ioi_model(seed=seed), data)
    null = code_controls.label_null(encode(write_NLHD, positive_N, CodeSettings(seed=seed)), seed=seed)
    return null.p_LH <= level, code_controls.stability(write_NLHD, positive_N).correlation
