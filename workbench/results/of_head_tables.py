"""What do tables of sinks, of successor heads and of their steering say in short, and how far are they to be believed?"""

from collections.abc import Iterator

import pandas as pd

from workbench.circuits.statistics import share_interval
from workbench.heads import Head
from workbench.results.caveats import counted, listed
from workbench.rules import RULES

INPUTS = {"attention_sink": "natural text", "attention_sink_random": "random tokens", "attention_sink_repeated": "one token repeated"}
"""First-token sinks by what the model read."""

LATER = ("later_sink_alpha_n", "later_sink_absolute", "later_sink_uniform")
ALIKE = 0.8
"""Two sets of heads with a Jaccard index below this are not the same."""

VARIANTS = {
    "successor": "as scored",
    "successor_raw": "without any norm",
    "successor_no_final_norm": "without the last norm",
    "successor_raw_into_mlp0": "without MLP0's norm",
    "successor_without_mlp0": "without MLP0",
    "successor_with_embedding": "embedding added",
}
"""The ways to compute the successor score of which a paper does not say which it took, as far as a table has them."""

Said = Iterator[tuple[str, str]]


def passing(rows: pd.DataFrame, probe: str) -> set[str]:
    """The heads of a table whose score reaches the value of the probe's rule, by name."""
    names = rows["head"] if rows["head"].dtype.kind not in "iu" else head_names(rows)
    return set(names[rows[probe] >= RULES[probe].value])


def head_names(rows: pd.DataFrame) -> pd.Series:
    """The name of the head of each row, from its `layer` and `head`."""
    return pd.Series([str(Head(int(layer), int(head))) for layer, head in zip(rows["layer"], rows["head"], strict=True)], rows.index)


def of_sinks(rows: pd.DataFrame) -> Said:
    """What a table of `benchmarks/sinks.py` calls for, as level and text."""
    counts = {words: len(passing(rows, name)) for name, words in INPUTS.items()}
    if max(counts.values()) - min(counts.values()) > (1 - ALIKE) * len(rows):
        told = ", ".join(f"{words} {count}" for words, count in counts.items())
        yield "care", f"whether a head has a sink at the first token depends on what is read, heads with one: {told}"
    later = {name: passing(rows, name) for name in LATER}
    if any(len(one & other) < ALIKE * len(one | other) for one in later.values() for other in later.values()):
        told = ", ".join(f"{name.removeprefix('later_sink_')} {len(heads)}" for name, heads in later.items())
        yield "care", f"the rules of later sinks do not name the same heads: {told}; {len(set.intersection(*later.values()))} by all"
    still = int((rows["no_op_mass"] > RULES["no_op"].value).sum())
    if (idle := len(passing(rows, "no_op"))) < still:
        told = f"of {counted(still, 'head')} with more than 90% of the mass on delimiters and the first token {idle} write little"
        yield "know", f"a sink is not by itself a no-op: {told}"
    yield "know", "norms and attention on the text are of one text, so that they have no intervals"


def of_successors(rows: pd.DataFrame) -> Said:
    """What a table of `benchmarks/successor_heads.py` calls for, as level and text."""
    best = rows.loc[rows["successor"].idxmax()]
    if best["successor"] < (least := RULES["successor"].value):
        told = f"the strongest, {best['head']}, for {best['successor']:.0%} of the tokens"
        yield "care", f"no head reaches the rule ({least}): ranks are among heads that hardly do it, {told}"
    if best["successor"] <= best["successor_null"]:
        yield (
            "stop",
            f"the strongest head, {best['head']}, does no better than with successors shuffled: {best['successor']:.3f} and {best['successor_null']:.3f}",
        )
    ways = {words: rows.loc[rows[name].idxmax()] for name, words in VARIANTS.items() if name in rows}
    if len({row["head"] for row in ways.values()}) > 1:
        told = ", ".join(f"{words} {row['head']}" for words, row in ways.items())
        yield "care", f"which head is strongest depends on norms and paths, which are a reconstruction: {told}"
    if best["copy_suppression"] >= RULES["copy_suppression"].value:
        yield "know", f"{best['head']} lowers the word that it looks at as well (copy suppression {best['copy_suppression']:.2f})"


def steered_in_short(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per class: the direction and scale of the most `success` (0–1) with its 95% interval as if moves were independent; `random` at its own best."""
    made = []
    for name, part in rows.groupby("class", sort=False):
        tried, random = part[part["direction"] != "random"], part[part["direction"] == "random"]
        best = tried.loc[tried["success"].idxmax()]
        low, high = share_interval(float(best["success"]), int(best["moves"]))
        facts = {"direction": best["direction"], "scale": best["scale"], "success": best["success"], "low": low, "high": high}
        made.append({"class": name, **facts, "random": random["success"].max() if len(random) else None, "moves": int(best["moves"])})
    return pd.DataFrame(made)


def of_steering(rows: pd.DataFrame) -> Said:
    """What a table of steering by vector arithmetic calls for, as level and text."""
    short = steered_in_short(rows)
    if short["random"].isna().any():
        yield "stop", "random directions were not tried, so that nothing tells what a direction is worth"
    elif len(none := short[short["low"] <= short["random"]]):
        yield "care", f"no direction is clearly better than a random one in: {listed(none['class'])}"
    if (tried := rows[rows["direction"] != "random"].groupby("class")[["direction", "scale"]].value_counts().groupby("class").size().max()) > 1:
        yield "care", f"direction and scale are the best of {tried} tried on the same moves, so that what is shown is too good"
    yield "know", "moves of one class share its words and are not independent, so that intervals are too narrow"
