"""Which scores choose the KV heads that must stay full? Needle recall, perplexity and agreement under policies by several rankings, and controls.

    python benchmarks/policies.py --labels reports/smollm2-135m/heads.json --scores reports/smollm2-135m/elimination.json \
        --gates reports/smollm2-135m/duo_gates --out reports/smollm2-135m/policies

Measures as `workbench verify` does, and writes OUT.md, OUT.csv (every way), OUT.tests.csv (every answer) and OUT.html. A ranking is named as in `verify --by`;
with `ranks:` in front, the ranks of its scores are added instead of the scores.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from report import write_report

from workbench import HeadLabels, choosing, formats, load, views
from workbench.elimination import PROBE
from workbench.files import write_text
from workbench.verification import TESTS, Setting, Verification, verify

GATE = "duo_gate"
BY = ("elimination", "duo_gates", "razor_echo+razor_induction", "retrieval", "ranks:elimination+duo_gates")
BUDGETS = (0.15, 0.25, 1 / 3, 0.5, 0.67)
SHOWN = 1 / 3
"""The budget at which the report says which heads made the difference."""


def ranking(labels: HeadLabels, name: str) -> np.ndarray:
    """The scores of KV heads for a name."""
    bare = name.removeprefix("ranks:")
    return choosing.kv_scores(labels, bare, combine="ranks" if name != bare else "sum")


def wide(found: Verification) -> pd.DataFrame:
    """One row per ranking: recall kept at each budget; at the shown one also with the longest prompts, with perplexity and agreement."""
    table, long = found.table, found.tests[found.tests["length"] == found.tests["length"].max()]
    rows = []
    for name, part in table[table["policy"] != "full"].groupby("policy", sort=False):
        row = {"heads chosen by": {"random": "random", "window": "none: one window in all heads"}.get(str(name), f"`{name}`")}
        for budget, same in part.groupby("budget"):
            first, kept = same.iloc[0], same["kept"]
            spread = f"{kept.min():.0%} – {kept.max():.0%}" if len(same) > 1 else f"{first['kept_low']:.0%} – {first['kept_high']:.0%}"
            row[f"{budget:.0%}"] = f"**{kept.mean():.0%}** ({spread})"
        shown = part[np.isclose(part["budget"], SHOWN)]
        far = long[(long["policy"] == name) & np.isclose(long["budget"], SHOWN)]["recall"].mean() / long[long["policy"] == "full"]["recall"].mean()
        row[f"{SHOWN:.0%}, {long['length'].max():,} tokens"] = f"{far:.0%}"
        rows.append(row | {f"perplexity, {SHOWN:.0%}": f"{shown['perplexity'].mean():.2f}", f"agreement, {SHOWN:.0%}": f"{shown['agreement'].mean():.1%}"})
    return pd.DataFrame(rows)


def differences(rankings: dict[str, np.ndarray], best: str) -> list[str]:
    """Which KV heads the best ranking keeps full at the shown budget, and which of them each other one lacks."""
    count = int(SHOWN * rankings[best].size + 1e-9)
    order = {name: [divmod(int(place), score.shape[1]) for place in np.argsort(-score, axis=None, kind="stable")] for name, score in rankings.items()}
    told = " ".join(f"{layer}.{head}" for layer, head in order[best][:count])
    lacks = {name: [head for head in order[best][:count] if head not in order[name][:count]] for name in rankings if name != best}
    return [
        f"Full at {SHOWN:.0%} by `{best}`, {count} KV heads as layer.head, the most needed first: {told}.",
        *(f"Of these, `{name}` lacks {len(heads)}: {' '.join(f'{layer}.{head}' for layer, head in heads)}." for name, heads in lacks.items() if heads),
    ]


def remarks(found: Verification, setting: Setting, chosen_by: list[str], sources: list[str]) -> list[str]:
    """What was measured, and on what."""
    facts, full = found.provenance, found.table.iloc[0]
    tests = setting.tests
    return [
        (
            f"{facts['model']} ({facts['fingerprint']}), {facts['dtype']}, {facts['device']}; streaming heads see {facts['sinks']} sinks and a window of "
            f"{facts['window']}, {facts['semantics']} semantics. {full['tests']:.0f} needle tests: lengths {', '.join(map(str, tests.lengths_))}, depths "
            f"{', '.join(map(str, tests.depths))}, {tests.per_cell} of the package's six needles each, seed {setting.seed}. "
            f"{setting.text_tokens} tokens of text."
        ),
        (
            f"Share of the full model's recall that is kept (its recall is {full['recall']:.3f}, its perplexity {full['perplexity']:.2f}); recall counts the "
            f"words of the answer that are not in the question. Columns: share of KV heads that are full. In brackets: the 95% interval of the paired "
            f"difference; for random heads, the least and the most of {len(setting.seeds)} seeds."
        ),
        *sources,
        *chosen_by,
    ]


def told(labels: HeadLabels) -> list[str]:
    """On what heads were eliminated."""
    facts = labels.provenance
    return [
        (
            f"`{PROBE}`: {facts['prompts']} of {facts['of']} prompts per step, with {len(facts['needles'])} other needles than those tested here, lengths "
            f"{', '.join(map(str, facts['lengths']))}, another seed ({facts['tests_seed']}); the book that they are hidden in is the same. "
            f"{facts['seconds']:.0f} s on {facts['machine']}."
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True, help="what head_elimination.py has written")
    parser.add_argument("--gates", type=Path, nargs="+", required=True, help="DuoAttention folders; each is a ranking of the folder's name")
    parser.add_argument("--by", nargs="+", default=BY)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--lengths", type=int, nargs="+", default=TESTS.lengths_)
    parser.add_argument("--depths", type=float, nargs="+", default=TESTS.depths)
    parser.add_argument("--per-cell", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sinks", type=int, default=16)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = load(given.model, device=given.device)
    labels, eliminated = HeadLabels.load(given.labels), HeadLabels.load(given.scores)
    gates = {folder.name: formats.read(folder, "duo", labels.card).scores[GATE] for folder in given.gates}
    known = replace(labels, scores={**labels.scores, **eliminated.scores, **gates})
    rankings = {name: ranking(known, name) for name in given.by}
    tests = replace(TESTS, lengths_=tuple(given.lengths), depths=tuple(given.depths), per_cell=given.per_cell)
    setting = Setting(tests, tuple(given.budgets), tuple(range(given.seeds)), seed=given.seed)
    base = choosing.uniform(model.card, sinks=given.sinks, window=given.window)
    found = verify(model, base, rankings, setting, progress=lambda name, number, of: print(number, of, name, flush=True))
    text = remarks(found, setting, differences(rankings, given.by[0]), told(eliminated))
    write_report(given.out, "Which scores choose the heads that stay full", text, wide(found), found.table)
    write_text(given.out.with_suffix(".tests.csv"), found.tests.to_csv(index=False))
    views.save_html(views.quality_figure(found.table, found.provenance), given.out.with_suffix(".html"))
    print(given.out.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
