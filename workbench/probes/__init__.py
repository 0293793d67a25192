"""Which behaviours are looked for? One file per kind of head; each defines one `PROBE`, and this package finds them.

A probe is a question with the prompts that put it, the reads that answer it, an ideal head, and `score`: evidence → one number
per sample, layer and head. To add one, add a file (CONTRIBUTING.md); the command line, the docs and the contract tests find it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from workbench.errors import unknown
from workbench.prompts import Prompts
from workbench.reads import Read
from workbench.recipes import Recipe

PRESETS = ("quick", "paper")


@dataclass(frozen=True, eq=False)
class Probe:
    """One question about heads.

    `score(evidence)` gives [N, L, H] from a `Capture` (or from `Weights`, if `recipes` is empty), 1 for the ideal head.
    `ideal(prompts, b)` is the ideal head's pattern [Q, K] on prompt b, or for weights an ideal pair. `recipes` holds the
    prompts by preset. `valid(capture)` tells which samples count; `drop_dead` drops those of them in which no head scores.
    The null is what the control recipe scores, or uniform attention where there is none, or `null_score`. `summary(score)` adds facts about
    the whole model to the evidence, and `told(weights)` facts about what a probe of weights has looked at.
    `skip` says how many rows at the start of a prompt do not count (for the standard error of sampled rows).
    `also` names the probes on which this probe's ideal head rightly scores at least a half.
    """

    name: str
    score: Callable[[Any], Float[np.ndarray, "N L H"]]
    ideal: Callable[..., Any]
    citation: str
    null: str
    reads: tuple[Read, ...] = ()
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    valid: Callable[[Any], Bool[np.ndarray, " N"]] | None = None
    drop_dead: bool = False
    null_score: float | None = None
    summary: Callable[[np.ndarray], Mapping[str, Any]] | None = None
    told: Callable[[Any], Mapping[str, Any]] | None = None
    also: tuple[str, ...] = ()
    skip: int = 0

    def __post_init__(self) -> None:
        if not self.about:
            raise ValueError(f"the score function of {self.name} needs a docstring: its first line is what users see")

    @property
    def about(self) -> str:
        """What the number means, its range and its source."""
        return inspect.getdoc(self.score) or ""

    @property
    def question(self) -> str:
        """The first line of `about`."""
        return self.about.splitlines()[0]

    @property
    def evidence(self) -> str:
        """What is scored: `capture` of prompts or `weights`."""
        return "capture" if self.recipes else "weights"

    def recipe(self, preset: str) -> Recipe:
        """The prompts of a preset; one that a probe does not distinguish is the quick one."""
        if preset not in PRESETS:
            raise unknown("preset", preset, PRESETS)
        return self.recipes.get(preset, self.recipes["quick"])


def _discover() -> dict[str, Probe]:
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    probes = [import_module(f"{__name__}.{name}").PROBE for name in names]
    return {probe.name: probe for probe in probes}


def rest(pattern_QK: np.ndarray, row: int) -> None:
    """Give a row of an ideal head nothing to do: equal parts on four keys far from each other, from the start and from the row."""
    for part in (1, 2, 3, 4):
        pattern_QK[row, row * part // 5] += 0.25


def pattern_of(prompts: Prompts, choose: Callable[[int], list[int]]) -> Float[np.ndarray, "Q K"]:
    """An ideal head's pattern: each row attends equally to the keys that `choose(row)` names, and rests where there are none."""
    pattern_QK = np.zeros((prompts.length, prompts.length))
    for row in range(prompts.length):
        keys = choose(row)
        for key in keys:
            pattern_QK[row, key] += 1 / len(keys)
        if not keys:
            rest(pattern_QK, row)
    return pattern_QK


PROBES: Mapping[str, Probe] = MappingProxyType(_discover())
"""Every probe by name."""


def probe(name: str) -> Probe:
    """A probe by name. Raises `InputError` listing those that exist."""
    if name not in PROBES:
        raise unknown("probe", name, PROBES)
    return PROBES[name]
