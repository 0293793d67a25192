"""At which step does a kind of head appear? Where the strongest head's score first passes its threshold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.errors import InputError
from workbench.rules import RULES

BOS_SINK = "attention_sink_bos"
"""The name of the probe for sinks where nothing can be matched: behind BOS stand random tokens."""

THRESHOLDS = {
    **{name: RULES[name].value for name in ("previous_token", "induction", "attention_sink")},
    BOS_SINK: RULES["attention_sink_random"].value,
}
"""The kinds of heads that are watched, each with the score from which on a head is one: those of `RULES`."""

UNNORMALISED = "weights"
"""The reading whose rows do not sum to 1: the thresholds say nothing about it."""

ONSET = ("probe", "threshold", "before", "step", "highest", "last", "heads")
"""The columns of a table of onsets."""

NEEDED = ("step", "probe", "layer", "head", "score", "null")


def checked(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The table, if it has one score for each head, probe and step within the groups of `by`. Raises `InputError` if not."""
    if missing := {*NEEDED, *by} - set(table.columns):
        raise InputError(f"a table of checkpoints needs the columns {', '.join([*by, *NEEDED])}; missing: {', '.join(sorted(missing))}")
    keys = [*by, "step", "probe", "layer", "head"]
    if (twice := table.duplicated(keys)).any():
        raise InputError(f"a table of checkpoints has one row for each {', '.join(keys)}; {int(twice.sum())} are there again")
    return table


def strongest(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Of every group of `by`, step and probe: the strongest head's `score` and name (`layer`, `head`), and the number of labelled `heads`.

    A head is labelled where it scores at least its threshold and more than its null; none is by the reading `weights`.
    """
    keys = [*by, "probe", "step"]
    table = checked(table, by)
    labelled = (table["score"] >= table["probe"].map(THRESHOLDS.__getitem__)) & (table["score"] > table["null"].fillna(-np.inf))
    if "reading" in table:
        labelled &= table["reading"] != UNNORMALISED
    best = table.sort_values(["score", "layer", "head"], ascending=[False, True, True]).groupby(keys, sort=True).first()[["score", "layer", "head"]]
    return best.assign(heads=labelled.groupby([table[key] for key in keys]).sum()).reset_index()


def onsets(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """When each probe's label first appears, of every group of `by`, with the columns below. The reading `weights` has no labels and is left out.

    `step` is the first checkpoint with a labelled head and `before` the one before it: the head appeared between them (`before` is −1 if it was there at the
    first). Both are NaN where it never appeared. `highest` is the highest score of any head at any step; `last` that of the strongest head at the last step,
    at which `heads` are labelled.
    """
    rows = []
    table = table[table["reading"] != UNNORMALISED] if "reading" in table else table
    if table.empty:
        return pd.DataFrame(columns=[*by, *ONSET])
    for key, part in strongest(table, by).groupby([*by, "probe"], sort=True):
        names = key if isinstance(key, tuple) else (key,)
        steps, there = part["step"].to_numpy(), part["heads"].to_numpy() > 0
        first = int(there.argmax()) if there.any() else None
        rows.append(
            dict(zip([*by, "probe"], names, strict=True))
            | {
                "threshold": THRESHOLDS[str(names[-1])],
                "before": float("nan") if first is None else float(steps[first - 1] if first else -1),
                "step": float("nan") if first is None else float(steps[first]),
                "highest": float(part["score"].max()),
                "last": float(part["score"].iloc[-1]),
                "heads": int(part["heads"].iloc[-1]),
            }
        )
    return pd.DataFrame(rows, columns=[*by, *ONSET])
