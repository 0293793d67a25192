"""What do needle tests with and without some heads say in short, and how far are they to be believed?"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from workbench.matching import word_recall
from workbench.needle_files import load_needles
from workbench.recall import Recall
from workbench.results.caveats import counted
from workbench.scores import bootstrap_interval

FEW = 30
"""With fewer tests than this an interval says little."""

DRAWS = 5
"""With fewer draws of random heads their spread says little."""


def needles_in_short(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per way of ablating: mean `recall` (0–1) over tests and seeds, `least` and `most` of the seeds, and the paired `change` against all heads.

    `change` has a 95% bootstrap interval over the tests, `low` to `high`, each averaged over its seeds first; NaN where the whole model was not tested.
    `tests` is how many, `seeds` how many draws of heads.
    """
    whole_N = rows[rows["kind"] == "none"].groupby("test")["recall"].mean()
    made = []
    for kind, phase, condition in dict.fromkeys(zip(rows["kind"], rows["phase"], rows["condition"], strict=True)):
        part = rows[(rows["kind"] == kind) & (rows["phase"] == phase) & (rows["condition"] == condition)]
        seeds = part.groupby("seed")["recall"].mean()
        mean_N = part.groupby("test")["recall"].mean()
        change_N = (mean_N - whole_N.reindex(mean_N.index)).to_numpy()
        low, high = (np.nan, np.nan) if np.isnan(change_N).any() else (float(edge[0, 0]) for edge in bootstrap_interval(change_N[:, None, None]))
        facts = {"recall": mean_N.mean(), "least": seeds.min(), "most": seeds.max(), "change": change_N.mean(), "low": low, "high": high}
        made.append({"kind": kind, "phase": phase, "condition": condition, **facts, "tests": len(mean_N), "seeds": len(seeds)})
    return pd.DataFrame(made)


Said = Iterator[tuple[str, str]]


def of_needles(rows: pd.DataFrame) -> Said:
    """What a table of `benchmarks/needle_ablation.py` calls for, as level and text."""
    short = needles_in_short(rows)
    whole = short[short["kind"] == "none"]
    yield from _tests(rows, int(short["tests"].min()), float(whole["recall"].iloc[0]) if len(whole) else None)
    if (echoed := _echoed(rows)) is not None:
        yield "care", f"recall counts words of the question too: an answer that only echoes it has {echoed:.2f}, and below that nothing was found"
    for (kind, _), part in short[short["kind"] != "none"].groupby(["kind", "phase"], sort=False):
        random = part[part["condition"].str.contains("random")]
        for row in part[~part["condition"].str.contains("random")].to_dict("records"):
            if not len(random):
                yield "care", f"{kind}: there are no random heads beside {row['condition']}"
            elif row["recall"] >= random["least"].min():
                yield "stop", f"{kind}: {row['condition']} recall is {row['recall']:.2f}, and some random heads cost as much ({random['least'].min():.2f})"
        if len(random) and (seeds := int(random["seeds"].min())) < DRAWS:
            yield "know", f"{kind}: {counted(seeds, 'draw')} of random heads only"


def of_recall(rows: pd.DataFrame) -> Said:
    """What a table of `workbench needle` calls for, as level and text."""
    found = Recall(rows)
    totals = found.totals().set_index("variant")
    yield from _tests(rows, int(totals["n"].min()), float(totals.loc["full", "mean"]) if "full" in totals.index else None)
    if "control" not in totals.index:
        yield "care", "there are no random heads beside the chosen ones"
        return
    more, low, high = found.lost("without", "control")
    if low <= 0:
        yield "stop", f"the chosen heads cost no more than as many others that these tests could tell: {more:+.2f} of recall (95% {low:+.2f} to {high:+.2f})"
    if (draws := int(rows.loc[rows["variant"] == "control", "draw"].nunique())) < DRAWS:
        yield "know", f"{counted(draws, 'draw')} of random heads only"


def _tests(rows: pd.DataFrame, tests: int, whole: float | None) -> Said:
    """How many tests there are, how they hang together, and what the whole model does."""
    if tests < FEW:
        yield "care", f"{counted(tests, 'needle test')}: recall is known to about ±{0.98 / np.sqrt(tests):.2f} at worst"
    if whole is None:
        yield "stop", "the whole model was not tested, so that nothing tells what the ablation costs"
    elif whole < 1:
        yield "know", f"with all heads the model's recall is {whole:.2f}; what is lost is lost from that"
    if "needle" in rows and (needles := rows["needle"].nunique()) < tests:
        yield "know", f"{needles} needles for {tests} tests: tests of one needle are not independent, so that the intervals are too narrow"


def _echoed(rows: pd.DataFrame) -> float | None:
    """The recall (0–1) of an answer that only repeats the question, mean over the tests; None of needles that are not the package's."""
    known = {needle.id: word_recall(needle.answer, needle.question) for needle in load_needles("needles")}
    used = rows["needle"] if "needle" in rows else pd.Series(dtype=str)
    return float(used.map(known).mean()) if len(used) and set(used) <= set(known) else None
