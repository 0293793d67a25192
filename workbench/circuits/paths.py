"""How does a head act, through whom? Path patching from every head to chosen receivers, exact and fast.

Wang et al. 2022 (2211.00593) run three passes per sender and receiver. Here what depends on the sender alone (its change, carried upwards by the MLPs while
all other heads are frozen) is computed once for all receivers, and only what lies above a receiver runs again; senders are rows of one batch.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from workbench.circuits.alternatives import alternatives, at, check, single
from workbench.circuits.effects import Effects, joined
from workbench.circuits.patching import Progress, Scene, scenes
from workbench.circuits.sweep import TOKENS, sweep
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


LOGITS = Receiver()
"""The logits as a receiver: everything that a sender writes and the MLPs make of it."""


Receivers = Receiver | tuple[Receiver, ...]
"""One receiver, or several that get what a sender makes of them at once, as the queries of all name movers do in Wang et al. 2022."""


def path_patching(
    model: HFModel,
    data: TaskSet,
    receivers: Sequence[Receivers] = (LOGITS,),
    *,
    frozen_mlps: bool = False,
    ablation: str = "resample",
    direction: str = "noising",
    positions: Sequence[int] | None = None,
    receiver_positions: Sequence[int] | None = None,
    metric: str | None = None,
    progress: Progress = lambda *_: None,
) -> dict[Receivers, Effects]:
    """The effect on the metric of every head along its direct path to each receiver, or to several receivers at once, one sender at a time.

    A sender's output is replaced at `positions` (all by default; negative ones count from the end), every other head keeps its own, and MLPs follow the change
    (with `frozen_mlps` they keep theirs too: then only the residual stream carries it). What the receivers get then replaces their parts at
    `receiver_positions` in an otherwise ordinary pass. Senders without a path (in or above the receiver's layer, of several the highest) are NaN.
    Raises `InputError` for unknown names, no receivers, receivers that are not there, and for logits among several receivers.
    """
    check("z", ablation)
    if not receivers:
        raise InputError("path patching needs at least one receiver, such as logits or L9H6.q")
    wanted = {receiver: _checked(receiver, model.shape) for receiver in receivers}
    found: dict[Receivers, list[Effects]] = defaultdict(list)
    for number, scene in enumerate(scenes(model, data, direction, metric, "z" if ablation == "mean" else None)):
        other = alternatives(scene.anatomy, scene.base, scene.other, "z", ablation, mean=scene.mean, positions=positions)
        # with all other heads frozen, nothing at earlier positions reaches the logits of the last one
        first = scene.anatomy.length - 1 if set().union(*wanted.values()) == {LOGITS} else scene.first(positions, ablation)
        paths = _Paths(scene, other, wanted, first, receiver_positions, frozen_mlps)
        base_B, other_B = scene.numbers(scene.base), scene.numbers(scene.other)
        for receiver, value_BLH in paths.run(partial(_within, progress, number, len(data.pairs))).items():
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
    return {receiver: joined(parts, **facts, receiver="+".join(map(str, wanted[receiver]))) for receiver, parts in found.items()}


def _within(progress: Progress, scene: int, scenes: int, done: int, senders: int) -> None:
    """Tell how many senders are done, those of the scenes before included; there may be more scenes than lengths."""
    progress(scene * senders + done, max(scenes, scene + 1) * senders)


def receivers_of(text: str, shape: Shape) -> Receivers:
    """The receiver that a text names, or those that it joins by +. Raises `InputError` for other forms, for heads that are not there, and for joined logits."""
    several = tuple(Receiver.parse(name.strip(), shape) for name in text.split("+"))
    return several[0] if len(several) == 1 else _checked(several, shape)


def _checked(receivers: Receivers, shape: Shape) -> tuple[Receiver, ...]:
    """The receivers as a tuple, each of which is there."""
    several = (receivers,) if isinstance(receivers, Receiver) else receivers
    if not several or (LOGITS in several and len(several) > 1):
        raise InputError("receivers that get a change at once are heads, at least one; what reaches the logits is patched by itself")
    return tuple(Receiver.parse(str(receiver), shape) for receiver in several)


class _Paths:
    """All senders to some receivers, on the prompts of one scene."""

    def __init__(
        self,
        scene: Scene,
        other: list[Tensor],
        wanted: Mapping[Receivers, tuple[Receiver, ...]],
        first: int,
        at_receiver: Sequence[int] | None,
        frozen: bool,
    ) -> None:
        self.scene, self.anatomy, self.other, self.frozen = scene, scene.anatomy, other, frozen
        self.shape, self.batch = scene.anatomy.shape, len(scene.pairs)
        self.first, self.wanted = first, wanted
        self.at_Q = at(self.anatomy.length, at_receiver, scene.base.z[0].device)[self.first :]
        self.value = {receiver: np.full((self.shape.n_layers * self.shape.n_heads, self.batch), np.nan, np.float32) for receiver in wanted}

    def run(self, progress: Progress) -> dict[Receivers, Float[np.ndarray, "B L H"]]:
        """The metric for every sender and receiver."""
        replaced_SLH, _ = single(self.shape, "z")
        size = max(1, TOKENS[self.anatomy.model.device.type] // (self.batch * (self.anatomy.length - self.first)))
        ends = {receivers: max(map(self._layer, several)) for receivers, several in self.wanted.items()}
        last = max(ends.values())
        senders = [sender for sender in range(len(replaced_SLH)) if sender // self.shape.n_heads < last]
        for begin in range(0, len(senders), size):
            some = senders[begin : begin + size]
            got: dict[Receivers, list[_Given]] = defaultdict(list)
            for layer, joined_rows, x_SBQD in self._carried(some, replaced_SLH[some]):
                if x_SBQD is not None:
                    self._receive(got, layer, joined_rows, x_SBQD)
                for receivers in [receivers for receivers, end in ends.items() if end == layer]:
                    if given := got.pop(receivers, None):
                        self.value[receivers][[some[row] for row in joined_rows]] = self._outcome(given, joined_rows)
                if layer >= last:
                    break
            progress(begin + len(some), len(senders))
        return {receivers: value.T.reshape(self.batch, self.shape.n_layers, self.shape.n_heads) for receivers, value in self.value.items()}

    def _layer(self, receiver: Receiver) -> int:
        return self.shape.n_layers if receiver == LOGITS else receiver.layer

    def _carried(self, senders: list[int], replaced_SLH: np.ndarray) -> Iterator[tuple[int, list[int], Tensor | None]]:
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

    def _receive(self, got: dict[Receivers, list["_Given"]], layer: int, rows: list[int], x_SBQD: Tensor) -> None:
        """Keep what the receivers of a layer get from senders (rows) that have joined."""
        here = {receivers: [one for one in several if self._layer(one) == layer] for receivers, several in self.wanted.items()}
        if not any(here.values()):
            return
        at_logits = layer == self.shape.n_layers
        parts = {} if at_logits else dict(zip(BRANCHES, self.anatomy.qkv(layer, x_SBQD.flatten(0, 1), self.first), strict=True))
        for receivers, members in here.items():
            for one in members:
                new = x_SBQD[:, :, -1] if at_logits else parts[one.branch][:, one.index].unflatten(0, (len(rows), self.batch))
                got[receivers].append(_Given(one, list(rows), new))

    def _outcome(self, given: list["_Given"], rows: list[int]) -> Float[np.ndarray, "S B"]:
        """The metric when receivers get this, for the senders in `rows`, and everything above follows."""
        if given[0].receiver == LOGITS:
            x_ND = given[0].new.flatten(0, 1)
        else:
            place = {row: number for number, row in enumerate(rows)}
            by_layer: Mapping[int, list[_Given]] = defaultdict(list)
            for one in given:
                by_layer[one.receiver.layer].append(replace(one, rows=[place[row] for row in one.rows]))
            begin = min(by_layer)
            x_NQD = repeat(self.scene.base.x[begin][:, self.first :], "b q d -> (s b) q d", s=len(rows))
            for layer in range(begin, self.shape.n_layers):
                written = self.anatomy.attend(layer, x_NQD, partial(self._mix, layer, by_layer[layer], len(rows)), self.first)
                x_NQD = self.anatomy.finish(layer, x_NQD, written)
            x_ND = x_NQD[:, -1]
        return self.scene.measure(self.anatomy.logits(x_ND), len(rows)).float().cpu().numpy().reshape(len(rows), -1)

    def _mix(self, layer: int, given: list["_Given"], count: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "SB H Q E"]:
        """What a layer's heads put out where some of their parts are given, and keys and values in front of the first position are those of the base pass."""
        parts = {name: part.unflatten(0, (count, self.batch)).clone() for name, part in zip(BRANCHES, (q, k, v), strict=True)}
        for one in given:
            old = parts[one.receiver.branch][one.rows, :, one.receiver.index]
            parts[one.receiver.branch][one.rows, :, one.receiver.index] = torch.where(self.at_Q[:, None], one.new, old)
        q, k, v = (part.flatten(0, 1) for part in parts.values())
        before = (repeat(part[layer][:, :, : self.first], "b g t e -> (s b) g t e", s=count) for part in (self.scene.base.k, self.scene.base.v))
        k, v = (torch.cat([old, new], dim=2) for old, new in zip(before, (k, v), strict=True))
        return self.anatomy.mix(layer, q, k, v)


@dataclass(frozen=True, eq=False)
class _Given:
    """What a receiver gets from some senders: its queries, keys or values [S, B, Q, E], or the last residual [S, B, D] in front of the logits."""

    receiver: Receiver
    rows: list[int]
    new: Tensor
