"""How much lies on single keys? A dot product for each pair of a row and a key, added up per row: for previous tokens, induction, duplicates."""

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.ops.inputs import Attention, Name, Pairs, Wanted

AT_ONCE = 2**22
"""Probabilities that are held before they are added up."""


def masses(attention: Attention, lse_BHR: Tensor, wanted: Wanted, probabilities: Callable[[Attention, Tensor, Pairs], Tensor]) -> dict[Name, Tensor]:
    """The mass [B, H, R] on each named set of single keys. Sums are made in float64, so that the order of adding does not show."""
    if not wanted.singles:
        return {}
    batch, heads, n_rows, _ = attention.q_BHRE.shape
    every, slot_P, _ = attention.once(("singles", *map(id, wanted.singles.values())), lambda: _side_by_side(wanted, batch * n_rows, n_rows))
    exact = torch.float32 if lse_BHR.device.type == "mps" else torch.float64  # which MPS does not have
    total_HN = torch.zeros(heads, len(wanted.singles) * batch * n_rows, dtype=exact, device=lse_BHR.device)
    step = max(1, AT_ONCE // heads)
    for cut in (slice(begin, begin + step) for begin in range(0, len(slot_P), step)):
        part = Pairs(every.batch_P[cut], every.row_P[cut], every.key_P[cut])
        total_HN.index_add_(1, slot_P[cut], probabilities(attention, lse_BHR, part).to(exact))
    mass_HSBR = total_HN.float().view(heads, len(wanted.singles), batch, n_rows)
    return {name: mass_HSBR[:, number].transpose(0, 1) for number, name in enumerate(wanted.singles)}


def _side_by_side(wanted: Wanted, size: int, n_rows: int) -> tuple[Pairs, Tensor, object]:
    """All pairs in one list, where each is added up, and the sets, so that no others take their identity."""
    sets = list(wanted.singles.values())
    joined = Pairs(*(torch.cat([getattr(pairs, name) for pairs in sets]).contiguous() for name in ("batch_P", "row_P", "key_P")))
    first_P = torch.cat([torch.full_like(pairs.row_P, number * size) for number, pairs in enumerate(sets)])
    return joined, (first_P + joined.batch_P * n_rows + joined.row_P).int(), wanted.singles
