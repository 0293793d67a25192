"""How do two sets of labels differ? Two models, two runs, two settings: head by head where both have the same heads, label by label in any case."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.errors import InputError, unknown
from workbench.labels import HeadLabels
from workbench.scores import rank_agreement


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sets of labels by one probe. `difference_LH` is the second score less the first; None where the models have other numbers of layers or heads.

    `agreement` has Spearman's rank correlation and the overlap of the ten strongest heads, and is empty likewise. `labels` has a row per label: how many heads
    have it in the `first`, in the `second` and in `both`, and their `jaccard` index (both / either, 0–1; NaN where heads cannot be compared, or none has it).
    `depth` has a row per layer of either file (`which`: 0 the first, 1 the second): its relative `depth`, 0–1, and the `mean` and the `highest` score there.
    """

    probe: str
    difference_LH: Float[np.ndarray, "L H"] | None
    agreement: dict[str, float]
    labels: pd.DataFrame
    depth: pd.DataFrame


def compared(first: HeadLabels, second: HeadLabels, probe: str) -> Comparison:
    """Compare the scores of a probe and all labels. Raises `InputError` for a probe that one of the two has no scores of."""
    for one in (first, second):
        if probe not in one.scores:
            raise unknown(f"probe of {one.card.name}", probe, one.scores)
    mine, theirs = (np.asarray(one.scores[probe], float) for one in (first, second))
    alike = mine.shape == theirs.shape
    names = [*dict.fromkeys([*first.counts(), *second.counts()])]
    depth = pd.concat([_depth(score_LH).assign(which=which) for which, score_LH in enumerate((mine, theirs))], ignore_index=True)
    return Comparison(
        probe,
        theirs - mine if alike else None,
        rank_agreement(mine, theirs, 10) if alike else {},
        pd.DataFrame([_shared(first, second, name, alike) for name in names], columns=["label", "first", "second", "both", "jaccard"]),
        depth,
    )


def common(first: HeadLabels, second: HeadLabels) -> list[str]:
    """The probes that both have scores of. Raises `InputError` if there is none."""
    both = [probe for probe in first.scores if probe in second.scores]
    if not both:
        raise InputError(f"{first.card.name} and {second.card.name} have scores of no probe in common; label both by the same probes")
    return both


def _shared(first: HeadLabels, second: HeadLabels, name: str, alike: bool) -> dict[str, object]:
    mine, theirs = ({head for head, has in one.labels.items() if name in has} for one in (first, second))
    either, both = len(mine | theirs), len(mine & theirs)
    known = {"both": both, "jaccard": both / either if either else np.nan} if alike else {"both": np.nan, "jaccard": np.nan}
    return {"label": name, "first": len(mine), "second": len(theirs), **known}


def _depth(score_LH: Float[np.ndarray, "L H"]) -> pd.DataFrame:
    layers = len(score_LH)
    return pd.DataFrame({"depth": np.arange(layers) / max(1, layers - 1), "mean": score_LH.mean(1), "highest": score_LH.max(1)})
