"""What is written into the residual stream? Statistics of block outputs, the outputs themselves, and the size of what heads write.

Block outputs are observed by hooks, and what heads write takes the output projection: `workbench.streams` hands both to these reads.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import InputError
from workbench.layer_view import LayerView, Seen
from workbench.ops.inputs import Wanted
from workbench.prompts import Prompts
from workbench.reads.rows import Array
from workbench.rows import Rows

DROPPED_BITS = 15
"""Bits of a float32 that the histogram for the median drops: 8 bits of the fraction stay, so that the middle of a bin is off by at most 0.2%."""


class ActivationsValue(NamedTuple):
    """What `Activations` gives; `norm` is NaN in the padding."""

    largest: Array
    kurtosis: Array
    median: Array
    value: Array
    token: Array
    dim: Array
    norm: Array


@dataclass(frozen=True)
class Activations:
    """Statistics of each block's output h [T, D], the residual stream behind the block; padding does not count.

    `.largest` max |h| (inf-norm), `.kurtosis` mean((h − μ)⁴) / (σ⁴ + `eps`) over tokens and dimensions (3 for a Gaussian), `.median` of |h|, to 0.2%: [B, L].
    `.value` the `top` entries of largest |h|, with sign, their `.token` (a position) and `.dim`: [B, L, top], largest first. `.norm` ‖h_t‖: [B, L, T].
    Quantizable Transformers (2306.12929) have eps = 1e-6, which presses the kurtosis of activations with σ ≲ 0.05; the default has none.
    """

    top: int = 3
    eps: float = 0.0
    per_row: ClassVar[bool] = False
    rows: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.top < 1 or self.eps < 0:
            raise InputError(f"Activations takes top ≥ 1 and eps ≥ 0, got {self.top} and {self.eps}")

    def observer(self, prompts: Prompts) -> "ActivationTallies":
        """What takes in one layer's outputs, chunk by chunk."""
        return ActivationTallies(self, prompts)


class ActivationTallies:
    """Sums, counts and largest entries of one layer's output, for each prompt; no output is kept."""

    def __init__(self, read: Activations, prompts: Prompts) -> None:
        self._read, self._start_B = read, prompts.start_B
        self._tallies: list[_Tally | None] = [None] * prompts.count
        self._norms: list[Tensor] = []

    def see(self, h_BTD: Float[Tensor, "B T D"], begin: int) -> None:
        """Take in the outputs of the tokens from `begin` on."""
        h_BTD = h_BTD.float() if h_BTD.device.type != "mps" else h_BTD.float().cpu()  # which has no float64
        norm_BT = h_BTD.norm(dim=-1)
        for prompt, start in enumerate(self._start_B):
            first = max(int(start) - begin, 0)
            norm_BT[prompt, :first] = torch.nan
            if first < h_BTD.shape[1]:
                tally = _Tally.of(h_BTD[prompt, first:], begin + first, self._read.top)
                former = self._tallies[prompt]
                self._tallies[prompt] = tally if former is None else former + tally
        self._norms.append(norm_BT)

    def value(self) -> ActivationsValue:
        """The statistics of all that was seen."""
        parts = [tally.value(self._read.eps) for tally in self._tallies if tally is not None]
        return ActivationsValue(*(torch.stack(part) for part in zip(*parts, strict=True)), torch.cat(self._norms, dim=1))


@dataclass(frozen=True, eq=False)
class _Tally:
    """One prompt's entries in one layer: how many, sums of their first four powers, how many fall in each bin of magnitude, and the largest."""

    count: int
    power_4: Tensor
    bins: Tensor
    top_K: Tensor
    token_K: Tensor
    dim_K: Tensor

    @classmethod
    def of(cls, h_TD: Tensor, begin: int, top: int) -> "_Tally":
        """Of some tokens, the first of which stands at `begin`."""
        flat, sizes = h_TD.double().flatten(), h_TD.abs().flatten()
        square = flat * flat
        powers = torch.stack([flat.sum(), square.sum(), (square * flat).sum(), (square * square).sum()])
        bins = torch.bincount(sizes.view(torch.int32) >> DROPPED_BITS, minlength=1 << (31 - DROPPED_BITS))
        place_K = sizes.topk(min(top, len(sizes))).indices
        return cls(len(flat), powers, bins, h_TD.flatten()[place_K], place_K // h_TD.shape[1] + begin, place_K % h_TD.shape[1])

    def __add__(self, other: "_Tally") -> "_Tally":
        top_K, token_K, dim_K = (torch.cat([getattr(self, name), getattr(other, name)]) for name in ("top_K", "token_K", "dim_K"))
        best_K = top_K.abs().topk(len(self.top_K)).indices
        return _Tally(self.count + other.count, self.power_4 + other.power_4, self.bins + other.bins, top_K[best_K], token_K[best_K], dim_K[best_K])

    def value(self, eps: float) -> tuple[Tensor, ...]:
        """Largest, kurtosis, median, and the largest entries with their places."""
        mean, square, cube, fourth = self.power_4 / self.count
        variance = square - mean**2
        central = fourth - 4 * mean * cube + 6 * mean**2 * square - 3 * mean**4
        middle = int(((self.count - 1) // 2 < self.bins.cumsum(0)).int().argmax())
        median = torch.tensor((middle << DROPPED_BITS) + (1 << (DROPPED_BITS - 1)), dtype=torch.int32).view(torch.float32)
        kurtosis = (central / (variance**2 + eps)).float()
        return self.top_K[0].abs(), kurtosis, median.to(kurtosis.device), self.top_K, self.token_K, self.dim_K


@dataclass(frozen=True)
class BlockOutput:
    """Each block's output at chosen rows, in float32: [B, L, R, D]. Without `rows` it is the whole residual stream: for short prompts only."""

    rows: str | None = None
    per_row: ClassVar[bool] = False

    def observer(self, prompts: Prompts) -> "KeptRows":
        """What takes in one layer's outputs, chunk by chunk."""
        return KeptRows(prompts.row_positions(self.rows))


class KeptRows:
    """One layer's outputs at the rows [B, R]."""

    def __init__(self, row_BR: np.ndarray) -> None:
        self._row_BR = torch.from_numpy(np.array(row_BR))
        self._kept_BRD: Tensor | None = None

    def see(self, h_BTD: Float[Tensor, "B T D"], begin: int) -> None:
        """Take in the outputs of the tokens from `begin` on."""
        local_BR = self._row_BR.to(h_BTD.device) - begin
        if self._kept_BRD is None:
            self._kept_BRD = h_BTD.new_zeros(*local_BR.shape, h_BTD.shape[2], dtype=torch.float32)
        prompt_P, place_P = ((local_BR >= 0) & (local_BR < h_BTD.shape[1])).nonzero(as_tuple=True)
        self._kept_BRD[prompt_P, place_P] = h_BTD[prompt_P, local_BR[prompt_P, place_P]].float()

    def value(self) -> Float[Tensor, "B R D"]:
        """The rows in the order in which they were asked for."""
        assert self._kept_BRD is not None
        return self._kept_BRD


class WrittenValue(NamedTuple):
    """The length of what each head adds to the residual stream at each row [B, L, H, T], and of what it would add for each single key [B, L, H, K]."""

    update: Array
    value: Array


@dataclass(frozen=True)
class Written:
    """How large is what heads write: `.update` ‖z_i W_O‖ at row i, `.value` ‖v_j W_O‖ of key j alone, per query head: [B, L, H, T]; NaN in the padding.

    Edits are included, biases and a norm behind the attention are not. Lengths below some 10⁻³ of the longest are lost in rounding. Where there
    is no output projection, as in captures of given patterns, they are ‖z_i‖ and ‖v_j‖.
    """

    per_row: ClassVar[bool] = False
    rows: ClassVar[str | None] = None

    def reference(self, view: LayerView) -> WrittenValue:
        """Of given patterns and values, without an output projection."""
        return self.of(view.have("z_BHRE", "head outputs"), view.have("v_BGKE", "values"), None, view.rows)

    def wanted(self, rows: Rows) -> Wanted:
        """Nothing: outputs and values are there."""
        return Wanted()

    def streamed(self, seen: Seen) -> WrittenValue:
        """Without an output projection."""
        return self.of(seen.z_BHRE, seen.attention.v_BGKE, None, seen.rows)

    def of(self, z_BHRE: Tensor, v_BGRE: Tensor, o_HED: Float[Tensor, "H E D"] | None, rows: Rows) -> WrittenValue:
        """Of the outputs and values of the same tokens; ‖x W‖² is x W Wᵀ xᵀ."""
        v_BHRE = v_BGRE.repeat_interleave(z_BHRE.shape[1] // v_BGRE.shape[1], dim=1)
        hidden_BR = (rows.pos_BR < rows.start_B[:, None])[:, None]
        both = []
        for x_BHRE in (z_BHRE.float(), v_BHRE.float()):
            through = x_BHRE if o_HED is None else x_BHRE @ torch.einsum("hed,hfd->hef", o_HED, o_HED)
            both.append((through * x_BHRE).sum(-1).clamp(min=0).sqrt().masked_fill(hidden_BR, torch.nan))
        return WrittenValue(*both)
