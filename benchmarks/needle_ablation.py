"""Do the retrieval heads carry the recall? Needle recall with the strongest retrieval heads ablated, and with random others.

    python benchmarks/needle_ablation.py --labels heads.json --out reports/smollm2-135m/needle_ablation

Writes OUT.md (the table) and OUT.csv (one row per test and condition). The model answers greedily; recall is the share of the needle's
words in its answer. The random heads are other heads of the same layers, as many from each, drawn afresh for each of five seeds.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from report import write_report

from workbench import Ablate, Head, HeadLabels, HFModel, generate, load
from workbench.needles import NeedleTests, word_recall

KINDS = (("zero", "both"), ("uniform", "decode"))
TESTS = NeedleTests(lengths_=(300, 800, 1300, 1900, 2400), depths=(0.25, 0.75), per_cell=3, teacher_forced=False)
SEEDS = range(5)


def conditions(labels: HeadLabels, probe: str, count: int) -> Iterator[tuple[str, int, tuple[Head, ...]]]:
    """Name, seed and ablated heads of each condition."""
    ranked = sorted(labels.card.shape.heads(), key=lambda head: -labels.scores[probe][head.layer, head.index])
    top = ranked[:count]
    yield "all heads", 0, ()
    yield f"without the {count} strongest", 0, tuple(top)
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        others = []
        for layer in sorted({head.layer for head in top}):
            pool = [head for head in ranked[count:] if head.layer == layer]
            wanted = sum(head.layer == layer for head in top)
            others += [pool[index] for index in rng.permutation(len(pool))[:wanted]]
        yield f"without {count} random others", seed, tuple(others)


def measure(model: HFModel, labels: HeadLabels, probe: str, count: int) -> pd.DataFrame:
    """The recall of every test under every condition."""
    tests = TESTS.build(model, seed=1)
    rows = []
    for kind, phase in KINDS:
        for name, seed, heads in conditions(labels, probe, count):
            if not heads and (kind, phase) != KINDS[0]:
                continue
            for number, test in enumerate(tests):
                edits = [Ablate(heads, kind, phase)] if heads else []
                answer = generate(model, test, [], max_new_tokens=40, edits=edits, stop=lambda text: "\n" in text.strip()).prompts.facts[0]
                recall = word_recall(answer["answer"], answer["response"])
                rows.append(
                    {"kind": kind, "phase": phase, "condition": name, "seed": seed, "test": number, "heads": " ".join(map(str, heads)), "recall": recall}
                    | {key: answer[key] for key in ("needle", "length", "depth", "response")}
                )
            print(kind, phase, name, seed, round(float(np.mean([row["recall"] for row in rows[-len(tests) :]])), 3), flush=True)
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
    given = parser.parse_args()
    model, labels = load(given.model, device=given.device, dtype=given.dtype), HeadLabels.load(given.labels)
    labels.check_model(model.card)
    rows = measure(model, labels, given.probe, given.count)
    full = rows[rows["condition"] == "all heads"]["recall"].mean()
    means = rows.groupby(["kind", "phase", "condition", "seed"], sort=False)["recall"].mean().reset_index()
    table = means.groupby(["kind", "phase", "condition"], sort=False)["recall"].agg(["mean", "min", "max"]).reset_index()
    table["share of recall lost"] = 1 - table["mean"] / full
    remarks = [
        f"{model.name} ({model.card.fingerprint}), {str(model.dtype).removeprefix('torch.')}; {len(full_tests(rows))} tests of 300–2,400 tokens, two depths, "
        f"six needles; the {given.count} strongest heads by `{given.probe}`: {rows.loc[rows['condition'].str.contains('strongest'), 'heads'].iloc[0]}.",
        "`mean`, `min`, `max`: recall over the conditions' seeds (five for the random heads, of the same layers). "
        "`zero`/`both`: the heads write nothing; `uniform`/`decode`: they attend uniformly while answering, as in Wu et al.'s code.",
    ]
    write_report(given.out, "Needle recall without the retrieval heads", remarks, table, rows)
    print(table.to_string(index=False))


def full_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The tests with no head ablated."""
    return rows[rows["condition"] == "all heads"]


if __name__ == "__main__":
    main()
