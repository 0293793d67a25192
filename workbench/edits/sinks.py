"""Which keys are attention sinks? Three rules on what a key receives, of which one takes its yardstick from uniform attention."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import InputError, unknown

RULES = {
    "share": (5.0, "more than α/N of the attention of the rows that see it, N the tokens of the prompt (ACT, the paper's rule; α = 5)"),
    "absolute": (0.1, "more than a fixed share of their attention (ACT's released code: 0.1, and 0.15 for MT-Bench)"),
    "uniform": (5.0, "more than c times what it would receive from uniform causal attention, (H_N − H_k)/(N − k); c = 5 is a house default"),
}
"""The rules, each with the threshold that stands where none is given. Only `uniform` treats the positions of short and long prompts alike: of uniform
attention, `absolute` 0.1 flags position 1 in every prompt of fewer than 32 tokens, and `share` 5 in every prompt of 221 or more."""


@dataclass(frozen=True)
class SinkRule:
    """A key is a sink if the mean attention that it receives from the rows that may see it exceeds a limit: `kind` is one of `RULES`.

    `threshold` (positive) stands for α, the share itself, or c; None is the rule's own. The mean is a_k = Σ_i A[i, k] / (N − k), over the last `window`
    of these rows where a layer has a window. Raises `InputError` for an unknown kind or a threshold that is not positive.
    """

    kind: str = "share"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in RULES:
            raise unknown("rule for sinks", self.kind, RULES)
        if self.threshold is None:
            object.__setattr__(self, "threshold", RULES[self.kind][0])
        if not (self.threshold is not None and self.threshold > 0):
            raise InputError(f"a sink's threshold is positive, got {self.threshold}")

    def limits(self, tokens_BR: Int[Tensor, "B R"], start_B: Int[Tensor, " B"], keys: int, window: int | None = None) -> Float[Tensor, "B R K"]:
        """The most that a key may receive in sum, from the first `tokens_BR` rows behind the padding, without being a sink; +inf where no row sees it."""
        assert self.threshold is not None
        place_BK = torch.arange(keys, device=start_B.device) - start_B[:, None].long()
        tokens_BR1 = tokens_BR.long()[..., None]
        stop_BRK = tokens_BR1.expand(-1, -1, keys) if window is None else torch.minimum(place_BK[:, None] + window, tokens_BR1)
        seen_BRK = (stop_BRK - place_BK[:, None]).masked_fill(place_BK[:, None] < 0, 0).clamp(min=0)
        if self.kind == "share":
            limit_BRK = self.threshold * seen_BRK / tokens_BR1.clamp(min=1)
        elif self.kind == "absolute":
            limit_BRK = self.threshold * seen_BRK.float()
        else:
            sum_N = uniform_sums(keys, window, start_B.device)
            limit_BRK = self.threshold * (sum_N[stop_BRK.clamp(0, keys)] - sum_N[place_BK.clamp(min=0)][:, None])
        return limit_BRK.float().masked_fill(seen_BRK == 0, torch.inf)

    def find(
        self,
        sum_BHRK: Float[Tensor, "B H R K"],
        tokens_BR: Int[Tensor, "B R"],
        start_B: Int[Tensor, " B"],
        window: int | None = None,
    ) -> Bool[Tensor, "B H R K"]:
        """True at the sinks, given what each key received from the first `tokens_BR` rows; the first real token counts as any other here."""
        return sum_BHRK > self.limits(tokens_BR, start_B, sum_BHRK.shape[-1], window)[:, None]


def uniform_sums(rows: int, window: int | None, device: torch.device) -> Float[Tensor, " N"]:
    """Σ_{i<n} 1/(keys that row i sees), for n from 0 to `rows`: differences are what a key receives from rows of uniform attention (harmonic numbers)."""
    seen_N = torch.arange(1, rows + 1, device=device)
    seen_N = seen_N if window is None else seen_N.clamp(max=window)
    exact = torch.float32 if device.type == "mps" else torch.float64
    return torch.cat([torch.zeros(1, dtype=exact, device=device), (1 / seen_N.to(exact)).cumsum(0)]).float()
