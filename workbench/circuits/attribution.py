"""Which edges matter, to first order? Edge attribution patching, and its integrated variants, over heads, MLPs and all edges between them.

EAP (Syed et al. 2023, 2310.10348): how the metric would change if a receiver got a sender's share from the other prompt, by the gradient at the base prompts.
EAP-IG (Hanna et al. 2024, 2403.17806) averages the gradient on the way from the other prompts' embeddings to the base ones (`inputs`), or on each
sender's way from its base to its other output (`activations`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.circuits.anatomy import Anatomy
from workbench.circuits.effects import Effects, joined
from workbench.circuits.graph import WRITTEN, Graph, changes, graph_of
from workbench.circuits.patching import Progress, Scene, scenes
from workbench.circuits.tasks import TaskSet
from workbench.errors import InputError, unknown
from workbench.models import HFModel

METHODS = {
    "eap": "the gradient at the base prompts",
    "eap-ig-inputs": "the gradient averaged between the embeddings of the other prompts and the base ones",
    "eap-ig-activations": "the gradient averaged between each sender's output on the base prompts and on the others",
}
"""Where the gradient is taken."""

STEPS = 5
"""Points of the integrated variants (MIB's number; the library of Hanna et al. takes 30)."""


TOKENS = {"cpu": 2**9, "cuda": 2**11}
"""How many tokens the steps of an integral take at once, where they are of one size; what a pass keeps for its gradient takes much memory."""


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """First-order changes of the metric by patching each edge, prompt by prompt `score_NUW` (zero where there is no edge), patched less base."""

    graph: Graph
    score_NUW: Float[np.ndarray, "N U W"]
    base_N: Float[np.ndarray, " N"]
    other_N: Float[np.ndarray, " N"]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def mean_UW(self) -> Float[np.ndarray, "U W"]:
        """The mean score."""
        return self.score_NUW.mean(0)

    def ranked(self) -> list[tuple[int, int]]:
        """All edges, the largest score in size first."""
        mean_UW = np.where(self.graph.edges_UW, np.abs(self.mean_UW), -1)
        order = np.argsort(-mean_UW, axis=None, kind="stable")[: int(self.graph.edges_UW.sum())]
        return [(int(place // mean_UW.shape[1]), int(place % mean_UW.shape[1])) for place in order]


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of the metric: at the heads' outputs, and at what each receiver reads; layer by layer, from the layer where the pass began."""

    begin: int
    z: list[Float[Tensor, "B H T E"]]
    reads: list[Float[Tensor, "R B T D"]]
    mlp_reads: list[Float[Tensor, "B T D"]]
    logits: Float[Tensor, "B T D"]


Replace = Callable[[int, str, Tensor], Tensor]
"""From a layer, `z` or `mlp`, and what it is, to what it shall be."""


def gradients(
    anatomy: Anatomy, measure: Callable[[Tensor], Tensor], x_BTD: Tensor, begin: int = 0, replace: Replace | None = None, *, edges: bool = True
) -> Gradients:
    """One pass from block `begin` on and back. Raises `InputError` if a gradient is not finite."""
    with torch.enable_grad():
        x = x_BTD.detach().clone().requires_grad_()
        inputs, parts = [], {name: [] for name in (("q", "k", "v", "z", "mlp_reads") if edges else ("z",))}
        for layer in range(begin, anatomy.shape.n_layers):

            def mix(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                z = anatomy.mix(layer, q, k, v)
                z = z if replace is None else replace(layer, "z", z)
                for name, value in zip("qkvz", (q, k, v, z), strict=True):
                    if name in parts:
                        parts[name].append(value)
                return z

            inputs.append(x.detach())
            mid = x + anatomy.attend(layer, x, mix)
            read = x if anatomy.parallel else mid
            if edges:  # a tensor of its own, so that its gradient is that of this one reader
                read = read + torch.zeros_like(x, requires_grad=True)
                parts["mlp_reads"].append(read)
            written = anatomy.mlp(layer, read)
            written = written if replace is None else replace(layer, "mlp", written)
            x = mid + written
        total = measure(anatomy.logits(x[:, -1])).sum()
        wanted = [*(value for values in parts.values() for value in values), x]
        found = torch.autograd.grad(total, wanted, allow_unused=True)
    grads = [torch.zeros_like(value) if grad is None else grad for value, grad in zip(wanted, found, strict=True)]
    if not torch.stack([grad.isfinite().all() for grad in grads]).all():
        raise InputError("a gradient of the metric is not finite; try dtype float32, or another metric")
    count = anatomy.shape.n_layers - begin
    by_name = {name: grads[place * count : (place + 1) * count] for place, name in enumerate(parts)}
    reads = [_reads(anatomy, begin + place, inputs[place], *(by_name[name][place] for name in "qkv")) for place in range(count)] if edges else []
    return Gradients(begin, by_name["z"], reads, by_name.get("mlp_reads", []), grads[-1])


def _reads(anatomy: Anatomy, layer: int, x_BTD: Tensor, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor) -> Float[Tensor, "R B T D"]:
    """The gradient at the input of each head's queries and each KV head's keys and values, from those at q, k and v."""
    heads, groups = q_BHTE.shape[1], k_BGTE.shape[1]
    cotangents = []
    for grad, first, count in ((q_BHTE, 0, heads), (k_BGTE, heads, groups), (v_BGTE, heads + groups, groups)):
        each = grad.new_zeros(heads + 2 * groups, *grad.shape)
        for index in range(count):
            each[first + index, :, index] = grad[:, index]
        cotangents.append(each)
    with torch.enable_grad():
        x = x_BTD.detach().requires_grad_()
        return torch.autograd.grad(anatomy.qkv(layer, x), x, cotangents, is_grads_batched=True)[0]


def edge_attribution(
    model: HFModel,
    data: TaskSet,
    method: str = "eap-ig-inputs",
    *,
    steps: int = STEPS,
    direction: str = "noising",
    metric: str | None = None,
    progress: Progress = lambda *_: None,
) -> EdgeScores:
    """First-order scores of all edges by one of `METHODS`, with so many `steps` where it integrates.

    Raises `InputError` for an unknown method, fewer than 1 step, gradients that are not finite, and for `kl` with `eap`: its gradient at the base prompts is 0.
    """
    _check(method, metric or data.pairs[0].metric, steps)
    graph, found = graph_of(model), []
    for number, scene in enumerate(scenes(model, data, direction, metric, tokens=WRITTEN)):
        progress(number, len(data.pairs))
        score_BUW = torch.zeros(len(scene.pairs), graph.senders, graph.receivers)
        change_UBTD = changes(scene.anatomy, scene.base, scene.other)
        for senders, grads in _points(scene, method, steps):
            _add(score_BUW, graph, change_UBTD, senders, grads, 1 / steps if method != "eap" else 1.0)
        found.append((score_BUW.numpy(), scene.numbers(scene.base), scene.numbers(scene.other)))
    score, base, other = (np.concatenate(parts) for parts in zip(*found, strict=True))
    facts = {"method": method, "steps": steps if method != "eap" else 1, "direction": direction, "metric": metric or data.pairs[0].metric, "task": data.task}
    return EdgeScores(graph, score, base, other, facts)


def _check(method: str, metric: str, steps: int) -> None:
    if method not in METHODS:
        raise unknown("method of attribution", method, METHODS)
    if method == "eap" and metric == "kl":
        raise InputError("the divergence from the base prompts has no slope at the base prompts; integrate (eap-ig-inputs), or give the metric of the task")
    if steps < 1:
        raise InputError(f"an integral takes 1 step or more, not {steps}")


def _points(scene: Scene, method: str, steps: int) -> Iterator[tuple[slice, Gradients]]:
    """The gradients that a method takes, and for which senders."""
    anatomy, base, other, everyone = scene.anatomy, scene.base, scene.other, slice(None)
    if method == "eap":
        yield everyone, gradients(anatomy, scene.measure, base.x[0])
    elif method == "eap-ig-inputs":
        for step in range(steps):
            yield everyone, gradients(anatomy, scene.measure, torch.lerp(other.x[0], base.x[0], step / steps))
    else:
        yield from _along_activations(scene, steps)


def _along_activations(scene: Scene, steps: int) -> Iterator[tuple[slice, Gradients]]:
    anatomy, base, other = scene.anatomy, scene.base, scene.other
    graph = Graph(anatomy.shape, anatomy.parallel)
    for step in range(1, steps + 1):
        yield slice(0, 1), gradients(anatomy, scene.measure, torch.lerp(base.x[0], other.x[0], step / steps))
    for layer in range(anatomy.shape.n_layers):
        for name, senders in (("z", slice(graph.head(layer, 0), graph.mlp(layer))), ("mlp", slice(graph.mlp(layer), graph.mlp(layer) + 1))):
            for step in range(1, steps + 1):
                value = torch.lerp(getattr(base, name)[layer], getattr(other, name)[layer], step / steps)
                yield senders, gradients(anatomy, scene.measure, base.x[layer], layer, _replacing(layer, name, value))


def _node_points(scene: Scene, method: str, steps: int) -> Iterator[tuple[range, Gradients, float]]:
    """The gradients that a method takes, for which layers' heads, and their weight."""
    anatomy, base, other = scene.anatomy, scene.base, scene.other
    every = range(anatomy.shape.n_layers)
    if method == "eap":
        yield every, gradients(anatomy, scene.measure, base.x[0], edges=False), 1.0
    elif method == "eap-ig-inputs":
        size = max(1, TOKENS[anatomy.model.device.type] // base.x[0][..., 0].numel())
        for begin in range(0, steps, size):
            points = torch.cat([torch.lerp(other.x[0], base.x[0], step / steps) for step in range(begin, min(begin + size, steps))])
            count = len(points) // len(base.x[0])
            grads = gradients(anatomy, partial(scene.measure, variants=count), points, edges=False)
            z, (logits,) = ([grad.float().unflatten(0, (count, -1)).sum(0) for grad in part] for part in (grads.z, [grads.logits]))
            yield every, replace(grads, z=z, logits=logits), 1 / steps
    else:
        for layer in every:
            for step in range(1, steps + 1):
                value = torch.lerp(base.z[layer], other.z[layer], step / steps)
                yield range(layer, layer + 1), gradients(anatomy, scene.measure, base.x[layer], layer, _replacing(layer, "z", value), edges=False), 1 / steps


def _replacing(layer: int, name: str, value: Tensor) -> Replace:
    """Put a value in the place of what a layer's heads put out, or its MLP writes; what lies below keeps no gradient."""
    return lambda at, what, old: value + 0 * old if (at, what) == (layer, name) else old


def _add(score_BUW: Tensor, graph: Graph, change_UBTD: Tensor, senders: slice, grads: Gradients, weight: float) -> None:
    """Add Σ over positions and dimensions of change × gradient, for the edges of some senders."""
    first = senders.start or 0
    for place, read_RBTD in enumerate(grads.reads):
        layer = grads.begin + place
        into = ((graph.reads(layer), read_RBTD, graph.head(layer, 0)), (slice(graph.into_mlp(layer), graph.into_mlp(layer) + 1), grads.mlp_reads[place][None],
                 graph.head(layer, 0) if graph.parallel else graph.mlp(layer)))  # fmt: skip
        for receivers, grad, stop in into:
            some = slice(first, min(stop, graph.senders if senders.stop is None else senders.stop))
            if some.stop > some.start:
                score_BUW[:, some, receivers] += weight * torch.einsum("ubtd,rbtd->bur", change_UBTD[some].float(), grad.float()).cpu()
    score_BUW[:, senders, graph.logits] += weight * torch.einsum("ubtd,btd->bu", change_UBTD[senders].float(), grads.logits.float()).cpu()


def node_attribution(
    model: HFModel, data: TaskSet, method: str = "eap-ig-inputs", *, steps: int = STEPS, direction: str = "noising", metric: str | None = None
) -> Effects:
    """First-order effects of patching each head's output, with all that it reaches: attribution patching (`eap`) and its integrated variants.

    Raises `InputError` as `edge_attribution` does.
    """
    _check(method, metric or data.pairs[0].metric, steps)
    parts = []
    for scene in scenes(model, data, direction, metric):
        base, other = scene.base, scene.other
        total_BLH = torch.zeros(len(scene.pairs), model.shape.n_layers, model.shape.n_heads)
        for layers, grads, weight in _node_points(scene, method, steps):
            for layer in layers:
                change = (other.z[layer] - base.z[layer]).float() * grads.z[layer - grads.begin].float()
                total_BLH[:, layer] += weight * change.sum((2, 3)).cpu()
        parts.append(Effects(total_BLH.numpy(), scene.numbers(base), scene.numbers(other)))
    facts = {"method": f"node {method}", "steps": steps if method != "eap" else 1, "direction": direction, "component": "z", "positions": None}
    return joined(parts, **facts, metric=metric or data.pairs[0].metric, task=data.task)
