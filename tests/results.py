"""What do the tests of results and reports share? Results whose numbers are known: nothing to be careful about, but for what a test puts in."""

import numpy as np
import pandas as pd

from workbench.circuits.circuit import Circuit
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import label
from workbench.rules import Rule
from workbench.scores import HeadScores, summarise

SHAPE = Shape(2, 3, 1, 8, 24)
CARD = ModelCard("toy", "memory", "feedbeef", SHAPE)
COUNT = 20
RULE = Rule("retrieval", "retrieval", 0.1, "Wu et al. 2024", "control: another needle in its place")
EVIDENCE = {
    "status": "ok",
    **dict.fromkeys(("tests", "valid", "counted", "null_samples"), COUNT),
    "dead": 0,
    "null": "control: another needle in its place",
    "made_from": {"needle": [f"needle {number}" for number in range(COUNT)]},
}
PROVENANCE = {"preset": "paper", "seed": 3, "dtype": "float32", "device": "cpu", "edits": []}


def samples(mean_LH, spread=0.0, count=COUNT):
    """So many samples with exactly these means: half of them `spread` above, half below."""
    sign_N = np.where(np.arange(count) % 2, 1.0, -1.0) * (count % 2 == 0)
    return np.asarray(mean_LH, float)[None] + spread * sign_N[:, None, None]


def scores(mean_LH=((0.8, 0.5, 0.0), (0.0, 0.3, 0.0)), *, spread=0.01, null=0.0, count=COUNT, card=CARD, evidence=None, provenance=None):
    """A table of one probe, retrieval."""
    rows = summarise("retrieval", card, samples(mean_LH, spread, count), np.full((2, 3), null))
    facts = {**EVIDENCE, **dict.fromkeys(("tests", "valid", "counted"), count), **(evidence or {})}
    return HeadScores(card, rows, {"retrieval": facts}, {**PROVENANCE, **(provenance or {})})


def labels(found=None, rule=RULE):
    """The labels of a table of scores by one rule."""
    return label(scores() if found is None else found, {rule.label: rule})


def circuit(**changes):
    """A circuit of two heads about which there is nothing to say."""
    rows = [(f"L{layer}H{index}", -1.0, -1.2, -0.8, 0.2, 0.001, 0.004, 40) for layer in range(2) for index in range(3)]
    effects = pd.DataFrame(rows, columns=["head", "effect", "low", "high", "normalised", "p", "q", "n"])
    held = {"full": 5.0, "empty": 0.0, "circuit": 4.8, "faithfulness": 0.96, "low": 0.9, "high": 1.0, "random": 0.1, "n": 40}
    made = {
        "method": "patching",
        "size": "reaches 0.9 on the prompts of the search, 0.8 was asked for",
        "accuracy": {"searched": 0.95, "held_out": 0.95, "chance": 0.5},
        "prompts": {"searched": 40, "held_out": 40, "dropped": {}},
        "dtype": "float32",
    }
    whole = {
        "card": CARD,
        "task": "ioi",
        "heads": (Head(0, 1), Head(1, 2)),
        "effects": effects,
        "edges": pd.DataFrame(columns=["edge", "chosen", "score", "exact", "low", "high", "p", "q", "n"]),
        "faithfulness": pd.DataFrame([{"ablation": "resample", **held}, {"ablation": "mean", **held, "faithfulness": 0.98}]),
        "minimality": pd.DataFrame({"head": ["L0H1", "L1H2"], "ablation": "resample", "drop": [0.4, 0.3]}),
        "provenance": made,
    }
    return Circuit(**{**whole, **changes})


def needles(strongest=0.2, random=0.9, whole=1.0, tests=40, seeds=5, distinct=None):
    """Needle tests in which every test of a way has the same recall."""
    ways = [("none", "none", "all heads", 0, whole), ("zero", "both", "without the 2 strongest", 0, strongest)]
    ways += [("zero", "both", "without 2 random others", seed, random) for seed in range(seeds)]
    rows = [
        {
            "kind": kind,
            "phase": phase,
            "condition": words,
            "seed": seed,
            "test": test,
            "recall": recall,
            "heads": "L0H0 L1H1",
            "needle": test % (distinct or tests),
        }
        for kind, phase, words, seed, recall in ways
        for test in range(tests)
    ]
    return pd.DataFrame(rows)


def recalls(without=0.2, control=0.9, full=1.0, tests=40, draws=5, distinct=None):
    """The same tests as `workbench needle` keeps them."""
    ways = [("full", 0, "", full), ("without", 0, "L0H0 L1H1", without), *(("control", draw, "L0H1 L1H0", control) for draw in range(draws))]
    rows = [
        {"variant": variant, "draw": draw, "heads": heads, "test": test, "needle": f"n{test % (distinct or tests)}",
         "length": 300 * (1 + test % 2), "depth": 0.5, "recall": value, "word_recall": value, "response": "x"}
        for variant, draw, heads, value in ways
        for test in range(tests)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def policies(kept=(0.9, 0.6), width=0.05, random=0.3, seeds=5, tests=100):
    """Two rankings and random heads at one budget."""
    names = [("first", None, kept[0]), ("second", None, kept[1]), *(("random", seed, random) for seed in range(seeds))]
    rows = [
        {
            "policy": name, "budget": 0.25, "seed": seed, "full_heads": 1, "kv_share": 0.4, "recall": 0.6 * value, "kept": value, "kept_low": value - width,
            "kept_high": value + width, "tests": tests, "perplexity": 12.0, "agreement": 0.9,
        }
        for name, seed, value in names
    ]  # fmt: skip
    return pd.DataFrame(rows)
