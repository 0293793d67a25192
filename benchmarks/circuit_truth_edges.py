"""How well do exact and first-order methods find the 19 edges of the compiled IOI model among 672? For `circuit_truth.py`."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from workbench.circuits.attribution import edge_attribution
from workbench.circuits.compiled_ioi import EDGES, all_edges, ioi_model
from workbench.circuits.edges import exact_effects
from workbench.circuits.finding import accuracy
from workbench.circuits.graph import Graph, graph_of
from workbench.circuits.statistics import recovery
from workbench.circuits.tasks import TaskSet
from workbench.models import HFModel

DIGITS = 6
"""Scores are rounded to so many digits: smaller ones are rounding errors of single precision (up to 3e-7 where the truth is 0), which would decide ties."""

SETTINGS = ((3, 0.0, 1), (5, 0.0, 1), (8, 0.0, 1), (20, 0.0, 1), (5, 0.0003, 10), (5, 0.001, 10), (20, 0.0003, 10))
"""β, leak, and how many model seeds."""

SPECIFICATION: dict[tuple[float, float], dict[str, tuple[float, float, float]]] = {
    **{(beta, 0.0): dict.fromkeys(("exact", "EAP", "clean-corrupted", "EAP-IG-inputs, 5", "EAP-IG-inputs, 30"), (1.0, 0.0, 1.0)) for beta in (3, 5, 8)},
    (20, 0.0): {
        "exact": (0.90, 0, 0.93), "EAP": (0.66, 0, 0.92), "clean-corrupted": (0.70, 0, 0.93),
        "EAP-IG-inputs, 5": (0.95, 0, 0.98), "EAP-IG-inputs, 30": (0.95, 0, 0.98),
    },
    (5, 0.0003): {
        "exact": (0.965, 0.036, 0.995), "EAP": (0.693, 0.234, 0.974), "clean-corrupted": (0.567, 0.227, 0.959),
        "EAP-IG-inputs, 5": (0.872, 0.166, 0.995), "EAP-IG-inputs, 30": (0.917, 0.137, 0.996),
    },
    (5, 0.001): {
        "exact": (0.921, 0.047, 0.985), "EAP": (0.543, 0.172, 0.952), "clean-corrupted": (0.451, 0.113, 0.942),
        "EAP-IG-inputs, 5": (0.796, 0.245, 0.989), "EAP-IG-inputs, 30": (0.815, 0.186, 0.991),
    },
    (20, 0.0003): {
        "exact": (0.560, 0.036, 0.798), "EAP": (0.220, 0.012, 0.761), "clean-corrupted": (0.296, 0.113, 0.811),
        "EAP-IG-inputs, 5": (0.727, 0.087, 0.906), "EAP-IG-inputs, 30": (0.845, 0.032, 0.966),
    },
}  # fmt: skip
"""Average precision, its standard deviation over ten seeds, and AUROC of another model of the same design, whose idle heads were drawn otherwise."""

TRUTH_E = np.array([edge in EDGES for edge in all_edges()])


def places(graph: Graph) -> list[tuple[int, int]]:
    """The 672 edges as numbers of a graph, in the order of `all_edges`."""
    named = []
    for sender, receiver, part in all_edges():
        if receiver is None:
            named.append(f"{sender}->logits")
        else:
            named.append(f"{sender}->{receiver}.q" if part == "q" else f"{sender}->L{receiver.layer}G{receiver.index}.{part}")
    return [graph.number(name) for name in named]


def attributed(model: HFModel, data: TaskSet, method: str, steps: int = 1, direction: str = "noising") -> np.ndarray:
    """First-order scores of the 672 edges."""
    sender_E, receiver_E = np.array(places(graph_of(model))).T
    return edge_attribution(model, data, method, steps=steps, direction=direction).mean_UW[sender_E, receiver_E]


def clean_corrupted(model: HFModel, data: TaskSet) -> np.ndarray:
    """The mean of the gradients at the clean and at the corrupted prompts, times corrupted less clean."""
    return (attributed(model, data, "eap") - attributed(model, data, "eap", direction="denoising")) / 2


EDGE_METHODS: dict[str, Callable[[HFModel, TaskSet], np.ndarray]] = {
    "exact": lambda model, data: exact_effects(model, data, places(graph_of(model))).mean(0),
    "EAP": lambda model, data: attributed(model, data, "eap"),
    "clean-corrupted": clean_corrupted,
    "EAP-IG-inputs, 5": lambda model, data: attributed(model, data, "eap-ig-inputs", 5),
    "EAP-IG-inputs, 30": lambda model, data: attributed(model, data, "eap-ig-inputs", 30),
    "EAP-IG-activations, 5": lambda model, data: attributed(model, data, "eap-ig-activations", 5),
}
"""Signed scores of the 672 edges, corrupted less clean; the number of steps behind the name. `exact` must come first: others are compared with it."""


def edge_rows(beta: float, leak: float, seed: int, data: TaskSet, methods: tuple[str, ...] = tuple(EDGE_METHODS)) -> Iterator[dict]:
    """One row per method for one model: recovery of the truth, Pearson's correlation with the exact effects, and the model's facts."""
    model, exact_E = ioi_model(beta, leak, seed), None
    right = accuracy(model, data)
    for method in methods:
        score_E = EDGE_METHODS[method](model, data)
        exact_E = score_E if method == "exact" else exact_E
        size_E = np.abs(score_E).astype(np.float64).round(DIGITS)
        yield {
            "what": "edges", "beta": beta, "leak": leak, "seed": seed, "method": method, **vars(recovery(size_E, TRUTH_E)),
            "pearson": float("nan") if exact_E is None else float(np.corrcoef(score_E, exact_E)[0, 1]),
            "weakest_true": float(size_E[TRUTH_E].min()), "largest_other": float(size_E[~TRUTH_E].max()),
            "accuracy": right, "prompts": len(data),
        }  # fmt: skip


def edge_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Average precision (AUROC in brackets) by setting and method, each beside the number of the specification in italics."""
    made = []
    for beta, leak, _ in SETTINGS:
        part = rows[(rows["what"] == "edges") & (rows["beta"] == beta) & (rows["leak"] == leak)]
        if part.empty:
            continue
        row = {"β": f"{beta:g}", "leak": f"{leak:g}", "seeds": part["seed"].nunique()}
        for method in EDGE_METHODS:
            one = part[part["method"] == method]
            told = SPECIFICATION[beta, leak].get(method)
            cell = "" if one.empty else _cell(one["average_precision"].mean(), one["average_precision"].std(ddof=1), one["auroc"].mean())
            few = f", {len(one)} of them" if 0 < len(one) < row["seeds"] else ""
            row[method] = cell + few + (f"; *{_cell(*told)}*" if told else "")
        made.append(row)
    return pd.DataFrame(made)


def _cell(precision: float, spread: float, area: float) -> str:
    return f"{precision:.3f}" + (f"±{spread:.3f}" if spread > 0 else "") + f" ({area:.3f})"


def departures(rows: pd.DataFrame) -> list[str]:
    """Where the mean over our seeds lies outside of the specification's mean ± standard deviation (± 0.01 where that is of one seed)."""
    found = []
    for (beta, leak), methods in SPECIFICATION.items():
        part = rows[(rows["what"] == "edges") & (rows["beta"] == beta) & (rows["leak"] == leak)]
        for method, (mean, spread, _) in methods.items():
            ours = part[part["method"] == method]["average_precision"]
            far = abs(ours.mean() - mean)
            if len(ours) and far > max(spread, 0.0101):
                side = "above" if ours.mean() > mean else "below"
                outside = f"{far / spread:.1f} of its standard deviations" if spread else f"{far:.2f}"
                found.append(f"- β = {beta:g}, leak {leak:g}, {method}: {ours.mean():.3f}, {side} {mean:.3f} by {outside}")
    return found


def pearson_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Pearson's correlation of signed scores with the exact effects, and how far true and other edges lie apart by those: means over seeds."""
    made = []
    for beta, leak, _ in SETTINGS:
        part = rows[(rows["what"] == "edges") & (rows["beta"] == beta) & (rows["leak"] == leak)]
        if part.empty:
            continue
        exact = part[part["method"] == "exact"]
        row = {
            "β": f"{beta:g}",
            "leak": f"{leak:g}",
            "weakest true": f"{exact['weakest_true'].mean():.4f}",
            "largest other": f"{exact['largest_other'].mean():.4f}",
        }
        row |= {"accuracy": f"{exact['accuracy'].mean():.3f}"}
        made.append(row | {method: f"{part[part['method'] == method]['pearson'].mean():.2f}" for method in EDGE_METHODS if method != "exact"})
    return pd.DataFrame(made)
