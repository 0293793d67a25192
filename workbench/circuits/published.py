"""Which heads have others found? Published circuits as data, each with its model, source and caveats, and how a ranking compares with them.

Agreement with a published list is not faithfulness: a circuit with nine in ten of the heads of the IOI list can have none (Hanna et al. 2024,
arXiv 2403.17806). Show both.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float

from workbench.circuits.statistics import Recovery, recovery
from workbench.errors import InputError, unknown
from workbench.heads import Head, ModelCard

STATUS = {
    "published": "as the publication or its code has it",
    "secondary source": "as others report the publication",
    "third party": "as others encoded the publication; not checked against it",
}


@dataclass(frozen=True, eq=False)
class Published:
    """A list of heads: for which `task` and model (`names`, hub id first; `layers` × `heads`), by class, from where, and what to beware of.

    `unclear` heads are known to matter but are not part of the list: judge rankings also without them. `status` is one of `STATUS`.
    """

    name: str
    task: str
    names: tuple[str, ...]
    layers: int
    heads: int
    status: str
    source: str
    caveats: str
    classes: Mapping[str, tuple[Head, ...]]
    unclear: tuple[Head, ...]

    @property
    def members(self) -> tuple[Head, ...]:
        """All heads of the list, layer by layer."""
        return tuple(sorted(head for chosen in self.classes.values() for head in chosen))

    def class_of(self, head: Head) -> str | None:
        """What the list calls a head; None for one that is not in it."""
        return next((name for name, chosen in self.classes.items() if head in chosen), None)

    @property
    def truth_LH(self) -> Bool[np.ndarray, "L H"]:
        """True at the heads of the list."""
        return self._table(self.members)

    @property
    def unclear_LH(self) -> Bool[np.ndarray, "L H"]:
        """True at the unclear heads."""
        return self._table(self.unclear)

    def _table(self, chosen: tuple[Head, ...]) -> np.ndarray:
        table_LH = np.zeros((self.layers, self.heads), bool)
        for head in chosen:
            table_LH[head.layer, head.index] = True
        return table_LH

    def check(self, card: ModelCard) -> None:
        """Raise `InputError` unless this is the model of the list, by name and by layers and heads.

        A folder or file passes if it is called as the model is (`gpt2`), which is taken on trust.
        """
        called = {str(name).casefold().rstrip("/").rpartition("/")[2] for name in (card.name, card.origin)}
        wanted = {name.casefold().rpartition("/")[2] for name in self.names}
        if not called & wanted or (card.shape.n_layers, card.shape.n_heads) != (self.layers, self.heads):
            size, found = f"{self.layers} × {self.heads}", f"{card.shape.n_layers} × {card.shape.n_heads}"
            raise InputError(f"the circuit {self.name!r} is one of {self.names[0]} ({size} heads), not of {card.name} ({found}); load that model to compare")


@cache
def _all() -> Mapping[str, Published]:
    rows = json.loads(files("workbench").joinpath("data/circuits.json").read_text(encoding="utf-8"))
    return MappingProxyType({name: _published(name, row) for name, row in rows.items()})


def _published(name: str, row: dict) -> Published:
    classes = {key: tuple(map(Head.parse, chosen)) for key, chosen in row.pop("classes").items()}
    return Published(name=name, names=tuple(row.pop("names")), classes=MappingProxyType(classes), unclear=tuple(map(Head.parse, row.pop("unclear"))), **row)


def listing() -> tuple[Published, ...]:
    """All published circuits that the package knows."""
    return tuple(_all().values())


def published(name: str) -> Published:
    """A published circuit by name. Raises `InputError` for an unknown one, listing those there are."""
    if name not in _all():
        raise unknown("published circuit", name, _all())
    return _all()[name]


@dataclass(frozen=True)
class Comparison:
    """How well a ranking of heads finds a published list: with unclear heads counted as wrong, and with them left out."""

    whole: Recovery
    clear: Recovery


def compare(known: Published, card: ModelCard, score_LH: Float[np.ndarray, "L H"]) -> Comparison:
    """Judge scores of all heads (their size: heads that hurt belong to circuits too) against a list. Raises `InputError` for another model, as `check`."""
    known.check(card)
    clear_LH = ~known.unclear_LH
    size_LH = abs(score_LH)
    return Comparison(recovery(size_LH, known.truth_LH), recovery(size_LH[clear_LH], known.truth_LH[clear_LH]))
