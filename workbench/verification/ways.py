"""Which ways to spend memory are compared, and on what? Policies for a sweep of budgets, needle tests, and a text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import choosing
from workbench.needles import NeedleTests
from workbench.policies import HeadPolicy

TESTS = NeedleTests(lengths_=(600, 1200, 2400), depths=(0.1, 0.3, 0.5, 0.7, 0.9), per_cell=3, teacher_forced=False)
BUDGETS = (0.0, 0.125, 0.25, 1 / 3, 0.5, 2 / 3)


@dataclass(frozen=True)
class Setting:
    """What is measured: needle tests, and `text_tokens` tokens of the haystack (or of `text`) for perplexity and agreement.

    `answer_tokens` is how long an answer may be; it ends at a line break. Random policies are drawn for each of `seeds`. With a `chunk` prompts and text are
    read in pieces of that many tokens.
    """

    tests: NeedleTests = TESTS
    budgets: Sequence[float] = BUDGETS
    seeds: Sequence[int] = tuple(range(5))
    text: Any = None
    text_tokens: int = 2048
    answer_tokens: int = 32
    seed: int = 1
    chunk: int | None = None


@dataclass(frozen=True)
class Way:
    """One way to spend memory: its name, budget and seed, and its policy for prompts of a length."""

    name: str
    budget: float
    seed: int | None
    policy: Callable[[int], HeadPolicy]


def ways(policy: HeadPolicy, rankings: Mapping[str, np.ndarray], setting: Setting, *, saved: bool) -> Iterator[Way]:
    """Every way to spend memory; sizes and semantics are the policy's."""
    how = {name: getattr(policy, name) for name in ("sinks", "window", "semantics", "compensation", "windows")}
    card = policy.card
    yield Way("full", 1.0, None, lambda _: choosing.everything(card, **how))
    if saved:
        yield Way("saved", policy.full_share, None, lambda _: policy)
    for budget in setting.budgets:
        for name, score_LG in rankings.items():
            yield _chosen(name, budget, None, choosing.by_budget(card, score_LG, budget, **how))
        if 0 < budget < 1:
            for seed in setting.seeds:
                yield _chosen("random", budget, seed, choosing.at_random(card, budget, seed, **how))
            yield Way("window", budget, None, lambda length, budget=budget: _window(policy, budget, length))


def _chosen(name: str, budget: float, seed: int | None, policy: HeadPolicy) -> Way:
    return Way(name, budget, seed, lambda _: policy)


def _window(policy: HeadPolicy, budget: float, length: int) -> HeadPolicy:
    """Every head streaming, with as large a window as the budget allows at that length."""
    how = {name: getattr(policy, name) for name in ("semantics", "compensation", "windows")}
    sinks = min(policy.sinks, max(0, round(budget * length) - 1))
    return choosing.uniform(policy.card, sinks=sinks, window=max(1, round(budget * length) - sinks), **how)
