"""Which keys relate to a row's token? Relations by name, as pairs of a row and a key of one prompt."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

RowKey = tuple[Int[Tensor, " P"], Int[Tensor, " P"]]
"""Pairs: an index of a row, ascending, and the position of a key."""


def _previous(match_K: Tensor, pos_R: Tensor) -> RowKey:
    (row_P,) = (pos_R > 0).nonzero(as_tuple=True)
    return row_P, pos_R[row_P] - 1


def _self(match_K: Tensor, pos_R: Tensor) -> RowKey:
    return torch.arange(len(pos_R), device=pos_R.device), pos_R


def _duplicate(match_K: Tensor, pos_R: Tensor) -> RowKey:
    """Sorted by token, the equal tokens of a row lie next to each other, the earlier ones before its own place."""
    order_K = torch.argsort(match_K, stable=True)
    place_K = torch.empty_like(order_K)
    place_K[order_K] = torch.arange(len(order_K), device=order_K.device)
    first_K = torch.searchsorted(match_K[order_K].contiguous(), match_K)
    count_R = place_K[pos_R] - first_K[pos_R]
    row_P = torch.arange(len(pos_R), device=pos_R.device).repeat_interleave(count_R)
    within_P = torch.arange(len(row_P), device=pos_R.device) - (count_R.cumsum(0) - count_R)[row_P]
    return row_P, order_K[first_K[pos_R[row_P]] + within_P]


def _induction(match_K: Tensor, pos_R: Tensor) -> RowKey:
    """The keys behind the duplicates, up to the row's own."""
    row_P, key_P = _duplicate(match_K, pos_R)
    earlier_P = key_P + 1 < pos_R[row_P]
    return row_P[earlier_P], key_P[earlier_P] + 1


RELATIONS: dict[str, Callable[[Tensor, Tensor], RowKey]] = {"previous": _previous, "self": _self, "duplicate": _duplicate, "induction": _induction}
"""Keys named by how they relate to the row's token: the one before; itself; earlier equal tokens; the tokens after those.

Each takes the ids by which equal tokens are found [K], and the rows' positions [R], all of one prompt.
"""
