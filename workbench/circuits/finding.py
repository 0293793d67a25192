"""Which heads make a behaviour? Heads ranked by a method, as many as a faithful circuit needs, their edges measured, all evaluated on held-out prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.circuits import attribution, codes, patching, paths
from workbench.circuits.attribution import EdgeScores, edge_attribution
from workbench.circuits.circuit import Circuit
from workbench.circuits.code_controls import label_null
from workbench.circuits.effects import Effects
from workbench.circuits.faithfulness import evaluate, faithfulness, mask
from workbench.circuits.patching import Progress, replace_sets, scenes
from workbench.circuits.tasks import TaskSet
from workbench.circuits.verify import COLUMNS as EDGE_COLUMNS
from workbench.circuits.verify import verify
from workbench.circuits.writes import mean_writes
from workbench.errors import InputError, unknown
from workbench.heads import Head
from workbench.models import HFModel
from workbench.runs import versions

Ranked = Callable[[HFModel, TaskSet, str | None, int], Effects]

METHODS: Mapping[str, tuple[str, Ranked]] = {
    "patching": ("activation patching of each head's output, exact", lambda model, data, metric, _: patching.activation_patching(model, data, metric=metric)),
    "path": (
        "path patching to the logits, other heads frozen, exact",
        lambda model, data, metric, _: paths.path_patching(model, data, metric=metric)[paths.LOGITS],
    ),
    "direct": ("direct logit attribution, one pass", lambda model, data, metric, _: patching.direct_attribution(model, data, metric)),
    "attribution": ("attribution patching, first order", lambda model, data, metric, _: attribution.node_attribution(model, data, "eap", metric=metric)),
    "ig-inputs": (
        "attribution integrated over the inputs",
        lambda model, data, metric, _: attribution.node_attribution(model, data, "eap-ig-inputs", metric=metric),
    ),
    "ig-activations": (
        "attribution integrated over each head's output",
        lambda model, data, metric, _: attribution.node_attribution(model, data, "eap-ig-activations", metric=metric),
    ),
    "codes": ("sparse-autoencoder codes unique to clean prompts, no intervention", lambda model, data, _metric, seed: code_scores(model, data, seed)),
}
"""How heads are ranked: what it is, and how it is done."""

EDGE_METHOD = "eap-ig-inputs"


@dataclass(frozen=True)
class Search:
    """How a circuit is searched: the `method`, and its size: so many heads, or as many as reach `target` faithfulness (resample) on the prompts of the search.

    `edges` are the most edges between its heads, the input and the logits that are measured exactly. `anyway` searches also where the model cannot do the task.
    """

    method: str = "patching"
    size: int | None = None
    target: float = 0.8
    edges: int = 60
    metric: str | None = None
    anyway: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.size is not None and self.size < 1:
            raise InputError(f"a circuit has one head or more, not {self.size}")
        if not 0 < self.target <= 1:
            raise InputError(f"faithfulness is sought between 0 and 1, got {self.target:g}")


def find(model: HFModel, searched: TaskSet, held_out: TaskSet, how: Search | None = None, progress: Progress = lambda *_: None) -> Circuit:
    """Search a circuit on some prompts and evaluate it on others.

    Raises `InputError` if the model does the task no better than chance (unless `anyway`), and as the method does.
    """
    how = how or Search()
    right = accuracy(model, searched)
    if right <= searched.chance and not how.anyway:
        raise InputError(
            f"{model.name} answers {right:.0%} of {searched.task} rightly, where guessing gives {searched.chance:.0%}: "
            "there is no behaviour to find a circuit for; search anyway to be shown one"
        )
    effects = METHODS[how.method][1](model, searched, how.metric, how.seed)
    ranking = effects.ranked()
    heads = ranking[: how.size] if how.size else ranking[: _enough(model, searched, ranking, how)]
    scores = edge_attribution(model, searched, EDGE_METHOD, metric=how.metric, progress=progress) if how.edges else None
    edges = _edges(model, searched, scores, heads, how) if scores else pd.DataFrame(columns=list(EDGE_COLUMNS))
    tested = evaluate(model, held_out, heads, seed=how.seed, metric=how.metric)
    facts = {
        **{name: value for name, value in effects.facts.items() if name not in ("task", "positions")},
        "method": how.method,
        "size": "given" if how.size else f"reaches {how.target:g} on the prompts of the search",
        "edge_method": EDGE_METHOD if how.edges else None,
        "prompts": {"searched": len(searched), "held_out": len(held_out), "dropped": dict(searched.dropped)},
        "templates": {"searched": len({item.template for item in searched.items}), "held_out": len({item.template for item in held_out.items})},
        "accuracy": {"searched": right, "held_out": accuracy(model, held_out), "chance": searched.chance},
        "seed": how.seed,
        "seed_prompts": searched.seed,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        **versions(),
    }
    return Circuit(model.card, searched.task, tuple(heads), effects.table(how.seed), edges, tested.table, tested.minimality, facts)


def accuracy(model: HFModel, data: TaskSet) -> float:
    """The share of clean prompts that the model answers rightly, 0–1."""
    right = [scene.pairs.correct(scene.base.logits_BV) for scene in scenes(model, data)]
    return float(np.concatenate(right).mean())


def _enough(model: HFModel, data: TaskSet, ranking: Sequence[Head], how: Search) -> int:
    """The smallest number of heads, in the order of the ranking, that reaches the target on these prompts; all of them if none does."""
    sizes = sorted({round(1.15**step) for step in range(60) if round(1.15**step) <= len(ranking)} | {len(ranking)})
    shape = model.shape
    for begin in range(0, len(sizes), 12):
        some = sizes[begin : begin + 12]
        replaced = np.stack([np.ones((shape.n_layers, shape.n_heads), bool), *(~mask(shape, ranking[:size]) for size in some)])
        value_SN, full_N, _ = replace_sets(model, data, replaced, metric=how.metric)
        for size, value_N in zip(some, value_SN[1:], strict=True):
            if faithfulness(value_N, value_SN[0], full_N)[0] >= how.target:
                return size
    return len(ranking)


def _edges(model: HFModel, data: TaskSet, scores: EdgeScores, heads: Sequence[Head], how: Search) -> pd.DataFrame:
    """The best edges by score between the heads of a circuit, the input and the logits, measured exactly."""
    graph, inside = scores.graph, {str(head) for head in heads} | {"input", "logits"}
    groups = {f"L{head.layer}G{model.shape.kv_head(head)}" for head in heads}

    def ours(sender: int, receiver: int) -> bool:
        return graph.sender_names[sender] in inside and graph.receiver_names[receiver].partition(".")[0] in inside | groups

    chosen = np.zeros_like(scores.score_NUW)
    for edge in scores.ranked():
        if ours(*edge) and edge != (0, graph.logits):
            chosen[:, edge[0], edge[1]] = scores.score_NUW[:, edge[0], edge[1]]
    count = min(how.edges, int((chosen[0] != 0).sum()))
    only = EdgeScores(graph, chosen, scores.base_N, scores.other_N, scores.facts)
    return verify(model, data, only, top=count, sample=0, seed=how.seed).table


def code_scores(model: HFModel, data: TaskSet, seed: int = 0) -> Effects:
    """Heads by how many codes of a sparse autoencoder only clean prompts have; p-values are those of labels swapped within pairs.

    Observational: nothing is intervened on, so what stands for an effect is a count of codes.
    """
    found = codes.encode(*residual_means(model, data), codes.CodeSettings(seed=seed))
    null, total = label_null(found, seed=seed), len(data)
    facts: dict[str, Any] = {"method": "codes", "component": "residual write, mean over positions", "ablation": None, "direction": None}
    count_NLH = np.repeat(null.score_LH[None].astype(np.float32), total, axis=0)
    return Effects(count_NLH, np.zeros(total), np.ones(total), 1, facts, null.p_LH)


def residual_means(model: HFModel, data: TaskSet) -> tuple[np.ndarray, np.ndarray]:
    """What each head writes, averaged over positions [N, L, H, D], for the clean prompts and then the corrupted ones; and which are clean [N]."""
    clean, corrupted = [], []
    for scene in scenes(model, data):
        for trace, kept in ((scene.base, clean), (scene.other, corrupted)):
            layers = [mean_writes(scene.anatomy, layer, z) for layer, z in enumerate(trace.z)]
            kept.append(torch.stack(layers, dim=1).float().cpu().numpy())
    parts = np.concatenate([*clean, *corrupted])
    return parts, np.arange(len(parts)) < len(parts) // 2
