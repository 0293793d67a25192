"""What does one edge do, exactly, and what does a set of edges do alone? Patching of single edges, and passes through a graph with edges cut."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from workbench.circuits.anatomy import Anatomy, Trace
from workbench.circuits.graph import BRANCHES, WRITTEN, Graph, all_writes, changes, graph_of
from workbench.circuits.patching import Progress, Scene, scenes
from workbench.circuits.sweep import TOKENS
from workbench.circuits.tasks import TaskSet
from workbench.circuits.writes import head_writes
from workbench.errors import InputError
from workbench.models import HFModel

Edge = tuple[int, int]
"""Sender and receiver, by their numbers in a `Graph`."""


def exact_effects(
    model: HFModel,
    data: TaskSet,
    edges: Sequence[Edge],
    *,
    direction: str = "noising",
    metric: str | None = None,
    progress: Progress = lambda *_: None,
) -> Float[np.ndarray, "N E"]:
    """The change of the metric, prompt by prompt, when a receiver gets one sender's share from the other prompt; all else follows.

    Only what lies above a receiver runs. Raises `InputError` for edges that are not there.
    """
    graph = graph_of(model)
    for sender, receiver in edges:
        if not graph.edges_UW[sender, receiver]:
            raise InputError(f"{graph.name(sender, receiver)} is no edge")
    into: dict[int, list[int]] = defaultdict(list)
    for place, (_, receiver) in enumerate(edges):
        into[receiver].append(place)
    found = []
    for scene in scenes(model, data, direction, metric, tokens=WRITTEN):
        anatomy, batch = scene.anatomy, len(scene.pairs)
        change_UBTD = changes(anatomy, scene.base, scene.other)
        value_EB = np.empty((len(edges), batch), np.float32)
        size = max(1, TOKENS[model.device.type] // (batch * anatomy.length))
        for number, (receiver, places) in enumerate(into.items()):
            progress(number, len(into))
            for begin in range(0, len(places), size):
                some = places[begin : begin + size]
                change_SBTD = change_UBTD[[edges[place][0] for place in some]]
                value_EB[some] = _receive(scene, graph, receiver, change_SBTD).reshape(len(some), batch)
        found.append((value_EB - scene.numbers(scene.base)).T)
    return np.concatenate(found)


def _receive(scene: Scene, graph: Graph, receiver: int, change_SBTD: Tensor) -> np.ndarray:
    """The metric when a receiver reads changed residuals."""
    anatomy, base = scene.anatomy, scene.base
    layer, branch, index = graph.of_receiver(receiver)
    count = len(change_SBTD)
    if branch == "logits":
        x = base.x[-1] + change_SBTD
    elif branch == "mlp":
        read = (base.x[layer] if anatomy.parallel else base.mid(layer)) + change_SBTD
        written = anatomy.mlp(layer, read.flatten(0, 1)).unflatten(0, (count, -1))
        x = rise(anatomy, layer + 1, (base.mid(layer) + written).flatten(0, 1)).unflatten(0, (count, -1))
    else:
        parts = {name: repeat(getattr(base, name)[layer], "b h t e -> (s b) h t e", s=count) for name in BRANCHES}
        new = dict(zip(BRANCHES, anatomy.qkv(layer, (base.x[layer] + change_SBTD).flatten(0, 1)), strict=True))[branch]
        parts[branch] = parts[branch].clone()
        parts[branch][:, index] = new[:, index]
        written = anatomy.write(layer, anatomy.mix(layer, *(parts[name] for name in BRANCHES)))
        x = anatomy.finish(layer, repeat(base.x[layer], "b t d -> (s b) t d", s=count), written)
        x = rise(anatomy, layer + 1, x).unflatten(0, (count, -1))
    return scene.measure(anatomy.logits(x[:, :, -1].flatten(0, 1)), count).float().cpu().numpy()


def rise(anatomy: Anatomy, layer: int, x_NTD: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
    """The residual stream behind the last block, from that in front of a layer."""
    for above in range(layer, anatomy.shape.n_layers):
        x_NTD = anatomy.finish(above, x_NTD, anatomy.attend(above, x_NTD, lambda q, k, v, above=above: anatomy.mix(above, q, k, v)))
    return x_NTD


def through(anatomy: Anatomy, base: Trace, other: Trace, cut_UW: Float[Tensor, "U W"]) -> Float[Tensor, "B V"]:
    """The last logits when every receiver gets the share `cut_UW` of each sender from the other pass, and the rest from this one. Differentiable in `cut_UW`.

    At 0 it is the base pass, at 1 (for all edges) the other pass. What senders put out follows from what they got.
    """
    graph = Graph(anatomy.shape, anatomy.parallel)
    theirs_UBTD = all_writes(anatomy, other)
    kept_UW = 1 - cut_UW
    mine = [(base.x[0] - theirs_UBTD[0])[None]]

    def read(receivers: slice, senders: int, residual_BTD: Tensor) -> Tensor:
        return residual_BTD + torch.einsum("ur,ubtd->rbtd", kept_UW[:senders, receivers], torch.cat(mine)[:senders])

    for layer in range(anatomy.shape.n_layers):
        first, mlp = graph.head(layer, 0), graph.mlp(layer)
        z_BHTE = _outputs(anatomy, layer, read(graph.reads(layer), first, other.x[layer]))
        mine.append(head_writes(anatomy, layer, z_BHTE).transpose(0, 1) - theirs_UBTD[first:mlp])
        into = slice(graph.into_mlp(layer), graph.into_mlp(layer) + 1)
        got = read(into, first, other.x[layer]) if anatomy.parallel else read(into, mlp, other.mid(layer))
        mine.append((anatomy.mlp(layer, got[0]) - theirs_UBTD[mlp])[None])
    last = read(slice(graph.logits, graph.logits + 1), graph.senders, other.x[-1])[0]
    return anatomy.logits(last[:, -1])


def _outputs(anatomy: Anatomy, layer: int, read_RBTD: Tensor) -> Tensor:
    """The outputs of a layer's heads when each of its receivers reads its own residuals."""
    heads, groups = anatomy.shape.n_heads, anatomy.shape.n_kv_heads
    branches = [rearrange(part, "(r b) h t e -> r b h t e", r=len(read_RBTD)) for part in anatomy.qkv(layer, read_RBTD.flatten(0, 1))]
    firsts = (0, heads), (heads, groups), (heads + groups, groups)
    own = [torch.stack([branch[first + index, :, index] for index in range(count)], dim=1) for branch, (first, count) in zip(branches, firsts, strict=True)]
    return anatomy.mix(layer, *own)
