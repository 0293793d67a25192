"""Which heads bring up memory, and which context, and does pruning them steer? PH3 on knowledge conflicts, over seeds, scores and corruptions.

    python benchmarks/ph3.py --model smollm2-135m --out reports/smollm2-135m/ph3

Writes OUT.md, OUT.csv (every row of every seed) and OUT.json, the head labels of the first seed.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from report import write_report
from sinks import markdown

from workbench.circuits.conflicts import conflict_sets
from workbench.circuits.ph3 import SCORES, SIDES, Ph3, find, importance, sides
from workbench.circuits.tasks.knowledge_conflict import CORRUPTIONS
from workbench.models import HFModel, load
from workbench.prompts import Prompts
from workbench.recipes import haystack_text
from workbench.scores import rank_agreement

WHAT = (
    "`memory`, `context` and `other` are shares of the answers to held-out conflicts (subjects apart from those of the search): what the model knows, what the "
    "text states, neither. Pruned heads have z = 0 at all positions; their number was chosen on validation conflicts, among those that cost at most 0.1 of the "
    "closed-book accuracy where any does. `random` are as many heads of the same layers, `gradient` those that first-order effects rank first. "
    "Means of seeds; `_low` and `_high` are the ends of 95% Wilson intervals of one seed, averaged likewise."
)


MEANT = ("memory", "memory_low", "memory_high", "context", "context_low", "context_high", "other", "clean", "perplexity", "heads", "n")
"""Columns of the table, means of seeds; the ends of intervals are those of one seed's items."""


def overlap(found: list[Ph3], side: str) -> float:
    """The mean Jaccard index of the heads of two seeds."""
    sets = [set(one.heads[side]) for one in found]
    return float(np.mean([len(a & b) / len(a | b) for a, b in combinations(sets, 2)])) if len(sets) > 1 else 1.0


def variants(model: HFModel, relation: str, count: int, seed: int) -> pd.DataFrame:
    """How the rankings by scores and corruptions agree with the default one."""
    rows, default = [], None
    for corruption in CORRUPTIONS:
        data = conflict_sets(model, relation, "substitution", corruption, counts=(count, 2, 2), transfer=False, seed=seed).searched
        for score in SCORES:
            effects = importance(model, data, score)
            mean = -effects.mean_LH.ravel()
            default = mean if default is None else default
            best = {side: " ".join(map(str, heads[:3])) for side, heads in sides(effects).items()}
            rows.append({"corruption": corruption, "score": score, **rank_agreement(mean, default, 10), "memory": best["memory"], "context": best["context"]})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--relation", default="capital")
    parser.add_argument("--counts", type=int, nargs=3, default=[40, 24, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--text-tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = load(given.model, device=given.device, dtype=given.dtype)
    text_T = Prompts.from_text(model, haystack_text(None)[0][: 20 * given.text_tokens]).ids_BT[0, : given.text_tokens]
    found = []
    for seed in given.seeds:
        data = conflict_sets(model, given.relation, counts=tuple(given.counts), transfer=seed == given.seeds[0], seed=seed)
        found.append(find(model, data, text_T=text_T))
    found[0].labels().save(given.out.with_suffix(".json"))
    rows = pd.concat([one.table.assign(seed=seed) for seed, one in zip(given.seeds, found, strict=True)])
    table = rows.groupby(["steer", "way"], sort=False)[list(MEANT)].mean().reset_index()
    remarks = [WHAT]
    for side in SIDES:
        heads = "; ".join(f"seed {seed}: {', '.join(map(str, one.heads[side]))}" for seed, one in zip(given.seeds, found, strict=True))
        remarks.append(f"{side} heads ({heads}). Jaccard index between seeds {overlap(found, side):.2f}.")
    remarks += ["Transfer (first seed): the same heads pruned on other relations and formats.", markdown(found[0].transfer)]
    left = found[0].provenance["left_out"]
    remarks += [f"Left out: {'; '.join(f'{name} ({reason})' for name, reason in left.items())}."] if left else []
    agreement = "Rankings by score and corruption, against logits and both: Spearman, overlap of the best ten, and the three best of each side."
    remarks += [agreement, markdown(variants(model, given.relation, given.counts[0], given.seeds[0]))]
    facts = found[0].provenance
    remarks.append(f"{facts['model']}, {facts['dtype']}, {facts['task']}, items {facts['items']}, {given.text_tokens} tokens of text, seeds {given.seeds}.")
    write_report(given.out, f"Memory or context: PH3 on {facts['model']}", remarks, table, rows)


if __name__ == "__main__":
    main()
