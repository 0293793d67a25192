"""What do all ways come to? Each is measured, and stands beside the full model, on the same tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import InputError
from workbench.models import HFModel
from workbench.policies import HeadPolicy
from workbench.scores import bootstrap_interval
from workbench.verification.measuring import Given, Measured, checked, measured
from workbench.verification.ways import Setting, ways


@dataclass(frozen=True, eq=False)
class Verification:
    """What was found: `table` has a row for each way (see `columns`), `tests` one for each way and needle test, `provenance` what made them."""

    table: pd.DataFrame
    tests: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)


COLUMNS = {
    "policy": "the scores that chose the heads; or saved: the policy in the file; random; window: one window in all heads; full",
    "budget": "the share of KV heads that may be full; for `window`, the share of the tokens",
    "seed": "of a random choice",
    "full_heads": "how many KV heads are full",
    "kv_share": "KV bytes as a share of the full model's, mean over the needle tests",
    "recall": "the share of those of the answer's words that are not in the question, which the response has; mean over the tests, 0–1",
    "word_recall": "the share of all of the answer's words (ROUGE-1 recall), which a response that echoes the question has in part",
    "kept": "recall as a share of the full model's, with a 95% interval (paired bootstrap over the tests)",
    "perplexity": "on the text; none for the semantics `decode`, by which a text that is read is seen whole",
    "agreement": "the share of the text's tokens where the full model's first choice is the same, 0–1",
}
"""What the columns of `Verification.table` mean."""


def verify(
    model: HFModel,
    policy: HeadPolicy,
    rankings: Mapping[str, np.ndarray],
    setting: Setting | None = None,
    *,
    saved: bool = False,
    implementation: str = "auto",
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Verification:
    """Measure every way of `ways` on the setting's tests and text. `rankings` are scores [L, G] of KV heads by name.

    The policy gives sizes and semantics, and with `saved` is itself one of the ways.

    Raises `InputError` for a model without a tokenizer, if the full model answers none of the tests, and for tests that do not fit.
    """
    setting = setting or Setting()
    every = list(ways(checked(model, policy, setting), rankings, setting, saved=saved))
    given, found = Given.of(model, setting), []
    for number, way in enumerate(every):
        progress(f"{way.name} {way.budget:.0%}", number, len(every))
        found.append(measured(model, policy, rankings, setting, number, saved=saved, implementation=implementation, given=given))
        if not number:
            combined(found)  # which says at once if the full model answers nothing
    progress("done", len(every), len(every))
    return combined(found)


def combined(found: Sequence[Measured]) -> Verification:
    """What all ways, in the order of `ways`, come to, each beside the first, the full model. Raises `InputError` if that answers none of the tests."""
    full = found[0]
    full_recall = np.array([answer["recall"] for answer in full.answers])
    if not full_recall.any():
        name = full.facts["model"]
        raise InputError(f"insufficient evidence: {name} answers none of the {len(full.answers)} needle tests with every head full; try shorter ones")
    summary = []
    for one in found:
        recall = np.array([answer["recall"] for answer in one.answers])
        kept, low, high = _kept(recall, full_recall)
        words = float(np.mean([answer["word_recall"] for answer in one.answers]))
        told = {"recall": recall.mean(), "word_recall": words, "kept": kept, "kept_low": low, "kept_high": high, "tests": len(one.answers)}
        read = {"perplexity": float(np.exp(one.nll)), "agreement": float(np.mean(one.choice == full.choice))}
        read = dict.fromkeys(read, np.nan) if full.facts["semantics"] == "decode" and one is not full else read
        summary.append({**one.shown, "kv_share": one.kv_share, **told, **read})
    rows = [{**one.shown, **answer} for one in found for answer in one.answers]
    return Verification(pd.DataFrame(summary), pd.DataFrame(rows), full.facts)  # the full model's facts: in it the dense kernel runs


def _kept(recall_N: np.ndarray, full_N: np.ndarray) -> tuple[float, float, float]:
    """Recall as a share of the full model's, and a 95% interval of it: that of the paired difference."""
    change_N = (recall_N - full_N)[:, None, None]
    low, high = (float(edge[0, 0]) for edge in bootstrap_interval(change_N))
    base = full_N.mean()
    return float(recall_N.mean() / base), 1 + low / base, 1 + high / base
