"""How does a head act, through whom? Path patching from every head to chosen receivers, exact and fast.

Wang et al. 2022 (2211.00593) run three passes per sender and receiver. Here what depends on the sender alone (its change, carried upwards by the MLPs while
all other heads are frozen) is computed once for all receivers, and only what lies above a receiver runs again; senders are rows of one batch.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from workbench.circuits.alternatives import alternatives, at, check, single
from workbench.circuits.effects import Effects, joined
from workbench.circuits.patching import Progress, Scene, scenes
from workbench.circuits.sweep import TOKENS, outcomes, sweep
from workbench.circuits.tasks import TaskSet
from workbench.errors import InputError
from workbench.heads import Head, Shape
from workbench.models import HFModel

BRANCHES = ("q", "k", "v")


@dataclass(frozen=True, order=True)
class Receiver:
    """Where a path ends: the queries of a head, the keys or values of a KV head (all its query heads read them), or, without a layer, the logits.

    Written `L9H6.q`, `L9G1.k`, `L9G1.v`, `logits`.
    """

    layer: int = -1
    index: int = 0
    branch: str = "logits"

    def __str__(self) -> str:
        return "logits" if self.branch == "logits" else f"L{self.layer}{'H' if self.branch == 'q' else 'G'}{self.index}.{self.branch}"

    @classmethod
    def parse(cls, text: str, shape: Shape) -> "Receiver":
        """From `logits`, `L9H6.q`, or `L9G1.k`; with `L9H6.k` the KV head that the query head reads.

        Raises `InputError` for other forms and heads that are not there.
        """
        if text == "logits":
            return LOGITS
        name, dot, branch = text.rpartition(".")
        if not dot or branch not in BRANCHES:
            raise InputError(f"{text!r} is no receiver; write logits, L9H6.q, or L9G1.k and L9G1.v for a KV head")
        if "G" not in name:
            head = Head.parse(name)
            group = shape.kv_head(head)
            return cls(head.layer, head.index if branch == "q" else group, branch)
        head = Head.parse(name.replace("G", "H"))
        if branch == "q" or head.layer >= shape.n_layers or head.index >= shape.n_kv_heads:
            raise InputError(f"{text!r}: KV heads have keys and values, and this model has {shape.n_layers} layers of {shape.n_kv_heads}")
        return cls(head.layer, head.index, branch)

    def heads(self, shape: Shape) -> list[int]:
        """The query heads whose outputs change with it."""
        return [self.index] if self.branch == "q" else list(range(self.index * shape.group, (self.index + 1) * shape.group))


LOGITS = Receiver()
"""The logits as a receiver: everything that a sender writes and the MLPs make of it."""


def path_patching(
    model: HFModel,
    data: TaskSet,
    receivers: Sequence[Receiver] = (LOGITS,),
    *,
    frozen_mlps: bool = False,
    ablation: str = "resample",
    direction: str = "noising",
    positions: Sequence[int] | None = None,
    receiver_positions: Sequence[int] | None = None,
    metric: str | None = None,
    progress: Progress = lambda *_: None,
) -> dict[Receiver, Effects]:
    """The effect on the metric of every head along its direct path to each receiver, one sender at a time.

    A sender's output is replaced at `positions` (all by default; negative ones count from the end), every other head keeps its own, and MLPs follow the change
    (with `frozen_mlps` they keep theirs too: then only the residual stream carries it). What the receiver gets then replaces its part at
    `receiver_positions` in an otherwise ordinary pass. Senders without a path (in or above the receiver's layer) are NaN.
    Raises `InputError` for unknown names, no receivers, and receivers that are not there.
    """
    check("z", ablation)
    if not receivers:
        raise InputError("path patching needs at least one receiver, such as logits or L9H6.q")
    wanted = {receiver: Receiver.parse(str(receiver), model.shape) for receiver in receivers}
    found: dict[Receiver, list[Effects]] = defaultdict(list)
    for number, scene in enumerate(scenes(model, data, direction, metric, "z" if ablation == "mean" else None)):
        progress(number, len(data.pairs))
        other = alternatives(scene.anatomy, scene.base, scene.other, "z", ablation, mean=scene.mean, positions=positions)
        paths = _Paths(scene, other, list(wanted.values()), scene.first(positions, ablation), receiver_positions, frozen_mlps)
        base_B, other_B = scene.numbers(scene.base), scene.numbers(scene.other)
        for receiver, value_BLH in paths.run().items():
            found[receiver].append(Effects(value_BLH - base_B[:, None, None], base_B, other_B))
    facts = {
        "method": "path patching",
        "ablation": ablation,
        "direction": direction,
        "positions": positions,
        "receiver_positions": receiver_positions,
        "frozen_mlps": frozen_mlps,
        "metric": metric or data.pairs[0].metric,
        "task": data.task,
    }
    return {receiver: joined(parts, **facts, receiver=str(receiver)) for receiver, parts in found.items()}


class _Paths:
    """All senders to some receivers, on the prompts of one scene."""

    def __init__(self, scene: Scene, other: list[Tensor], receivers: Sequence[Receiver], first: int, at_receiver: Sequence[int] | None, frozen: bool) -> None:
        self.scene, self.anatomy, self.other, self.frozen = scene, scene.anatomy, other, frozen
        self.shape, self.batch = scene.anatomy.shape, len(scene.pairs)
        self.first = first
        self.at_Q = at(self.anatomy.length, at_receiver, scene.base.z[0].device)[self.first :]
        self.by_layer: Mapping[int, list[Receiver]] = defaultdict(list)
        for receiver in receivers:
            self.by_layer[self.shape.n_layers if receiver == LOGITS else receiver.layer].append(receiver)
        self.value = {receiver: np.full((self.shape.n_layers * self.shape.n_heads, self.batch), np.nan, np.float32) for receiver in receivers}

    def run(self) -> dict[Receiver, Float[np.ndarray, "B L H"]]:
        """The metric for every sender and receiver."""
        replaced_SLH, _ = single(self.shape, "z")
        size = max(1, TOKENS[self.anatomy.model.device.type] // (self.batch * (self.anatomy.length - self.first)))
        last = max(self.by_layer)
        senders = [sender for sender in range(len(replaced_SLH)) if sender // self.shape.n_heads < last]
        for begin in range(0, len(senders), size):
            some = senders[begin : begin + size]
            for layer, joined_rows, x_SBQD in self._carried(some, replaced_SLH[some]):
                if x_SBQD is not None:
                    self._receive(layer, [some[row] for row in joined_rows], x_SBQD)
                if layer >= last:
                    break
        return {receiver: value.T.reshape(self.batch, self.shape.n_layers, self.shape.n_heads) for receiver, value in self.value.items()}

    def _carried(self, senders: list[int], replaced_SLH: np.ndarray):  # noqa: ANN202
        """The residual streams in front of each layer, of the senders below it."""
        if not self.frozen:
            yield from sweep(self.anatomy, self.scene.base, self.other, replaced_SLH, first=self.first, frozen=True, last_only=True)
            return
        base, joined_rows, changes = self.scene.base, [], []
        for layer in range(self.shape.n_layers + 1):
            moved = torch.stack([base.x[layer][:, self.first :] + change for change in changes]) if changes else None
            yield layer, joined_rows, moved
            for row, sender in enumerate(senders):
                if sender // self.shape.n_heads == layer:
                    z = base.z[layer].clone()
                    z[:, sender % self.shape.n_heads] = self.other[layer][:, sender % self.shape.n_heads]
                    changes.append((self.anatomy.write(layer, z) - base.attention[layer])[:, self.first :])
                    joined_rows = [*joined_rows, row]

    def _receive(self, layer: int, senders: list[int], x_SBQD: Tensor) -> None:
        receivers = self.by_layer.get(layer, [])
        if not receivers:
            return
        if layer == self.shape.n_layers:
            value = self.scene.measure(self.anatomy.logits(x_SBQD[:, :, -1].flatten(0, 1)), len(senders))
            self.value[LOGITS][senders] = value.float().cpu().numpy().reshape(len(senders), -1)
            return
        got = dict(zip(BRANCHES, self.anatomy.qkv(layer, x_SBQD.flatten(0, 1), self.first), strict=True))
        for branch in BRANCHES:
            if heads := [receiver for receiver in receivers if receiver.branch == branch]:
                other_SBHTE = self._outputs(layer, branch, got[branch], len(senders))
                for receiver in heads:
                    self.value[receiver][senders] = self._above(receiver, other_SBHTE)

    def _outputs(self, layer: int, branch: str, new: Tensor, count: int) -> Float[Tensor, "S B H T E"]:
        """What the heads of a layer put out when one branch of each is what the senders made of it."""
        base, first = self.scene.base, self.first
        parts = {name: repeat(getattr(base, name)[layer], "b h t e -> (s b) h t e", s=count) for name in BRANCHES}
        old = parts[branch]
        parts[branch] = torch.cat([old[:, :, :first], torch.where(self.at_Q[:, None], new, old[:, :, first:])], dim=2)
        return rearrange(self.anatomy.mix(layer, *(parts[name] for name in BRANCHES)), "(s b) h t e -> s b h t e", s=count)

    def _above(self, receiver: Receiver, other_SBHTE: Tensor) -> Float[np.ndarray, "S B"]:
        """The metric when the receiver's heads put out this, per sender, and everything above follows."""
        replaced_SLH = np.zeros((len(other_SBHTE), self.shape.n_layers, self.shape.n_heads), bool)
        replaced_SLH[:, receiver.layer, receiver.heads(self.shape)] = True
        other: list[Tensor | None] = [None] * self.shape.n_layers
        other[receiver.layer] = other_SBHTE
        return outcomes(self.anatomy, self.scene.base, other, replaced_SLH, self.scene.measure, first=self.first)
