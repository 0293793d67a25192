"""How firmly does each label stand? Every labelled head, and every other that could be one, with interval, null and threshold."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.rules import Rule
from workbench.scores import HeadScores

COLUMNS = ("label", "probe", "head", "score", "low", "high", "null", "threshold", "labelled", "near", "at_null")


def backed(labels: HeadLabels, scores: HeadScores | None) -> tuple[str, ...]:
    """The probes of the labels whose numbers are those of the table of scores; none where that is of another model."""
    if scores is None or not same_model(labels, scores):
        return ()
    return tuple(name for name, score_LH in labels.scores.items() if name in scores.probes and np.allclose(scores.matrix(name), score_LH))


def same_model(labels: HeadLabels, scores: HeadScores) -> bool:
    """Whether both are of one model: the same shape and fingerprint."""
    return scores.card.shape == labels.card.shape and scores.card.fingerprint == labels.card.fingerprint


def standing(labels: HeadLabels, scores: HeadScores | None) -> pd.DataFrame:
    """One row (`COLUMNS`) for each label and head that has it, or whose 95% interval reaches the rule's fixed threshold.

    `threshold` is NaN of rules by rank. `near`: the interval has the threshold inside, so that other prompts may well decide otherwise. `at_null`: a labelled
    head whose interval reaches down to its own null. Both are False where the table has no interval, or is not of these labels. Strongest first.
    """
    known = set(backed(labels, scores))
    rows = [
        row
        for rule in labels.rules.values()
        if rule.probe in labels.scores
        for row in _of_rule(labels, rule, scores if scores is not None and rule.probe in known else None)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(("labelled", "near", "at_null"), bool))


def _of_rule(labels: HeadLabels, rule: Rule, scores: HeadScores | None) -> Iterator[tuple[object, ...]]:
    score_LH = labels.scores[rule.probe]
    nothing = np.full(score_LH.shape, np.nan)
    low_LH, high_LH, null_LH = (nothing if scores is None else scores.matrix(rule.probe, name) for name in ("ci_low", "ci_high", "null"))
    threshold = rule.value if rule.kind == "at_least" else np.nan
    order = np.argsort(-score_LH, axis=None, kind="stable")
    for layer, index in zip(*np.unravel_index(order, score_LH.shape), strict=True):
        head = Head(int(layer), int(index))
        low, high, null = (float(values[head.layer, head.index]) for values in (low_LH, high_LH, null_LH))
        has, near = rule.label in labels.labels[head], bool(low <= threshold <= high)
        if has or near:
            at_null = has and bool(low <= null)
            yield rule.label, rule.probe, str(head), float(score_LH[head.layer, head.index]), low, high, null, threshold, has, near, at_null


def standing_in_short(stands: pd.DataFrame) -> pd.DataFrame:
    """One row per label: how many heads have it, how many of these are `near` the threshold or `at_null`, and how many `others` are near."""
    made = []
    for name, part in stands.groupby("label", sort=False):
        mine = part[part["labelled"]]
        facts = {
            "threshold": part["threshold"].iloc[0],
            "heads": len(mine),
            "near the threshold": int(mine["near"].sum()),
            "at their null": int(mine["at_null"].sum()),
        }
        made.append({"label": name, **facts, "others near": int((part["near"] & ~part["labelled"]).sum())})
    return pd.DataFrame(made)
