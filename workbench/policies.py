"""Which KV heads keep the whole context? `HeadPolicy`: what labels or scores decide for the attention that runs.

A decision is made per KV head, as the query heads of a group share its keys and values. A full head sees everything; a streaming head sees the first
`sinks` tokens and the last `window`, its own among them.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from workbench.errors import InputError, unknown
from workbench.heads import ModelCard, Shape
from workbench.labels import HeadLabels

SEMANTICS = {
    "exact": "streaming heads see sinks and window, in prefill and in decoding",
    "decode": "every head sees everything while the prompt is read; streaming heads forget at the first token of the answer",
    "chunk": "while a chunk of the prompt is read, streaming heads see sinks, the window before the chunk, and all of the chunk (DuoAttention)",
}
"""What a streaming head sees when. They differ in accuracy and in speed, so that a result says which it was."""

FULL = "full"
"""The label and the score that a policy gives to the query heads of its full KV heads, for tools that know no policies."""

ENDLESS = 2**40
"""A context of so many tokens stands for one without an end."""

SINKS, WINDOW = 64, 256
"""DuoAttention's sizes at run time (arXiv 2410.10819); it trained its gates with 128 and 256."""


@dataclass(frozen=True, eq=False)
class HeadPolicy:
    """For each layer and KV head: full, or streaming with `sinks` and `window`, perhaps with RazorAttention's compensation token.

    `semantics` is one of `SEMANTICS`. With `compensation` a streaming head also sees one token that stands for all that it has dropped: the
    mean of their keys and values, counted as often as there are (RazorAttention, arXiv 2407.15891). `windows` are those that the model's own layers have;
    such layers stay as they are. `origin` says how the heads were chosen. Raises `InputError` for sizes that make no sense.
    """

    card: ModelCard
    full_LG: Bool[np.ndarray, "L G"]
    sinks: int = SINKS
    window: int = WINDOW
    semantics: str = "exact"
    compensation: bool = False
    windows: tuple[int | None, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, full_LG = self.card.shape, np.array(self.full_LG, bool)
        if full_LG.shape != (shape.n_layers, shape.n_kv_heads):
            raise InputError(f"a policy of shape {full_LG.shape} for {shape.n_layers} layers × {shape.n_kv_heads} KV heads of {self.card.name}")
        if self.sinks < 0 or self.window < 1:
            raise InputError(f"a streaming head sees at least its own token: sinks ≥ 0 and window ≥ 1, got {self.sinks} and {self.window}")
        if self.semantics not in SEMANTICS:
            raise unknown("semantics", self.semantics, SEMANTICS)
        if self.windows and len(self.windows) != shape.n_layers:
            raise InputError(f"{len(self.windows)} windows for {shape.n_layers} layers")
        full_LG.setflags(write=False)
        object.__setattr__(self, "full_LG", full_LG)
        object.__setattr__(self, "windows", tuple(self.windows) or (None,) * shape.n_layers)
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    @property
    def layers(self) -> list[int]:
        """The layers that the policy decides about: those without a window of their own."""
        return [layer for layer, window in enumerate(self.windows) if window is None]

    @property
    def full_share(self) -> float:
        """The share of full heads among the KV heads that the policy decides about, 0–1."""
        return float(self.full_LG[self.layers].mean()) if self.layers else 1.0

    def full(self, layer: int) -> list[int]:
        """The full KV heads of a layer."""
        return np.flatnonzero(self.full_LG[layer]).tolist()

    def order(self, layer: int) -> list[int]:
        """The KV heads of a layer, full ones first, otherwise as they were."""
        return np.argsort(~self.full_LG[layer], kind="stable").tolist()

    def kv_bytes(self, length: int, dtype_bytes: int = 2, batch: int = 1) -> int:
        """Bytes of keys and values behind `length` tokens: full heads keep them all, streaming heads have room for sinks and window, whether it is used or not.

        The compensation token is two sums in float32. A layer with a window of its own keeps at most that, less the token to come.
        """
        shape = self.card.shape
        vector = shape.d_head * dtype_bytes
        total = 0
        for layer, own in enumerate(self.windows):
            full = len(self.full(layer)) if own is None else shape.n_kv_heads
            streaming = shape.n_kv_heads - full
            kept = length if own is None else min(length, own - 1)
            total += 2 * vector * (full * kept + streaming * (self.sinks + self.window))
            total += 2 * shape.d_head * 4 * streaming * self.compensation
        return total * batch

    def share(self, length: int) -> float:
        """KV bytes at `length` tokens as a share of those with every head full."""
        return self.kv_bytes(length) / replace(self, full_LG=np.ones_like(self.full_LG)).kv_bytes(length)

    def memory(self, lengths: Sequence[int], dtype_bytes: int = 2, batch: int = 1) -> pd.DataFrame:
        """Bytes of keys and values at each length: `tokens`; `full`, every head full; `policy`; `streaming`, every head streaming; `share`, policy / full."""
        ways = {"full": replace(self, full_LG=np.ones_like(self.full_LG)), "policy": self, "streaming": replace(self, full_LG=np.zeros_like(self.full_LG))}
        table = pd.DataFrame({"tokens": list(lengths)})
        for name, way in ways.items():
            table[name] = [way.kv_bytes(length, dtype_bytes, batch) for length in lengths]
        return table.assign(share=table["policy"] / table["full"])

    def longest(self, room: float, dtype_bytes: int = 2, batch: int = 1) -> int | None:
        """The most tokens whose keys and values fit into so many bytes; None if there is no end to it, as every head streams."""
        if self.kv_bytes(ENDLESS, dtype_bytes, batch) <= room:
            return None
        return max(0, bisect_right(range(ENDLESS), room, key=lambda length: self.kv_bytes(length, dtype_bytes, batch)) - 1)

    def labelled(self, labels: HeadLabels) -> HeadLabels:
        """The labels with the policy, so that other tools' formats can hold it: the label `full` and the score `full` (1 or 0) of each query head.

        Raises `InputError` for labels of another model.
        """
        self.check_model(labels.card)
        full_LH = labels.card.shape.to_query(self.full_LG)
        kept = {head: tuple(name for name in names if name != FULL) for head, names in labels.labels.items()}
        named = {head: (*names, FULL) if full_LH[head.layer, head.index] else names for head, names in kept.items()}
        return replace(labels, labels=named, scores={**labels.scores, FULL: full_LH.astype(float)}, policy=self.to_json())

    def check_model(self, card: ModelCard) -> None:
        """Raise `InputError` unless the policy was made for this very model."""
        HeadLabels(self.card, {}, {}).check_model(card)

    def with_windows(self, windows: Sequence[int | None]) -> "HeadPolicy":
        """The same for a model whose own layers have these windows. Raises `InputError` if that leaves nothing to decide."""
        if all(window is not None for window in windows):
            raise InputError(f"every layer of {self.card.name} has a window of its own ({windows[0]} tokens); there is nothing for a policy to decide")
        return self if tuple(windows) == self.windows else replace(self, windows=tuple(windows))

    def among(self, kv_heads: range, own: Shape) -> "HeadPolicy":
        """The policy of these KV heads of every layer alone, numbered from 0, in a process whose part of the model has the shape `own`."""
        return replace(self, card=replace(self.card, shape=own), full_LG=self.full_LG[:, kv_heads.start : kv_heads.stop])

    def to_json(self) -> dict[str, Any]:
        """The policy as plain data, as labels files carry it: full KV heads layer by layer, sizes, semantics, origin."""
        return {
            "full": [self.full(layer) for layer in range(len(self.full_LG))],
            "sinks": self.sinks,
            "window": self.window,
            "semantics": self.semantics,
            "compensation": self.compensation,
            "windows": list(self.windows),
            "origin": dict(self.origin),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], card: ModelCard) -> "HeadPolicy":
        """A policy from the plain data of a labels file. Raises `InputError` for heads that the model does not have."""
        shape = card.shape
        full_LG = np.zeros((shape.n_layers, shape.n_kv_heads), bool)
        if len(data["full"]) != shape.n_layers or any(head >= shape.n_kv_heads for heads in data["full"] for head in heads):
            raise InputError(f"the policy's full heads do not fit {shape.n_layers} layers × {shape.n_kv_heads} KV heads")
        for layer, heads in enumerate(data["full"]):
            full_LG[layer, [int(head) for head in heads]] = True
        sizes = int(data["sinks"]), int(data["window"])
        return cls(card, full_LG, *sizes, data["semantics"], data["compensation"], tuple(data["windows"]), data["origin"])
