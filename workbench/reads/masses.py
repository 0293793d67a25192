"""How much attention lies on a set of keys?"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.errors import InputError, unknown
from workbench.layer_view import LayerView, Seen
from workbench.ops.inputs import Range, Wanted
from workbench.relations import RELATIONS
from workbench.rows import Rows

NEAR = {"self": (0, 1), "previous": (1, 2)}
"""The relations that are a distance: from, and up to but not."""


@dataclass(frozen=True)
class Mass:
    """Attention probability on a set of keys, per query row: [B, L, H, R], 0–1.

    The set is the union of what is given: the `first` n keys (behind the padding), the `last` n keys up to the row itself, a named `span`, and the
    keys `at` a relation (`previous`, `self`, `duplicate`, `induction`); a key in several of them counts once. Keys that the row cannot see have
    probability 0. An n beyond the prompt is all of it; the capture's provenance says so.
    """

    first: int = 0
    last: int = 0
    span: str | None = None
    at: str | None = None
    rows: str | None = None
    per_row: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.first < 0 or self.last < 0 or not (self.first or self.last or self.span or self.at):
            raise InputError("Mass needs a set of keys: first=n, last=n, span=name or at=relation, n ≥ 0")
        if self.at is not None and self.at not in RELATIONS:
            raise unknown("relation", self.at, RELATIONS)

    def keys(self, view: LayerView) -> Bool[Tensor, "B R K"]:
        """True at the keys of the set."""
        rows = view.rows
        parts = [rows.mask(rows.first(self.first)), rows.mask(rows.last(self.last))]
        parts += [rows.mask(rows.span(self.span))] if self.span is not None else []
        parts += [view.related_BRK(self.at)] if self.at is not None else []
        return torch.stack(parts).any(0)

    def reference(self, view: LayerView) -> Float[Tensor, "B H R"]:
        """Sum the probabilities over the set."""
        chosen_BRK = view.rows.once(self, lambda: self.keys(view).to(view.pattern_BHRK.dtype))
        return torch.einsum("bhrk,brk->bhr", view.pattern_BHRK, chosen_BRK)

    def ranges(self, rows: Rows) -> tuple[Range, ...]:
        """The set as ranges that share no key: the first, the last without them, the span without both, the row's own or previous token without all."""
        first, last = rows.first(self.first), rows.last(self.last)
        last = torch.maximum(last[0], first[1]), last[1]
        parts = [first] * bool(self.first) + [last] * bool(self.last)
        if self.span is not None:
            low, high = rows.span(self.span)
            parts.append((torch.maximum(low, first[1]) if self.first else low, torch.minimum(high, last[0]) if self.last else high))
        if self.at in NEAR:
            key_BR, end_BR = rows.between(*NEAR[self.at])
            for low, high in parts:
                end_BR = torch.where((key_BR >= low) & (key_BR < high), key_BR, end_BR)
            parts.append((key_BR, end_BR))
        return tuple(parts)

    def wanted(self, rows: Rows) -> Wanted:
        """A mass for every range, and one for the related keys outside of them that are no range."""
        ranges = self.ranges(rows)
        wanted = Wanted(ranges={(self, number): part for number, part in enumerate(ranges)})
        return wanted if self.at is None or self.at in NEAR else wanted | Wanted(singles={(self, self.at): rows.related(self.at, ranges)})

    def streamed(self, seen: Seen) -> Float[Tensor, "B H R"]:
        """The masses of the parts."""
        parts = [mass for name, mass in seen.statistics.masses.items() if isinstance(name, tuple) and name[0] == self]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


@dataclass(frozen=True)
class Distances:
    """How far back each row looks: attention by distance, [B, L, H, R, D], 0–1; the D numbers of a row sum to 1.

    The first is the mass on the row's own token, the next that at distance 1, then 2–3, 4–7, 8–15, … up to the prompt's length.
    """

    rows: str | None = None
    per_row: ClassVar[bool] = False

    @staticmethod
    def edges(length: int) -> list[tuple[int, int]]:
        """The distances [near, far) of each number, for a prompt of that length."""
        return [(0, 1), *((2**power, 2 ** (power + 1)) for power in range(max(0, math.ceil(math.log2(length)))))]

    def reference(self, view: LayerView) -> Float[Tensor, "B H R D"]:
        """Sum the probabilities over each range of distances."""
        masks = [view.rows.mask(view.rows.between(*edge)).to(view.pattern_BHRK.dtype) for edge in self.edges(view.rows.prompts.length)]
        return torch.einsum("bhrk,dbrk->bhrd", view.pattern_BHRK, torch.stack(masks))

    def wanted(self, rows: Rows) -> Wanted:
        """A mass for every range of distances."""
        return Wanted(ranges={(self, near): rows.between(near, far) for near, far in self.edges(rows.prompts.length)})

    def streamed(self, seen: Seen) -> Float[Tensor, "B H R D"]:
        """The masses side by side."""
        return torch.stack([seen.statistics.masses[self, near] for near, _ in self.edges(seen.rows.prompts.length)], dim=-1)


@dataclass(frozen=True)
class TopMass:
    """Probability of those keys of a span that are among the row's N most attended ones, N the span's length: [B, L, H, R], 0–1."""

    span: str
    rows: str | None = None
    per_row: ClassVar[bool] = True

    def reference(self, view: LayerView) -> Float[Tensor, "B H R"]:
        """Keep the N largest probabilities of each row and sum those inside the span."""
        mass_HR = []
        for pattern_HRK, (start, end) in zip(view.pattern_BHRK, view.rows.prompts.span(self.span).tolist(), strict=True):
            top = pattern_HRK.topk(min(end - start, view.keys), dim=-1)
            inside = (top.indices >= start) & (top.indices < end)
            mass_HR.append((top.values * inside).sum(-1))
        return torch.stack(mass_HR)

    def wanted(self, rows: Rows) -> Wanted:
        """Nothing: it takes the probabilities, strip by strip."""
        return Wanted()

    def streamed(self, seen: Seen) -> Float[Tensor, "B H R"]:
        """As defined, strip by strip."""
        return torch.cat([self.reference(view) for view in seen.views()], dim=2)
