"""Which heads make a behaviour? Heads ranked by a method, as many as a faithful circuit needs, their edges measured, all evaluated on held-out prompts."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.circuits import attribution, codes, patching, paths
from workbench.circuits.attribution import EdgeScores, edge_attribution
from workbench.circuits.circuit import Circuit
from workbench.circuits.code_controls import distinct, label_null, norms
from workbench.circuits.effects import Effects
from workbench.circuits.faithfulness import areas, evaluate, faithfulness, head_curve, mask
from workbench.circuits.patching import Progress, replace_sets, scenes
from workbench.circuits.tasks import Item, TaskSet
from workbench.circuits.verify import COLUMNS as EDGE_COLUMNS
from workbench.circuits.verify import verify
from workbench.circuits.writes import mean_writes
from workbench.errors import InputError, unknown
from workbench.heads import Head
from workbench.models import HFModel
from workbench.runs import versions
from workbench.scores import rank_agreement

Ranked = Callable[[HFModel, TaskSet, str | None, int], Effects]

METHODS: Mapping[str, tuple[str, Ranked]] = {
    "patching": ("activation patching of each head's output, exact", lambda model, data, metric, _: patching.activation_patching(model, data, metric=metric)),
    "path": (
        "path patching to the logits, other heads frozen, exact",
        lambda model, data, metric, _: paths.path_patching(model, data, metric=metric)[paths.LOGITS],
    ),
    "direct": ("direct logit attribution, one pass: what would be lost without it", lambda model, data, metric, _: _lost(model, data, metric)),
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

OTHER_SEEDS = 2
"""Other seeds of the autoencoder that a ranking by codes is compared with."""

SAMPLE = 30
"""Edges outside of the circuit that are measured, to see how many the scores miss."""


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
        if self.edges < 0:
            raise InputError(f"0 edges or more can be measured, not {self.edges}")
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
    size, reached = (how.size, "given") if how.size else _enough(model, searched, ranking, how)
    heads = ranking[:size]
    edges, checked = pd.DataFrame(columns=list(EDGE_COLUMNS)), {}
    if how.edges:
        edges, checked = _edges(model, held_out, edge_attribution(model, searched, EDGE_METHOD, metric=how.metric, progress=progress), heads, how)
    tested = evaluate(model, held_out, heads, seed=how.seed, metric=how.metric)
    curve = head_curve(model, held_out, ranking, metric=how.metric)
    facts = {
        **{name: value for name, value in effects.facts.items() if name not in ("task", "positions")},
        "method": how.method,
        "size": reached,
        "held_out": areas(curve["budget"].tolist(), curve["faithfulness"].tolist()),
        **_agreement(model, searched, effects, how),
        "edge_method": EDGE_METHOD if how.edges else None,
        **checked,
        "prompts": {"searched": len(searched), "held_out": len(held_out), "dropped": dict(searched.dropped)},
        "templates": {"searched": len({item.template for item in searched.items}), "held_out": len({item.template for item in held_out.items})},
        "accuracy": {"searched": right, "held_out": accuracy(model, held_out), "chance": searched.chance},
        "seen": sorted(mark(item) for item in searched.items),
        "seed": how.seed,
        "seed_prompts": searched.seed,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        **versions(),
    }
    return Circuit(model.card, searched.task, tuple(heads), effects.table(how.seed), edges, tested.table, tested.minimality, known(facts))


def accuracy(model: HFModel, data: TaskSet) -> float:
    """The share of clean prompts that the model answers rightly, 0–1."""
    right = [scene.pairs.correct(scene.base.logits_BV) for scene in scenes(model, data)]
    return float(np.concatenate(right).mean())


def _lost(model: HFModel, data: TaskSet, metric: str | None) -> Effects:
    """Direct attribution with the sign of an effect: what the metric would lose without the head's own write."""
    effects = patching.direct_attribution(model, data, metric)
    return replace(effects, effect_NLH=-effects.effect_NLH)


def known(value: Any) -> Any:
    """Plain data in which numbers that are not known are null, as JSON has no other word for it."""
    if isinstance(value, Mapping):
        return {name: known(part) for name, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def mark(item: Item) -> str:
    """Eight hexadecimal digits that tell an item's clean prompt from others."""
    return hashlib.sha256(item.clean.encode()).hexdigest()[:8]


def unseen(data: TaskSet, circuit: Circuit) -> TaskSet:
    """The items that a circuit was not searched on. Raises `InputError` if none is left."""
    seen, kept = set(circuit.provenance.get("seen", ())), []
    for pairs in data.pairs:
        rows = [row for row, item in enumerate(pairs.items) if mark(item) not in seen]
        if rows:
            kept.append(pairs.rows(rows))
    if not kept:
        raise InputError(f"all {len(data)} items of {data.task} are among those that the circuit was searched on; give another seed or task")
    return replace(data, pairs=tuple(kept))


def _agreement(model: HFModel, data: TaskSet, effects: Effects, how: Search) -> dict[str, Any]:
    """How a ranking agrees with exact patching on the same prompts; that of codes also with its baselines of size and variety, and with other seeds of it."""
    if how.method == "patching":
        return {}
    sizes = {"exact patching": np.abs(patching.activation_patching(model, data, metric=how.metric).mean_LH)}
    if how.method == "codes":
        write_NLHD, clean_N = residual_means(model, data)
        seeds = [codes.encode(write_NLHD, clean_N, codes.CodeSettings(seed=how.seed + step)) for step in range(1 + OTHER_SEEDS)]
        sizes |= {"norm of writes": norms(write_NLHD), "distinct codes": distinct(seeds[0])}
        sizes |= {f"codes with seed {how.seed + step}": codes.node_scores(seeds[step]) for step in range(1, 1 + OTHER_SEEDS)}
    return {"agreement": {name: rank_agreement(np.abs(effects.mean_LH).ravel(), size.ravel(), 10) for name, size in sizes.items()}}


def _enough(model: HFModel, data: TaskSet, ranking: Sequence[Head], how: Search) -> tuple[int, str]:
    """How many heads, in the order of the ranking, reach the target on these prompts (to about 15% of their number), and that in words.

    All heads if no number does. Raises `InputError` where ablating all heads makes no difference, unless searched anyway.
    """
    sizes = sorted({round(1.15**step) for step in range(60) if round(1.15**step) <= len(ranking)} | {len(ranking)})
    shape, share = model.shape, float("nan")
    for begin in range(0, len(sizes), 12):
        some = sizes[begin : begin + 12]
        replaced = np.stack([np.ones((shape.n_layers, shape.n_heads), bool), *(~mask(shape, ranking[:size]) for size in some)])
        value_SN, full_N, _ = replace_sets(model, data, replaced, metric=how.metric)
        for size, value_N in zip(some, value_SN[1:], strict=True):
            share = faithfulness(value_N, value_SN[0], full_N)[0]
            if share >= how.target:
                return size, f"reaches {share:.2f} on the prompts of the search, {how.target:g} was asked for"
    if np.isnan(share) and not how.anyway:
        raise InputError("with all heads ablated the metric is what it was, within 3 standard errors: faithfulness is not defined; give more items, or a size")
    return len(ranking), f"all heads that the method ranks: {how.target:g} is not reached ({share:.2f})"


def _edges(model: HFModel, data: TaskSet, scores: EdgeScores, heads: Sequence[Head], how: Search) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The best edges by score between the heads of a circuit, the input and the logits, measured exactly; beside them a sample of all others."""
    graph, inside = scores.graph, {str(head) for head in heads} | {"input", "logits"}
    groups = {f"L{head.layer}G{model.shape.kv_head(head)}" for head in heads}

    def ours(sender: int, receiver: int) -> bool:
        return graph.sender_names[sender] in inside and graph.receiver_names[receiver].partition(".")[0] in inside | groups

    best = [edge for edge in scores.ranked() if ours(*edge) and edge != (0, graph.logits)][: how.edges]
    found = verify(model, data, scores, top=best, sample=SAMPLE, seed=how.seed)
    table = found.table[found.table["chosen"] == "top"].reset_index(drop=True)
    return table, {"edge_agreement": dict(found.agreement), "edges_missed": dict(found.missed)}


def code_scores(model: HFModel, data: TaskSet, seed: int = 0) -> Effects:
    """Heads by how many codes of a sparse autoencoder only clean prompts have; p-values are those of labels swapped within pairs.

    Observational: nothing is intervened on, so what stands for an effect is a count of codes, below 0 as of
    heads that the clean prompts have something of; it is no share of anything.
    """
    found = codes.encode(*residual_means(model, data), codes.CodeSettings(seed=seed))
    null, total = label_null(found, seed=seed), len(data)
    facts: dict[str, Any] = {"method": "codes", "component": "residual write, mean over positions", "ablation": None, "direction": None}
    count_NLH = np.repeat(null.score_LH[None].astype(np.float32), total, axis=0)
    return Effects(-count_NLH, np.zeros(total), np.full(total, np.nan), 1, facts, null.p_LH)


def residual_means(model: HFModel, data: TaskSet) -> tuple[np.ndarray, np.ndarray]:
    """What each head writes, averaged over positions [N, L, H, D], for the clean prompts and then the corrupted ones; and which are clean [N]."""
    clean, corrupted = [], []
    for scene in scenes(model, data):
        for trace, kept in ((scene.base, clean), (scene.other, corrupted)):
            layers = [mean_writes(scene.anatomy, layer, z) for layer, z in enumerate(trace.z)]
            kept.append(torch.stack(layers, dim=1).float().cpu().numpy())
    parts = np.concatenate([*clean, *corrupted])
    return parts, np.arange(len(parts)) < len(parts) // 2
