"""What becomes of a model's answers to conflicts as memory heads, or context heads, are pruned? Asked at once for both sides, and kept in a file."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.circuits import kept
from workbench.circuits.pruning_curve import conflicts_of, measured, pruning_curve
from workbench.circuits.sides import SCORES, Sides, from_labels
from workbench.circuits.tasks import Item
from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.labels import HeadLabels
from workbench.models import HFModel

SCHEMA = "workbench.pruning/1"


@dataclass(frozen=True, eq=False)
class Pruned:
    """Every head by its `sides`, and for each side the `curves` of `pruning_curve` as its first heads are pruned.

    `now` is whether the sides were measured on these conflicts, or are those of a file of `workbench ph3`. `items` are the conflicts, about `relation`;
    `origin` says in words what they are to the search that the file tells of.
    """

    card: ModelCard
    relation: str
    items: tuple[Item, ...]
    origin: str
    sides: Sides
    now: bool
    curves: Mapping[str, pd.DataFrame]

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        scores = {side: kept.listed(getattr(self.sides, f"{side}_LH")) for side in SCORES}
        sides = {"scores": scores, "found": dict(self.sides.found), "provenance": dict(self.sides.provenance)}
        curves = {side: kept.records(curve) for side, curve in self.curves.items()}
        items = [asdict(item) for item in self.items]
        return kept.write(
            path, SCHEMA, self.card, {"relation": self.relation, "origin": self.origin, "now": self.now, "sides": sides, "curves": curves, "items": items}
        )

    @classmethod
    def load(cls, path: str | Path) -> "Pruned":
        """Read what `save` wrote. Raises `InputError` for a file that is missing or is something else."""
        card, data = kept.read(path, SCHEMA)
        told = data["sides"]
        sides = Sides(*(kept.numbers(told["scores"][side]).astype(float) for side in SCORES), told["found"], told["provenance"])
        curves = {side: pd.DataFrame(rows) for side, rows in data["curves"].items()}
        items = tuple(Item(**(item | {name: tuple(item[name]) for name in ("right", "wrong")})) for item in data["items"])
        return cls(card, data["relation"], items, data["origin"], sides, data["now"], curves)


def prune(
    model: HFModel,
    relation: str,
    count: int,
    labels: HeadLabels | None = None,
    *,
    measure: bool = False,
    told: Callable[[str, int, int], None] = lambda *_: None,
) -> Pruned:
    """Have the model answer about `count` conflicts with 0, 1, 2, … heads of either side pruned, the most important first.

    The sides are PH3's scores in `labels` (as `workbench ph3` writes them); without labels, or to `measure`, they are measured on these conflicts. Conflicts
    are those that the search behind the labels kept for its test, where they can be drawn again. `told` is told what is being done, and how many of the parts
    are. Raises `InputError` for labels without PH3's scores or of another model, and as `conflicts_of` and `measured` do.
    """
    filed = None if labels is None else from_labels(labels)
    if labels is not None and filed is None:
        raise InputError("the labels hold no scores of memory and context; `workbench ph3` writes a file that does")
    if labels is not None:
        labels.check_model(model.card)
    told(f"looking for conflicts about {relation} that the model knows", 0, 4)
    provenance: Mapping[str, Any] = {} if filed is None else filed.provenance
    data, origin = conflicts_of(model, relation, count, provenance)
    sides = filed
    if sides is None or measure:
        told("patching the paths of all heads", 1, 4)
        sides = measured(model, data)
    curves = {}
    for number, side in enumerate(SCORES, 2):
        told(f"answering with {side} heads pruned", number, 4)
        curves[side] = pruning_curve(model, data, sides.ranked(side))
    told("done", 4, 4)
    return Pruned(model.card, relation, data.items, origin, sides, sides is not filed, curves)
