"""Which heads serve what a model remembers, and which what a text says? Both scores of every head, from a file of `workbench ph3` or measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.errors import unknown
from workbench.heads import Head
from workbench.labels import HeadLabels

SCORES = {"memory": "ph3_memory", "context": "ph3_context"}
"""The scores of a file that `workbench ph3` wrote, by side."""


@dataclass(frozen=True, eq=False)
class Sides:
    """What the memory answer owes to every head, and what the context answer does; a head belongs to the side that it serves more.

    Of a file both are one number on two sides: how much logit_memory − logit_context falls (memory) or rises (context) when the head's path is patched.
    Measured, they are two: how far the log-probability of either answer falls, in nats. Their difference is the same number.
    Of a file, `found` tells how many heads it labels on each side, and `provenance` what they were searched on.
    """

    memory_LH: Float[np.ndarray, "L H"]
    context_LH: Float[np.ndarray, "L H"]
    found: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def ranked(self, side: str) -> list[Head]:
        """The heads of a side, the most important first. Raises `InputError` for another side."""
        if side not in SCORES:
            raise unknown("side", side, SCORES)
        size_LH = (self.memory_LH - self.context_LH) * (1 if side == "memory" else -1)
        places = [(int(layer), int(index)) for layer, index in np.argwhere(size_LH > 0)]
        return [Head(*place) for place in sorted(places, key=lambda place: (-size_LH[place], place))]

    @property
    def table(self) -> pd.DataFrame:
        """One row per head, layer by layer: head, memory, context, and the side that it belongs to (neither, if it serves both alike)."""
        shape = self.memory_LH.shape
        difference = (self.memory_LH - self.context_LH).ravel()
        return pd.DataFrame({
            "head": [f"L{layer}H{index}" for layer, index in np.ndindex(shape)],
            "memory": self.memory_LH.ravel(),
            "context": self.context_LH.ravel(),
            "side": np.select([difference > 0, difference < 0], ["memory", "context"], "neither"),
        })  # fmt: skip


def from_labels(labels: HeadLabels) -> Sides | None:
    """The scores of a file that `workbench ph3` wrote; None for other labels."""
    if not set(SCORES.values()) <= set(labels.scores):
        return None
    memory_LH, context_LH = (labels.scores[SCORES[side]] for side in ("memory", "context"))
    counts = labels.counts()
    return Sides(memory_LH, context_LH, {side: counts.get(side, 0) for side in SCORES}, labels.provenance.get("ph3", labels.provenance))
