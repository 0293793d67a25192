"""How do tables about sinks and successor heads stand in a report? What layers do, which heads are strongest, and how far variants and controls agree."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from workbench.results.of_head_tables import INPUTS, LATER, VARIANTS, head_names, passing, steered_in_short
from workbench.rules import RULES, rule_text
from workbench.scores import HeadScores
from workbench.views.methods import COLOURS
from workbench.views.report.parts import Block, Picture, Table, Told
from workbench.views.svg import Curve, Dot, curves_picture, intervals_picture

STRONGEST = 10


def _bounds(rows: pd.DataFrame, probe: str, scores: HeadScores | None) -> pd.DataFrame:
    """The ends of the 95% interval and the null of each row's head, where the table of scores has the very same numbers; else NaN."""
    if scores is None or probe not in scores.probes or scores.matrix(probe).size != len(rows) or not np.allclose(scores.matrix(probe).ravel(), rows[probe]):
        return pd.DataFrame(np.nan, rows.index, ["low", "high", "null"])
    found = {name: scores.matrix(probe, column).ravel() for name, column in (("low", "ci_low"), ("high", "ci_high"), ("null", "null"))}
    return pd.DataFrame(found, index=rows.index)


def _intervals_words(rows: pd.DataFrame, probe: str, scores: HeadScores | None) -> str:
    known = _bounds(rows, probe, scores)["low"].notna().any()
    return (
        "Intervals are those of the table of scores, whose numbers are the same."
        if known
        else "Intervals are not known: no table of these very scores is here."
    )


def _sinks(rows: pd.DataFrame, stem: str, scores: HeadScores | None) -> Told:
    names, nothing = head_names(rows), np.full(rows["layer"].nunique(), np.nan).tolist()
    probes = [*INPUTS, *LATER, "no_op", *(["user_attention"] if "user_attention" in rows else [])]
    facts = []
    for probe in probes:
        best, bounds = rows[probe].idxmax(), _bounds(rows, probe, scores)
        count = len(passing(rows, probe))
        facts.append(
            {"score": probe, "rule": rule_text(RULES[probe]), "heads": count, "share": f"{count / len(rows):.0%}", "a random head gets": RULES[probe].chance,
             "strongest": names[best], "its score": rows[probe][best], "low": bounds["low"][best], "high": bounds["high"][best]}
        )  # fmt: skip
    words = (
        "Which heads put attention on tokens that carry little. α, 0–1, is what a token receives on average from the rows that see it.",
        _intervals_words(rows, "attention_sink", scores),
    )
    layers = sorted(rows["layer"].unique().tolist())
    shown = {"first token": "attention_sink", **{f"later, {name.removeprefix('later_sink_')}": name for name in LATER}, "no-op": "no_op"}
    curves = [
        Curve(words_, layers, [float((rows.loc[rows["layer"] == layer, probe] >= RULES[probe].value).mean()) for layer in layers], nothing, nothing, colour)
        for (words_, probe), colour in zip(shown.items(), COLOURS, strict=False)
    ]
    by_layer = curves_picture(curves, "layer", "Share of the heads of each layer that each rule of sinks names", place="{:g}".format)
    ratio = {name: (rows[f"text_{name}_first"] / rows[f"text_{name}_rest"]).groupby(rows["layer"]).median().tolist() for name in ("value", "key")}
    norms = [Curve(f"{name}s: median over heads", layers, ratio[name], nothing, nothing, colour) for name, colour in zip(ratio, COLOURS, strict=False)]
    lengths = curves_picture(norms, "layer", "Norms of the first token's values and keys over those of others", shown="{:.2g}".format, place="{:g}".format)
    blocks: tuple[Block, ...] = (
        Picture(f"{stem}_by_layer", by_layer, "The share of each layer's heads that have a sink by each rule, 0–100%."),
        Picture(f"{stem}_norms", lengths, "Length of the first token's values and keys as a share of the other tokens', on one text: below 1 it carries less."),
        Table(f"{stem}_in_short", pd.DataFrame(facts), "How many heads each rule names, and the strongest with its 95% interval."),
        Table(stem, rows, "Every head.", rows.head(0)),
    )
    counts = {fact["score"]: fact["heads"] for fact in facts}
    later = ", ".join(f"{counts[name]} by {name.removeprefix('later_sink_')}" for name in LATER)
    told = f"{counts['attention_sink']} of {len(rows)} heads have a sink at the first token of natural text; later sinks: {later}."
    return "Attention sinks", words, blocks, told


def _successors(rows: pd.DataFrame, stem: str, scores: HeadScores | None) -> Told:
    rule, ranked = RULES["successor"], rows.sort_values("successor", ascending=False, kind="stable").head(STRONGEST)
    bounds = _bounds(rows, "successor", scores)
    found = [row["head"] for row in ranked.to_dict("records") if row["successor"] >= rule.value and row["successor"] > row["successor_null"]]
    best = ranked.iloc[0]
    verdict = f"Successor heads by the rule ({rule_text(rule)}): {', '.join(found) or 'none'}; the strongest is {best['head']} with {best['successor']:.3f}"
    verdict += f" ({best['successor_null']:.3f} with successors shuffled)."
    dots = [
        Dot(row["head"], row["successor"], float(bounds["low"][place]), float(bounds["high"][place]), row["successor_null"], filled=row["head"] in found)
        for place, row in zip(ranked.index, ranked.to_dict("records"), strict=True)
    ]
    svg = intervals_picture(dots, "successor score, 0–1", f"The {len(dots)} strongest heads by the successor score, with nulls")
    ways = {name: words for name, words in VARIANTS.items() if name in rows}
    others = [name for name in ("copy_suppression", "name_mover", "copying") if name in rows]
    shown = ranked[["head", *ways, "successor_null", *others]].rename(columns={**ways, "successor_null": "null"})
    words = (
        "The share of tokens (numbers, days, letters, …) whose successor a head's weights put first within its class, 0–1; read from weights, no text is run.",
        verdict,
        _intervals_words(rows, "successor", scores),
    )
    blocks = (
        Picture(
            f"{stem}_strongest", svg, "The strongest heads with 95% intervals where they are known; grey, the same with successors shuffled in each class."
        ),
        Table(stem, rows, "The strongest, by each way to compute the score; the other scores of the same heads beside.", shown),
    )
    return "Successor heads", words, blocks, verdict


def _steering(rows: pd.DataFrame, stem: str, _scores: HeadScores | None) -> Told:
    short = steered_in_short(rows)
    dots = [Dot(f"{row['class']}: {row['direction']}", row["success"], row["low"], row["high"], row["random"]) for row in short.to_dict("records")]
    svg = intervals_picture(dots, "share of moves that succeed", "Success of the best direction in each class, beside random ones", left=142)
    words = ("A residue's direction is put in place of a token's own in front of the head: does it then write the successor of the number it was moved to?",)
    blocks = (
        Picture(f"{stem}_success", svg, "The best direction and scale of each class with 95% intervals; grey, the best of random directions."),
        Table(f"{stem}_in_short", short, "By class, at the best direction and scale; `random` at its own best scale."),
        Table(stem, rows, "All directions and scales.", rows.head(0)),
    )
    best = short.loc[short["success"].idxmax()]
    told = f"{best['success']:.0%} of {best['moves']} moves ({best['direction']}), at random {best['random']:.0%}"
    return "Steering a successor head", words, blocks, f"Steering a successor head succeeds most with {best['class']}: {told}."


OF_HEADS: Mapping[str, Callable[[pd.DataFrame, str, HeadScores | None], Told]] = {"sinks": _sinks, "successors": _successors, "steering": _steering}
"""The tables about heads, whose intervals a table of scores may have."""
