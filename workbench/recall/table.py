"""What came out of needle tests with and without some heads? Totals, grids of length × depth, differences, and how all of it is kept on disk."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.errors import InputError
from workbench.files import write_text
from workbench.heads import Head
from workbench.matching import word_recall
from workbench.needle_files import load_needles
from workbench.scores import bootstrap_interval

PHASES = {"zero": "both", "mean": "both", "uniform": "decode"}
"""The kinds of ablation, and the phase in which each takes the heads away."""

MEASURES = {
    "recall": "the share of the needle's words that are not in the question which the answer has, 0–1: echoing the question is worth nothing",
    "word_recall": "the share of all of the needle's words which the answer has (ROUGE-1 recall, as in Wu et al.), 0–1",
}
"""How an answer can be judged."""

VARIANTS = {"full": "all heads", "without": "without the chosen heads", "control": "without as many others"}
"""The rows of a table of tests; `control` has one for each draw."""

COLUMNS = ("variant", "draw", "heads", "test", "needle", "length", "depth", *MEASURES, "response")
"""Those of a table of tests; `heads` are the ones taken away."""


@dataclass(frozen=True, eq=False)
class Recall:
    """What was found: `tests` has a row for each test and variant (`COLUMNS`), `provenance` what made them."""

    tests: pd.DataFrame
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def grid(self, variant: str, measure: str = "recall") -> pd.DataFrame:
        """The mean of a measure: a row per depth, a column per length in tokens."""
        return self._of(variant).pivot_table(index="depth", columns="length", values=measure, aggfunc="mean")

    def totals(self, measure: str = "recall") -> pd.DataFrame:
        """A row per variant: `mean`, `low` and `high` (95%, bootstrap over the tests, means over the draws), `least` and `most` of single draws, `n` tests."""
        rows = []
        for variant in [name for name in VARIANTS if (self.tests["variant"] == name).any()]:
            drawn = self._of(variant).groupby("draw")[measure].mean()
            mean, low, high = _interval(self._by_test(variant, measure), 0)
            rows.append((variant, mean, low, high, drawn.min(), drawn.max(), self._of(variant)["test"].nunique()))
        return pd.DataFrame(rows, columns=["variant", "mean", "low", "high", "least", "most", "n"])

    def lost(self, variant: str, other: str = "full", measure: str = "recall") -> tuple[float, float, float]:
        """How much less than `other` a variant has, and the 95% interval of it, of differences test by test."""
        return _interval(self._by_test(other, measure) - self._by_test(variant, measure), -1)

    def verdict(self, measure: str = "recall") -> str:
        """What the tests say, in sentences."""
        full, without, control = (self._total(variant, measure) for variant in VARIANTS)
        if not full:
            return "With all heads the model answers none of the tests, so that nothing can be lost; take shorter texts."
        less, interval = _told(self.lost("without", measure=measure))
        taken = "the chosen one" if len(self.heads) == 1 else f"the {len(self.heads)} chosen ones"
        said = f"Recall is {full:.2f} with all heads and {without:.2f} without {taken}: {less} less{interval}."
        if control is None:
            return said
        lost = self.lost("without", "control", measure)
        more, interval = _told(lost)
        count = len(self._of("control")["heads"].iloc[0].split())
        beside = f"Without {count} other{'s' * (count > 1)} of the same layers it is {control:.2f}: what was chosen costs {more} more{interval}"
        return f"{said} {beside}, which the scatter of the tests {'does not explain' if lost[1] > 0 else 'may explain'}."

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that were taken away."""
        return tuple(map(Head.parse, self._of("without")["heads"].iloc[0].split()))

    def save(self, path: Path) -> dict[str, Path]:
        """Write the tests as a .csv file, its texts in quotes (an answer may hold a lone carriage return), and the provenance beside it as .json."""
        told = json.dumps(self.provenance, indent=1, default=str) + "\n"
        return {
            "tests": write_text(path, self.tests.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)),
            "provenance": write_text(path.with_suffix(".json"), told),
        }

    @classmethod
    def load(cls, path: Path) -> "Recall":
        """Read what `save` wrote. Raises `InputError` for a file that is missing or is something else."""
        try:
            tests, provenance = _read(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the needle tests {path.name}: {error}") from error
        if missing := set(COLUMNS) - set(tests):
            raise InputError(f"{path.name} is no table of needle tests: it has no {', '.join(sorted(missing))}")
        return cls(tests, provenance)

    def _of(self, variant: str) -> pd.DataFrame:
        return self.tests[self.tests["variant"] == variant]

    def _total(self, variant: str, measure: str) -> float | None:
        rows = self._of(variant)
        return float(rows[measure].mean()) if len(rows) else None

    def _by_test(self, variant: str, measure: str) -> Float[np.ndarray, " N"]:
        return self._of(variant).groupby("test")[measure].mean().sort_index().to_numpy(float)


def of_benchmark(path: Path, kind: str) -> Recall:
    """The tests of one kind of ablation from a table of `benchmarks/needle_ablation.py`, with what its report says. Raises `InputError`."""
    names = {"all heads": "full"}
    try:
        table, report = _read(path), path.with_suffix(".md").read_text(encoding="utf-8").strip().splitlines()
        table = table[table["kind"].isin([kind, "none"])].rename(columns={"seed": "draw", "recall": "word_recall"})
        variant = [names.get(name, "control" if "random" in name else "without") for name in table["condition"]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read the report {path.name}: {error}") from error
    known = {needle.id: (needle.answer, needle.question) for needle in load_needles("needles")}
    found = [judged(*known[name], said)["recall"] for name, said in zip(table["needle"], table["response"], strict=True)]
    return Recall(table.assign(variant=variant, recall=found)[list(COLUMNS)], {"kind": kind, "phase": PHASES[kind], "report": report[2], "made": report[-1]})


def judged(answer: str, question: str, response: str) -> dict[str, float]:
    """An answer by each of `MEASURES`; its first line counts."""
    said = response.strip().partition("\n")[0]
    return {"recall": word_recall(answer, said, question), "word_recall": word_recall(answer, said)}


def _told(lost: tuple[float, float, float]) -> tuple[str, str]:
    """A difference, and its interval where there are tests enough for one."""
    value, low, high = lost
    return f"{value:.2f}", "" if np.isnan(low) else f" (95%: {low:.2f} to {high:.2f})"


def _interval(value_N: Float[np.ndarray, " N"], least: float) -> tuple[float, float, float]:
    """The mean and its 95% interval, which ends where values do: at `least` and at 1."""
    low, high = (float(np.clip(edge[0, 0], least, 1)) for edge in bootstrap_interval(value_N[:, None, None]))
    return float(value_N.mean()), low, high


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)
