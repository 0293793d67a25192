"""What does one layer show? `LayerView`: the probabilities that reads are computed from, and the keys that relate to a row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from workbench.prompts import Prompts


@dataclass(frozen=True, eq=False)
class LayerView:
    """What one layer shows for the query heads of one KV head: probabilities at chosen rows, and q, k, v, z.

    `visible_BRK` tells which keys a row may attend to. `z_BHRE` and `q_BHRE` hold the chosen rows as well. `memo` keeps
    what depends on prompts and rows alone, for the other heads and layers of the pass.
    """

    prompts: Prompts
    row_BR: Int[Tensor, "B R"]
    pattern_BHRK: Float[Tensor, "B H R K"]
    visible_BRK: Bool[Tensor, "B R K"]
    q_BHRE: Float[Tensor, "B H R E"] | None = None
    k_BKE: Float[Tensor, "B K E"] | None = None
    v_BKE: Float[Tensor, "B K E"] | None = None
    z_BHRE: Float[Tensor, "B H R E"] | None = None
    memo: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def keys(self) -> int:
        """The number of keys, K."""
        return self.pattern_BHRK.shape[-1]

    @cached_property
    def match_BK(self) -> Int[Tensor, "B K"]:
        """The ids by which equal tokens are found, at the keys."""
        return torch.tensor(self.prompts.match_BT, device=self.row_BR.device)[:, : self.keys]

    @cached_property
    def distance_BRK(self) -> Int[Tensor, "B R K"]:
        """Query position minus key position."""
        return self.row_BR[:, :, None] - torch.arange(self.keys, device=self.row_BR.device)

    def span_BRK(self, name: str) -> Bool[Tensor, " B #rows K"]:
        """True at the keys of a named span."""
        span_B2 = torch.tensor(self.prompts.span(name), device=self.row_BR.device)
        key_K = torch.arange(self.keys, device=self.row_BR.device)
        return ((key_K >= span_B2[:, :1]) & (key_K < span_B2[:, 1:]))[:, None, :]


def _previous(view: LayerView) -> Tensor:
    return view.distance_BRK == 1


def _self(view: LayerView) -> Tensor:
    return view.distance_BRK == 0


def _duplicate(view: LayerView) -> Tensor:
    row_match_BR = view.match_BK.gather(1, view.row_BR)
    return (row_match_BR[:, :, None] == view.match_BK[:, None, :]) & (view.distance_BRK > 0)


def _induction(view: LayerView) -> Tensor:
    """The duplicates moved one key to the right: the token after an earlier occurrence."""
    after = pad(_duplicate(view)[:, :, :-1], (1, 0))
    return after & (view.distance_BRK > 0)


RELATIONS: dict[str, Callable[[LayerView], Tensor]] = {"previous": _previous, "self": _self, "duplicate": _duplicate, "induction": _induction}
"""Keys named by how they relate to the row's token: the one before; itself; earlier equal tokens; the tokens after those."""
