"""What are the edges of a model? Who writes into the residual stream, who reads from it, and which of the readers come behind a writer."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.circuits.anatomy import Anatomy, Trace
from workbench.circuits.writes import head_writes
from workbench.errors import InputError
from workbench.heads import Shape
from workbench.models import HFModel

BRANCHES = ("q", "k", "v")

WRITTEN = 2**9
"""Tokens of prompts for which what every sender writes is kept at once."""


@dataclass(frozen=True)
class Graph:
    """Senders U (the input, every head, every MLP) and receivers W (queries of heads, keys and values of KV heads, MLPs, the logits) of a model.

    `parallel` blocks (GPT-NeoX) have no edges from a layer's heads to its own MLP. Names: `input`, `L3H1`, `L3MLP`; `L3H1.q`, `L3G0.k`, `L3MLP`, `logits`.
    """

    shape: Shape
    parallel: bool = False

    @property
    def senders(self) -> int:
        """How many write: U."""
        return 1 + self.shape.n_layers * (self.shape.n_heads + 1)

    @property
    def branches(self) -> int:
        """How many of a layer's receivers are queries, keys and values."""
        return self.shape.n_heads + 2 * self.shape.n_kv_heads

    @property
    def receivers(self) -> int:
        """How many read: W."""
        return self.shape.n_layers * (self.branches + 1) + 1

    def head(self, layer: int, index: int) -> int:
        """The number of a head among the senders."""
        return 1 + layer * (self.shape.n_heads + 1) + index

    def mlp(self, layer: int) -> int:
        """The number of an MLP among the senders."""
        return self.head(layer, self.shape.n_heads)

    def reads(self, layer: int) -> slice:
        """The queries, keys and values of a layer among the receivers, in this order."""
        first = layer * (self.branches + 1)
        return slice(first, first + self.branches)

    def into_mlp(self, layer: int) -> int:
        """The number of an MLP among the receivers."""
        return self.reads(layer).stop

    @property
    def logits(self) -> int:
        """The number of the logits among the receivers."""
        return self.receivers - 1

    @cached_property
    def sender_names(self) -> tuple[str, ...]:
        """What the senders are called."""
        layers = ([*(f"L{layer}H{index}" for index in range(self.shape.n_heads)), f"L{layer}MLP"] for layer in range(self.shape.n_layers))
        return ("input", *(name for layer in layers for name in layer))

    @cached_property
    def receiver_names(self) -> tuple[str, ...]:
        """What the receivers are called."""
        names: list[str] = []
        for layer in range(self.shape.n_layers):
            names += [f"L{layer}H{index}.q" for index in range(self.shape.n_heads)]
            names += [f"L{layer}G{index}.{branch}" for branch in "kv" for index in range(self.shape.n_kv_heads)]
            names.append(f"L{layer}MLP")
        return (*names, "logits")

    @cached_property
    def edges_UW(self) -> Bool[np.ndarray, "U W"]:
        """Which senders a receiver reads: those written before it."""
        allowed = np.zeros((self.senders, self.receivers), bool)
        for layer in range(self.shape.n_layers):
            before = self.head(layer, 0)
            allowed[:before, self.reads(layer)] = True
            allowed[: before if self.parallel else self.mlp(layer), self.into_mlp(layer)] = True
        allowed[:, self.logits] = True
        return allowed

    def number(self, edge: str) -> tuple[int, int]:
        """Sender and receiver of an edge written as `L3H1->L5H2.q`. Raises `InputError` for edges that are not there."""
        sender, arrow, receiver = edge.partition("->")
        if not arrow or sender not in self.sender_names or receiver not in self.receiver_names:
            raise InputError(f"{edge!r} is no edge; write one as input->L3H1.q, L3H1->L5G0.k, L3MLP->logits")
        found = self.sender_names.index(sender), self.receiver_names.index(receiver)
        if not self.edges_UW[found]:
            raise InputError(f"{edge!r} is no edge: {receiver} does not come behind {sender}")
        return found

    def name(self, sender: int, receiver: int) -> str:
        """An edge as text."""
        return f"{self.sender_names[sender]}->{self.receiver_names[receiver]}"

    def of_receiver(self, receiver: int) -> tuple[int, str, int]:
        """The layer, the branch (`q`, `k`, `v`, `mlp` or `logits`) and the number within it of a receiver."""
        layer, place = divmod(receiver, self.branches + 1)
        heads, groups = self.shape.n_heads, self.shape.n_kv_heads
        if receiver == self.logits:
            return self.shape.n_layers, "logits", 0
        if place == self.branches:
            return layer, "mlp", 0
        return (layer, "q", place) if place < heads else (layer, "kv"[(place - heads) // groups], (place - heads) % groups)


def graph_of(model: HFModel) -> Graph:
    """The graph of a model."""
    return Graph(model.shape, bool(getattr(model.config, "use_parallel_residual", False)))


def all_writes(anatomy: Anatomy, trace: Trace) -> Float[Tensor, "U B T D"]:
    """What every sender writes in a pass."""
    parts = [trace.x[0][None]]
    for layer in range(anatomy.shape.n_layers):
        parts += [head_writes(anatomy, layer, trace.z[layer]).transpose(0, 1), trace.mlp[layer][None]]
    return torch.cat(parts)


def changes(anatomy: Anatomy, base: Trace, other: Trace) -> Float[Tensor, "U B T D"]:
    """How every sender's write differs in the other pass."""
    return all_writes(anatomy, other) - all_writes(anatomy, base)


def pruned(graph: Graph, kept_UW: Bool[np.ndarray, "U W"]) -> Bool[np.ndarray, "U W"]:
    """A set of edges less those that no path from the input, or none to the logits, goes through."""
    kept_UW = kept_UW & graph.edges_UW
    while True:
        alive_U = np.zeros(graph.senders, bool)
        alive_U[0] = True
        for receiver in range(graph.receivers - 1):  # in the order of the pass
            if kept_UW[alive_U, receiver].any():
                alive_U[_writers(graph, receiver)] = True
        used_U = np.zeros(graph.senders, bool)
        used_W = np.zeros(graph.receivers, bool)
        used_W[graph.logits] = True
        for receiver in reversed(range(graph.receivers)):
            if receiver != graph.logits:
                used_W[receiver] = used_U[_writers(graph, receiver)].any()
            if used_W[receiver]:
                used_U |= kept_UW[:, receiver]
        left_UW = kept_UW & alive_U[:, None] & used_W
        if (left_UW == kept_UW).all():
            return left_UW
        kept_UW = left_UW


def _writers(graph: Graph, receiver: int) -> list[int]:
    """The senders whose output depends on a receiver."""
    layer, branch, index = graph.of_receiver(receiver)
    if branch == "mlp":
        return [graph.mlp(layer)]
    group = graph.shape.group
    return [graph.head(layer, head) for head in ([index] if branch == "q" else range(index * group, (index + 1) * group))]
