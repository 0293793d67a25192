"""How does a row spread its attention, and where is its peak?"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.layer_view import LayerView, Seen
from workbench.ops.inputs import Wanted
from workbench.rows import Rows

Array = Tensor | np.ndarray
"""A tensor while a pass runs, a NumPy array in a `Capture`."""


@dataclass(frozen=True)
class Entropy:
    """Entropy of each row's probabilities in nats, 0 to log(visible keys): [B, L, H, R]. `relative` divides by that maximum.

    A row that sees one key only has no choice; its relative entropy is defined as 0.
    """

    rows: str | None = None
    relative: bool = False
    per_row: ClassVar[bool] = True

    def reference(self, view: LayerView) -> Float[Tensor, "B H R"]:
        """Σ −p log p, with 0 log 0 = 0."""
        return self._scaled(torch.special.entr(view.pattern_BHRK).sum(-1), view.rows)

    def wanted(self, rows: Rows) -> Wanted:
        """The entropy."""
        return Wanted(entropy=True)

    def streamed(self, seen: Seen) -> Float[Tensor, "B H R"]:
        """As it was computed."""
        return self._scaled(seen.statistics.entropy_BHR, seen.rows)

    def _scaled(self, entropy_BHR: Tensor | None, rows: Rows) -> Tensor:
        assert entropy_BHR is not None
        return entropy_BHR / rows.visible_BR.clamp(min=2).log()[:, None] if self.relative else entropy_BHR


class PeakValue(NamedTuple):
    """The largest probability of each row, and the key that has it; the earlier key on ties."""

    prob: Array
    key: Array


@dataclass(frozen=True)
class Peak:
    """The strongest key of each row: `.prob` [B, L, H, R], 0–1, and `.key` [B, L, H, R], a position.

    Of equally strong keys it is the first. The Triton implementation may give any of the keys whose scores agree in their first 17 bits; `prob` is
    the exact probability of the key that it gives.
    """

    rows: str | None = None
    per_row: ClassVar[bool] = True

    def reference(self, view: LayerView) -> PeakValue:
        """Maximum and its first position."""
        prob_BHR = view.pattern_BHRK.amax(-1)
        return PeakValue(prob_BHR, (view.pattern_BHRK == prob_BHR[..., None]).int().argmax(-1))

    def wanted(self, rows: Rows) -> Wanted:
        """The peak."""
        return Wanted(peak=True)

    def streamed(self, seen: Seen) -> PeakValue:
        """As it was computed."""
        prob_BHR, key_BHR = seen.statistics.peak_prob_BHR, seen.statistics.peak_key_BHR
        assert prob_BHR is not None
        assert key_BHR is not None
        return PeakValue(prob_BHR, key_BHR)


@dataclass(frozen=True)
class LogSumExp:
    """The logarithm of the sum of a row's exponentiated scores, in nats: [B, L, H, R]. A score less this is a log-probability."""

    rows: str | None = None
    per_row: ClassVar[bool] = True

    def reference(self, view: LayerView) -> Float[Tensor, "B H R"]:
        """As the softmax has it."""
        return view.have("lse_BHR", "scores")

    def wanted(self, rows: Rows) -> Wanted:
        """The log-sum-exp."""
        return Wanted(lse=True)

    def streamed(self, seen: Seen) -> Float[Tensor, "B H R"]:
        """As it was computed."""
        return seen.statistics.lse_BHR


@dataclass(frozen=True)
class FirstKeyCosine:
    """cos(q_t, k₁): between each row's query and the first key behind the padding, as they are multiplied; −1 to 1: [B, L, H, R].

    Where keys of the first token are short and this is large, its score is nearly the same for all rows: a bias (Gu et al. 2024, 2410.10781).
    """

    rows: str | None = None
    per_row: ClassVar[bool] = True

    def reference(self, view: LayerView) -> Float[Tensor, "B H R"]:
        """In float32; 0 for a vector of length 0."""
        return self._cosine(view.have("q_BHRE", "queries"), view.have("k_BGKE", "keys"), view.rows)

    def wanted(self, rows: Rows) -> Wanted:
        """Nothing: queries and keys are there."""
        return Wanted()

    def streamed(self, seen: Seen) -> Float[Tensor, "B H R"]:
        """In float32; 0 for a vector of length 0."""
        return self._cosine(seen.attention.q_BHRE, seen.attention.k_BGKE, seen.rows)

    def _cosine(self, q_BHRE: Tensor, k_BGKE: Tensor, rows: Rows) -> Tensor:
        first_B = rows.start_B.long().clamp(max=k_BGKE.shape[2] - 1)  # a chunk may be padding alone
        place = first_B.view(-1, 1, 1, 1).expand(-1, k_BGKE.shape[1], 1, k_BGKE.shape[3])
        k_BH1E = k_BGKE.gather(2, place).repeat_interleave(q_BHRE.shape[1] // k_BGKE.shape[1], dim=1)
        return torch.nn.functional.cosine_similarity(q_BHRE.float(), k_BH1E.float(), dim=-1)
