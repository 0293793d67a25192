"""Do the retrieval heads carry the recall? Needle recall with the strongest retrieval heads ablated, and with random others.

    python benchmarks/needle_ablation.py --labels heads.json --out reports/smollm2-135m/needle_ablation

Writes OUT.md (the table) and OUT.csv (one row per test and condition). The model answers greedily; recall is the share of the needle's
words in its answer. The random heads are other heads of the same layers, as many from each, drawn afresh for each of five seeds.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from report import write_report

from workbench import Ablate, Head, HeadLabels, Reference, capture, generate, load
from workbench.matching import word_recall
from workbench.needles import NeedleTests
from workbench.reads import HeadOutput
from workbench.recipes import NaturalText

KINDS = (("zero", "both"), ("mean", "both"), ("uniform", "decode"))
TESTS = NeedleTests(lengths_=(300, 800, 1300, 1900, 2400), depths=(0.1, 0.4, 0.7), per_cell=3, teacher_forced=False)
SEEDS = range(5)
Condition = tuple[str, str, str, int, tuple[Head, ...]]


def conditions(labels: HeadLabels, probe: str, count: int) -> Iterator[Condition]:
    """Kind, phase, name, seed and ablated heads of each condition."""
    ranked = sorted(labels.card.shape.heads(), key=lambda head: -labels.scores[probe][head.layer, head.index])
    top = ranked[:count]
    yield "none", "none", "all heads", 0, ()
    for kind, phase in KINDS:
        yield kind, phase, f"without the {count} strongest", 0, tuple(top)
        for seed in SEEDS:
            yield kind, phase, f"without {count} random others", seed, others(ranked, count, seed)


def others(ranked: list[Head], count: int, seed: int) -> tuple[Head, ...]:
    """As many heads of each layer as are among the first `count`, drawn from the rest."""
    rng = np.random.default_rng(seed)
    drawn: list[Head] = []
    for layer in sorted({head.layer for head in ranked[:count]}):
        pool = [head for head in ranked[count:] if head.layer == layer]
        wanted = sum(head.layer == layer for head in ranked[:count])
        drawn += [pool[index] for index in rng.permutation(len(pool))[:wanted]]
    return tuple(drawn)


_loaded: dict[str, Any] = {}


def start(name: str, device: str, dtype: str) -> None:
    """Load a worker's model, and the head outputs on natural text that mean ablation uses."""
    torch.set_num_threads(1 if device == "cuda" else torch.get_num_threads())
    model = load(name, device=device, dtype=dtype)
    text = NaturalText(length=256, count=4, batch=4).build(model, seed=0)[0]
    _loaded.update(model=model, tests=TESTS.build(model, seed=1), reference=Reference(capture(model, text, [HeadOutput()])[HeadOutput()]))


def measure(condition: Condition) -> pd.DataFrame:
    """The recall of every test under one condition."""
    kind, phase, name, seed, heads = condition
    edits = [Ablate(heads, kind, phase, _loaded["reference"] if kind == "mean" else None)] if heads else []
    rows = []
    for number, test in enumerate(_loaded["tests"]):
        answer = generate(_loaded["model"], test, [], max_new_tokens=40, edits=edits, stop=lambda text: "\n" in text.strip()).prompts.facts[0]
        facts = {key: answer[key] for key in ("needle", "length", "depth", "response")}
        recall = word_recall(answer["answer"], answer["response"])
        rows.append(
            {"kind": kind, "phase": phase, "condition": name, "seed": seed, "test": number, "recall": recall, "heads": " ".join(map(str, heads))} | facts
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--probe", default="retrieval")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a model of its own")
    given = parser.parse_args()
    model, labels = load(given.model, device=given.device, dtype=given.dtype), HeadLabels.load(given.labels)
    labels.check_model(model.card)
    with ProcessPoolExecutor(given.workers, get_context("spawn"), start, (given.model, given.device, given.dtype)) as pool:
        rows = pd.concat(pool.map(measure, conditions(labels, given.probe, given.count)), ignore_index=True)
    full = rows[rows["condition"] == "all heads"]
    means = rows.groupby(["kind", "phase", "condition", "seed"], sort=False)["recall"].mean().reset_index()
    table = means.groupby(["kind", "phase", "condition"], sort=False)["recall"].agg(["mean", "min", "max"]).reset_index()
    table["share of recall lost"] = 1 - table["mean"] / full["recall"].mean()
    top = rows.loc[rows["condition"].str.contains("strongest"), "heads"].iloc[0]
    precision = str(model.dtype).removeprefix("torch.")
    first = f"{model.name} ({model.card.fingerprint}), {precision}; {len(full)} tests of 300–2,400 tokens, three depths, six needles; "
    kinds = "`zero`: the heads write nothing; `mean`: their mean on natural text; `uniform`: they attend uniformly while answering, as in Wu et al."
    remarks = [
        f"{first}the {given.count} strongest heads by `{given.probe}`: {top}.",
        f"`mean`, `min`, `max` columns: recall over the seeds (five for the random heads, of the same layers). {kinds}",
    ]
    write_report(given.out, "Needle recall without the retrieval heads", remarks, table, rows)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
