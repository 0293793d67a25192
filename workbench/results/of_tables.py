"""What do tables say in short, and how far are they to be believed? Policies, calibration, memory against context, presets, and needle tests."""

from collections.abc import Callable, Iterator, Mapping

import pandas as pd
from scipy.stats import spearmanr

from workbench.circuits.statistics import share_interval
from workbench.results.caveats import Caveat, counted, sentence
from workbench.results.of_head_tables import of_sinks, of_steering, of_successors
from workbench.results.of_methods import of_code_sizes, of_methods, of_overlap, of_recovery, of_streams, of_transfer, of_turned
from workbench.results.of_needles import FEW, of_needles, of_recall

ENOUGH = 20.0
"""The e-value from which on a searched head is decided, an error of at most 1 in 20 (`workbench.calibration`)."""


def _of_policies(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    if (tests := int(rows["tests"].min())) < FEW:
        yield "care", f"{counted(tests, 'needle test')} only"
    rankings = rows[~rows["policy"].isin(("full", "random", "window"))]
    told = []
    for budget, part in rankings.groupby("budget"):
        best = part.loc[part["kept"].idxmax()]
        alike = part[(part["kept_high"] >= best["kept_low"]) & (part["policy"] != best["policy"])]
        if len(alike):
            told.append(f"at {budget:.0%} {best['policy']} and {', '.join(alike['policy'])}")
    if told:
        yield "care", f"these tests do not tell apart: {'; '.join(told)}"
    random = rows[rows["policy"] == "random"]
    if not len(random):
        yield "stop", "no random heads were measured, so that nothing tells what the ranking is worth"
    elif (seeds := int(random["seed"].nunique())) < 5:
        yield "know", f"{counted(seeds, 'draw')} of random heads only"
    best_at = rankings.groupby("budget")["kept_low"].max()
    beaten = [budget for budget, part in random.groupby("budget") if budget in best_at and part["kept_high"].max() >= best_at[budget]]
    if beaten:
        yield "care", f"no ranking is clearly better than every draw of random heads at {', '.join(f'{budget:.0%}' for budget in beaten)}"
    if (rankings["kept"] > 1).any():
        yield "know", "recall above the full model's is within what these tests can tell, or the full model is distracted; it is not memory for free"


def _of_search(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    kept = rows[rows["kept"].astype(bool)]
    open_ = kept[kept["e_helps"] < ENOUGH]
    if len(open_):
        yield (
            "care",
            f"{len(open_)} of {len(kept)} heads are kept for a gain that chance gives as well (e-value below {ENOUGH:.0f}): ACT's rule takes any gain above 0",
        )
    yield "know", f"what the kept heads are worth is told by held-out questions alone; {counted(len(rows), 'head')} measured"


def _of_held_out(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    mean = rows[rows["task"] == "mean"]
    kept = mean[mean["heads"] == "kept"]
    if not len(kept):
        yield "know", "no head was kept, so that there is nothing to evaluate"
        return
    row = kept.iloc[0]
    if row["difference_low"] <= 0 <= row["difference_high"]:
        said = f"{row['difference']:+.1%} (95% {row['difference_low']:+.1%} to {row['difference_high']:+.1%}; p = {row['p']:.2g})"
        yield "stop", f"on held-out questions calibrating the kept heads shows no effect that {counted(int(row['n']), 'question')} could tell: {said}"
    random = mean[mean["heads"] == "random"]
    if len(random) and random["difference"].max() >= row["difference"]:
        yield "care", f"some random heads do as well: {random['difference'].max():+.1%} against {row['difference']:+.1%}"


def _of_ph3(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    tests = int(rows["n"].min())
    low, high = share_interval(0.5, tests)
    yield ("care" if tests < 2 * FEW else "know"), f"shares of {counted(tests, 'held-out conflict')}: one of 50% has a 95% interval of {low:.0%} to {high:.0%}"
    if "clean" in rows and "way" in rows:
        whole = rows.loc[rows["way"] == "none", "clean"].mean()
        cost = rows[rows["way"] == "pruned"].groupby("steer")["clean"].mean()
        if worse := [f"steered to {name} {value:.0%}" for name, value in cost.items() if value < whole - 0.1]:
            yield "care", f"pruning costs more than a tenth of what the model knows closed-book ({whole:.0%}): {', '.join(worse)}"


def presets_in_short(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per probe: Spearman's rho of the two presets over all heads, the overlap of their ten strongest (0–1), and the largest difference."""
    made = []
    for probe, part in rows.groupby("probe", sort=False):
        ten = [set(part.sort_values(name, ascending=False, kind="stable")["head"].head(10)) for name in ("quick", "paper")]
        rho = float(spearmanr(part["quick"], part["paper"]).statistic)
        largest = float((part["quick"] - part["paper"]).abs().max())
        made.append({"probe": probe, "spearman": rho, "top10_overlap": len(ten[0] & ten[1]) / 10, "largest difference": largest, "heads": len(part)})
    return pd.DataFrame(made)


def _of_presets(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    short = presets_in_short(rows)
    if len(apart := short[short["top10_overlap"] < 0.8]):
        told = ", ".join(f"{row['probe']} ({row['top10_overlap']:.0%})" for row in apart.to_dict("records"))
        yield "care", f"the quick preset finds other heads than the paper's sizes; of the ten strongest they share: {told}"


_OF: Mapping[str, Callable[[pd.DataFrame], Iterator[tuple[str, str]]]] = {
    "needles": of_needles,
    "recall": of_recall,
    "policies": _of_policies,
    "search": _of_search,
    "held_out": _of_held_out,
    "ph3": _of_ph3,
    "presets": _of_presets,
    "sinks": of_sinks,
    "successors": of_successors,
    "steering": of_steering,
    "methods": of_methods,
    "recovery": of_recovery,
    "code_sizes": of_code_sizes,
    "overlap": of_overlap,
    "transfer": of_transfer,
    "turned": of_turned,
    "streams": of_streams,
}


def caveats_of_table(kind: str, rows: pd.DataFrame, about: str) -> list[Caveat]:
    """What a table of one of the kinds of `reading.TABLES` calls for; nothing for another."""
    said = _OF[kind](rows) if kind in _OF else ()
    return [Caveat(level, about, sentence(text)) for level, text in said]
