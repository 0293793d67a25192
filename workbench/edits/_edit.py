"""What is common to all edits: data that says what to change, and where in a layer it acts."""

from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import Head, Shape
from workbench.models import HFModel
from workbench.ops.changed import Step
from workbench.ops.inputs import Attention
from workbench.prompts import Prompts


@dataclass
class Memory:
    """What edits carry from one pass to the next, as the cache carries keys: `states` by the edit's number, layer and heads.

    It belongs to one sequence of chunks or steps of decoding; the edits themselves never change.
    """

    states: dict[tuple[int, int, tuple[int, ...]], dict[Hashable, Any]] = field(default_factory=dict)

    def found(self, number: int, shape: Shape, prompts: int) -> Int[np.ndarray, "B L H"]:
        """What the edit of that number found in each prompt, layer and head when it last looked (sinks); 0 in heads that it does not change."""
        count_BLH = np.zeros((prompts, shape.n_layers, shape.n_heads), np.int64)
        for (edit, layer, _), state in self.states.items():
            if edit == number and state.get("found") is not None:
                heads, count_BH = state["found"]
                count_BLH[:, layer, list(heads)] = count_BH.cpu().numpy()
        return count_BLH


@dataclass(frozen=True, eq=False)
class Scene:
    """One layer in one pass, as an edit that changes where rows look finds it.

    `attention` has the query heads `heads` and all rows of the pass; `residual_BQD` is the layer's input, where an edit `sees_residual`; `state` is what
    the edit has kept of the passes before.
    """

    layer: int
    heads: tuple[int, ...]
    attention: Attention
    prompts: Prompts
    model: HFModel
    residual_BQD: Float[Tensor, "B Q D"] | None
    state: MutableMapping[Hashable, Any]


class BaseEdit:
    """An edit that changes nothing: what each of them may override.

    An edit acts in one of three places: on the queries (`on_query`), on where rows look (`looking` names the heads, `opened` makes the step that changes
    scores or probabilities), or on what heads write (`on_output`). Edits of one place act in the order in which they are given.
    """

    sees_residual = False

    def check(self, shape: Shape) -> None:
        """Raise `InputError` unless a model of this shape has what the edit names."""

    def check_model(self, model: HFModel, prompts: Prompts, chunk: int | None) -> None:
        """Raise `InputError` for what the edit cannot do with this model, these prompts, or in chunks."""

    def among(self, heads: range) -> Any:
        """The same edit of these heads of every layer alone, numbered from 0: what a process does that has only them."""
        edit: Any = self
        chosen: tuple[Head, ...] | None = getattr(self, "heads", None)
        return edit if chosen is None else replace(edit, heads=tuple(Head(head.layer, head.index - heads.start) for head in chosen if head.index in heads))

    def describe(self) -> dict[str, object]:
        """The edit as plain data, for provenance."""
        return {}

    def rows(self, position_BQ: Int[Tensor, "B Q"], decode_from: int) -> Bool[Tensor, "B Q"]:
        """Which query rows are changed."""
        return torch.ones_like(position_BQ, dtype=torch.bool)

    def on_query(self, q_BHQE: Tensor, layer: int, row_BQ: Tensor) -> Tensor:
        """The queries of all heads of a layer with this edit made."""
        return q_BHQE

    def on_output(self, z_BHQE: Tensor, layer: int, row_BQ: Tensor, position_BQ: Tensor) -> Tensor:
        """The outputs of all heads of a layer with this edit made; a new tensor where anything changes."""
        return z_BHQE

    def looking(self, layer: int, shape: Shape) -> tuple[int, ...]:
        """The query heads of a layer whose rows look elsewhere."""
        return ()

    def said(self, found_BLH: Int[np.ndarray, "B L H"]) -> dict[str, object]:
        """What the provenance adds to the description, of what was found; nothing unless the edit finds something."""
        return {}

    def opened(self, scene: Scene) -> Step:
        """The step that changes scores or probabilities in one layer and pass."""
        raise NotImplementedError  # only edits whose `looking` names heads are asked, and these define it


def parsed(heads: Any) -> tuple[Head, ...] | None:
    """A list of heads or of their names, sorted, each once; None stays None and stands for all heads."""
    return None if heads is None else tuple(sorted(set(map(Head.parse, heads))))


def heads_in(heads: tuple[Head, ...] | None, layer: int, shape: Shape) -> tuple[int, ...]:
    """The heads of a layer that are meant."""
    return tuple(range(shape.n_heads)) if heads is None else tuple(head.index for head in heads if head.layer == layer)


def check_heads(heads: tuple[Head, ...] | None, shape: Shape) -> None:
    """Raise `InputError` unless a model of this shape has the heads."""
    for head in heads or ():
        shape.check(head)


def named(heads: tuple[Head, ...] | None) -> object:
    """The heads as provenance names them."""
    return "all" if heads is None else [str(head) for head in heads]
