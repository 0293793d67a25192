"""What does a model do without some of its heads? `Ablate` takes them out of action, by a named kind, in a named phase.

Papers mean different things by "masking a head", so both are part of the edit and are written into results.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.edits._edit import BaseEdit
from workbench.errors import InputError, unknown
from workbench.heads import Head, Shape

KINDS = {
    "zero": "the head writes nothing",
    "mean": "the head writes its mean output over reference prompts",
    "resample": "the head writes what it wrote, at the same position, in another prompt",
    "uniform": "the head attends equally to every key it may see (Wu et al. 2024's code, in the decode phase)",
}
PHASES = {"prefill": "rows that read the prompt", "decode": "rows that produce the answer", "both": "all rows"}


@dataclass(frozen=True, eq=False)
class Reference:
    """Head outputs of reference prompts, for mean and resample ablation: z [B, L, H, Q, E], as `HeadOutput()` captures them."""

    z_BLHQE: Float[np.ndarray, "B L H Q E"]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over the values."""
        return hashlib.sha256(np.ascontiguousarray(self.z_BLHQE).tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Ablate(BaseEdit):
    """Take a set of heads out of action: `kind` is one of `KINDS`, `phase` one of `PHASES`.

    `mean` and `resample` need a `reference`. `resample` draws, from `seed`, one reference prompt per prompt and uses its outputs
    position by position, starting over where it is shorter. Raises `InputError` for unknown names or a missing or useless reference.
    """

    heads: tuple[Head, ...]
    kind: str = "zero"
    phase: str = "both"
    reference: Reference | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of ablation", self.kind, KINDS)
        if self.phase not in PHASES:
            raise unknown("phase", self.phase, PHASES)
        if (self.reference is not None) != (self.kind in ("mean", "resample")):
            raise InputError(f"{self.kind} ablation {'takes no' if self.reference is not None else 'needs a'} reference")
        object.__setattr__(self, "heads", tuple(sorted(set(map(Head.parse, self.heads)))))

    def check(self, shape: Shape) -> None:
        """Raise `InputError` unless a model of this shape has the heads, and the reference was captured from one like it."""
        for head in self.heads:
            shape.check(head)
        if self.reference is not None:
            size = self.reference.z_BLHQE.shape
            if 0 in size or (size[1], size[2], size[4]) != (shape.n_layers, shape.n_heads, shape.d_head):
                raise InputError(f"a reference of shape {size} does not fit a model of {shape.n_layers} layers × {shape.n_heads} heads of {shape.d_head}")

    def among(self, heads: range) -> Any:
        """The same edit of these heads of every layer alone, numbered from 0, with their part of the reference."""
        part = super().among(heads)
        return part if self.reference is None else replace(part, reference=Reference(self.reference.z_BLHQE[:, :, heads.start : heads.stop]))

    def describe(self) -> dict[str, object]:
        """The edit as plain data, for provenance."""
        facts: dict[str, object] = {"edit": "ablate", "heads": [str(head) for head in self.heads], "kind": self.kind, "phase": self.phase}
        return facts if self.reference is None else {**facts, "reference": self.reference.fingerprint, "seed": self.seed}

    def of_layer(self, layer: int) -> list[int]:
        """The ablated query heads of a layer."""
        return [head.index for head in self.heads if head.layer == layer]

    def rows(self, position_BQ: Int[Tensor, "B Q"], decode_from: int) -> Bool[Tensor, "B Q"]:
        """Which query rows are changed."""
        decoding = position_BQ >= decode_from
        return {"prefill": ~decoding, "decode": decoding, "both": torch.ones_like(decoding)}[self.phase]

    def on_query(self, q_BHQE: Tensor, layer: int, row_BQ: Tensor) -> Tensor:
        """The queries of all heads of a layer with this edit made: one that is 0 scores every key alike, which makes attention uniform."""
        chosen = self.of_layer(layer)
        if self.kind != "uniform" or not chosen:
            return q_BHQE
        q_BHQE = q_BHQE.clone()
        q_BHQE[:, chosen] = q_BHQE[:, chosen].masked_fill(row_BQ[:, None, :, None], 0)
        return q_BHQE

    def on_output(self, z_BHQE: Tensor, layer: int, row_BQ: Tensor, position_BQ: Tensor) -> Tensor:
        """The outputs of all heads of a layer with this edit made; a new tensor where anything changes."""
        chosen = self.of_layer(layer)
        if self.kind == "uniform" or not chosen:
            return z_BHQE
        written_BHQE = self._written(z_BHQE[:, chosen], layer, chosen, position_BQ)
        z_BHQE = z_BHQE.clone()
        z_BHQE[:, chosen] = torch.where(row_BQ[:, None, :, None], written_BHQE.to(z_BHQE), z_BHQE[:, chosen])
        return z_BHQE

    def _written(self, z_BHQE: Tensor, layer: int, chosen: list[int], position_BQ: Tensor) -> Tensor:
        if self.reference is None:
            return torch.zeros_like(z_BHQE)
        source_NHQE = torch.from_numpy(self.reference.z_BLHQE[:, layer, chosen].copy())
        if self.kind == "mean":
            return source_NHQE.mean(dim=(0, 2))[None, :, None, :]
        donor_B = torch.from_numpy(np.random.default_rng(self.seed).integers(len(source_NHQE), size=len(z_BHQE)))
        place_BQ = position_BQ.cpu() % source_NHQE.shape[2]
        return source_NHQE[donor_B[:, None], :, place_BQ].transpose(1, 2)
