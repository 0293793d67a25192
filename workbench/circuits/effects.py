"""How large is an effect, and is it one? Changes of a metric prompt by prompt, for every head, with intervals and corrected p-values."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.circuits import statistics
from workbench.heads import Head

COLUMNS = {
    "head": "the head, or the KV group, as in L5G1",
    "effect": "mean change of the metric, patched less base",
    "low": "lower end of its 95% bootstrap interval over prompts",
    "high": "upper end",
    "normalised": "effect / (metric on the other prompts − on the base prompts): 1 is the whole difference",
    "p": "sign-flip p-value, two-sided; of codes, that of labels swapped within pairs",
    "q": "the same with the false-discovery rate held (Benjamini–Hochberg) over all heads",
    "n": "prompts",
}
"""What the columns of `Effects.table` mean."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Changes of a metric by interventions, prompt by prompt: `effect_NLH`, patched less base; NaN where a sender has no path to the receiver.

    Columns are query heads, or KV groups (`groups`), as those share their keys and values. `base_N` and `other_N` are the metric itself on the base prompts
    and on those that values come from. `facts` says how it was made: method, component, ablation, direction, positions, metric, receiver.
    Scores of a method that sees all prompts at once, not one by one, bring their own p-values `p_LH`; they have no interval.
    """

    effect_NLH: Float[np.ndarray, "N L H"]
    base_N: Float[np.ndarray, " N"]
    other_N: Float[np.ndarray, " N"]
    group: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    p_LH: Float[np.ndarray, "L H"] | None = None

    @property
    def groups(self) -> bool:
        """Whether columns are KV groups."""
        return self.group > 1

    @property
    def mean_LH(self) -> Float[np.ndarray, "L H"]:
        """The mean effect."""
        return self.effect_NLH.mean(0)

    @property
    def normalised_LH(self) -> Float[np.ndarray, "L H"]:
        """The mean effect as a share of the mean difference between other and base prompts (a ratio of means); NaN if there is none."""
        whole = float(self.other_N.mean() - self.base_N.mean())
        return self.mean_LH / whole if whole else np.full_like(self.mean_LH, np.nan)

    def head(self, layer: int, index: int) -> Head:
        """The head of a column; the first of its group where columns are groups."""
        return Head(layer, index * self.group)

    def ranked(self) -> list[Head]:
        """All heads with an effect, the largest in size first; a group stands for its heads in turn."""
        places = [tuple(place) for place in np.argwhere(np.isfinite(self.mean_LH))]
        ordered = sorted(places, key=lambda place: (-abs(self.mean_LH[place]), place))
        return [Head(int(layer), int(index) * self.group + member) for layer, index in ordered for member in range(self.group)]

    def table(self, seed: int = 0) -> pd.DataFrame:
        """One row for every head (or group) with an effect, the largest in size first; see `COLUMNS`."""
        places = np.argwhere(np.isfinite(self.mean_LH))
        effect_NM = self.effect_NLH[:, places[:, 0], places[:, 1]]
        if self.p_LH is None:
            (low, high), p = statistics.interval(effect_NM, seed=seed), statistics.sign_flips(effect_NM, seed=seed)
        else:
            low, high, p = np.nan, np.nan, self.p_LH[places[:, 0], places[:, 1]]
        rows = pd.DataFrame({
            "head": [f"L{layer}G{index}" if self.groups else f"L{layer}H{index}" for layer, index in places],
            "effect": effect_NM.mean(0),
            "low": low,
            "high": high,
            "normalised": self.normalised_LH[places[:, 0], places[:, 1]],
            "p": p,
            "q": statistics.false_discoveries(p),
            "n": len(effect_NM),
        })  # fmt: skip
        return rows.sort_values("effect", key=abs, ascending=False, kind="stable", ignore_index=True)[list(COLUMNS)]


def joined(parts: list[Effects], **facts: Any) -> Effects:
    """The effects on several sets of prompts as one."""
    effect, base, other = (np.concatenate([getattr(part, name) for part in parts]) for name in ("effect_NLH", "base_N", "other_N"))
    return Effects(effect, base, other, parts[0].group, facts)
