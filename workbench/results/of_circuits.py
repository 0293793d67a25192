"""How far is a circuit to be believed? Its faithfulness under each ablation, beside chance and random rivals, and how its heads were found."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.circuits.circuit import Circuit
from workbench.results.caveats import Caveat, counted, listed, sentence

WIDE = 0.2
"""An interval of faithfulness, or a difference between ablations, from which on one number does not tell it."""

FEW = 30
"""With fewer held-out prompts the interval is that of a small sample."""

ALPHA = 0.05


def caveats_of_circuit(circuit: Circuit, about: str) -> list[Caveat]:
    """What a circuit called `about` calls for."""
    every = [*_faithfulness(circuit.faithfulness), *_heads(circuit), *_search(circuit.provenance)]
    return [Caveat(level, about, sentence(text)) for level, text in every]


def _faithfulness(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    if not len(table):
        yield "stop", "it was not evaluated on held-out prompts: nothing tells whether these heads carry the behaviour"
        return
    rows = table.to_dict("records")
    if missed := [row for row in rows if not row["low"] > row["random"]]:
        told = [f"{row['ablation']} {row['faithfulness']:.2f} (from {row['low']:.2f}), random heads {row['random']:.2f}" for row in missed]
        where = "under every ablation" if len(missed) == len(rows) else f"under {counted(len(missed), 'ablation')} of {len(rows)}"
        yield "stop" if len(missed) == len(rows) else "care", f"not clearly better than as many random heads {where}: {listed(told)}"
    values = {row["ablation"]: row["faithfulness"] for row in rows}
    if max(values.values()) - min(values.values()) > WIDE:
        yield "care", f"faithfulness depends on what stands in for the other heads: {', '.join(f'{name} {value:.2f}' for name, value in values.items())}"
    if wide := [f"{row['ablation']} {row['low']:.2f} to {row['high']:.2f}" for row in rows if row["high"] - row["low"] > WIDE]:
        yield "care", f"wide 95% intervals of faithfulness: {listed(wide)}"
    if (prompts := int(min(row["n"] for row in rows))) < FEW:
        yield "care", f"evaluated on {counted(prompts, 'held-out prompt')}"


def _heads(circuit: Circuit) -> Iterator[tuple[str, str]]:
    inside = circuit.effects[circuit.effects["head"].isin({str(head) for head in circuit.heads})]
    if "q" in inside and (weak := inside[inside["q"] > ALPHA]).shape[0]:
        yield "care", f"{len(weak)} of {len(circuit.heads)} heads have no single effect that stands out (q > {ALPHA}): {listed(weak['head'])}"
    if len(circuit.minimality) and (idle := circuit.minimality[circuit.minimality["drop"] <= 0]).shape[0]:
        names = list(dict.fromkeys(idle["head"]))
        yield "know", f"not minimal: without {listed(names)} the circuit does the task as well, or better"


def _search(made: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    right, chance = made.get("accuracy", {}).get("held_out"), made.get("accuracy", {}).get("chance")
    tests = made.get("prompts", {}).get("held_out")
    if right is not None and chance is not None and tests and right - 2 * np.sqrt(right * (1 - right) / tests) <= chance:
        yield "stop", f"the model itself does the task no better than chance: {right:.0%} of {tests} held-out prompts, chance is {chance:.0%}"
    if "is not reached" in str(made.get("size", "")):
        yield "care", str(made["size"])
    missed = made.get("edges_missed", {})
    if missed.get("sampled") and missed["high"] > 0.1:
        yield "know", f"of {missed['not_measured']:,} edges that were not measured up to {missed['high']:.0%} may matter, by a sample of {missed['sampled']}"
    if made.get("method") == "codes":
        yield "care", "found by codes, of clean prompts only: nothing was intervened on in the search"
    dropped = sum(made.get("prompts", {}).get("dropped", {}).values())
    if dropped:
        reasons = ", ".join(f"{name} ({count})" for name, count in made["prompts"]["dropped"].items())
        yield "know", f"{counted(dropped, 'prompt')} left out of the task: {reasons}"
    if made.get("dtype") in ("bfloat16", "float16"):
        yield "know", f"computed in {made['dtype']}"
