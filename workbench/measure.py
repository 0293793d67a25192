"""How does a model score? Probes that share prompts share a pass; every batch of prompts is a task that ends in a file.

1. Group the asked probes by their prompts (`plan`). 2. For each group and each of its batches, unless its result is on disk: one forward
(or one generation), every probe's `score`, save. 3. Do the same for the null of each group. 4. Drop what does not count, and summarise.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.captures import Capture, capture, from_patterns, generate
from workbench.documents import DocumentSearch
from workbench.edits import Edit
from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel
from workbench.needles import NeedleTests
from workbench.probes import PROBES, Probe, probe
from workbench.prompts import Prompts
from workbench.reads import NextToken, Read
from workbench.recipes import NaturalText, Recipe
from workbench.runs import Part, Run, versions
from workbench.scores import COLUMNS, HeadScores, summarise
from workbench.weights import Weights

MINIMUM_VALID = 3
"""With fewer valid samples a probe that can fail has "insufficient evidence"."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """What a user may change about the prompts; None leaves the preset as it is.

    `lengths` (tokens), `depths` (0–1) and `template` concern the needle tests. `needles` is a file that replaces the shipped needles, but not the
    reasoning needles, which need a distractor each. `haystack` replaces the text of every recipe that uses one.
    """

    lengths: tuple[int, ...] | None = None
    depths: tuple[float, ...] | None = None
    needles: Path | None = None
    haystack: Path | None = None
    template: str | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these changes, as far as they concern it."""
        needles = self.needles if getattr(recipe, "needles", None) == "needles" else None
        if isinstance(recipe, NeedleTests):
            return replace(recipe, **_given(lengths_=self.lengths, depths=self.depths, template=self.template, haystack=self.haystack, needles=needles))
        if isinstance(recipe, DocumentSearch):
            return replace(recipe, **_given(haystack=self.haystack, needles=needles))
        return replace(recipe, **_given(text=self.haystack)) if isinstance(recipe, NaturalText) else recipe


def _given(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}


@dataclass(frozen=True)
class Group:
    """Probes that share prompts: one pass for each batch of `recipe`."""

    probes: tuple[Probe, ...]
    recipe: Recipe | None

    @property
    def reads(self) -> tuple[Read, ...]:
        """All reads of the group, each once."""
        return tuple(dict.fromkeys(read for probe in self.probes for read in probe.reads))

    @property
    def name(self) -> str:
        """The probes' names."""
        return ", ".join(probe.name for probe in self.probes)


def plan(names: Iterable[str] | None = None, preset: str = "quick", options: Options | None = None) -> list[Group]:
    """The groups of the asked probes (all by default). Raises `InputError` for an unknown probe or preset."""
    groups: dict[Recipe | None, list[Probe]] = {}
    for chosen in (probe(name) for name in dict.fromkeys(PROBES if names is None else names)):
        recipe = (options or Options()).apply(chosen.recipe(preset)) if chosen.recipes else None
        groups.setdefault(recipe, []).append(chosen)
    return [Group(tuple(members), recipe) for recipe, members in groups.items()]


def score(
    model: HFModel,
    probes: Sequence[str] | None = None,
    *,
    preset: str = "quick",
    seed: int = 0,
    runs: Path | None = None,
    options: Options | None = None,
    edits: Sequence[Edit] = (),
    progress: Progress = lambda what, done, total: None,
) -> HeadScores:
    """Score every head of a model on some probes (all by default).

    Results of finished batches lie under `runs` and are not made again; without `runs` nothing is kept. `progress` hears of every
    finished batch. A probe with too little evidence has no scores; `evidence` says so, with counts. Raises `InputError` for unknown probes or
    presets, and for prompts that cannot be made for this model.
    """
    rows, evidence = [], {}
    for group in plan(probes, preset, options):
        samples = _parts(model, group, group.recipe, seed, runs, edits, progress)
        nulls = _nulls(model, group, seed, runs, edits, progress)
        for member in group.probes:
            score_NLH, facts = _counted(member, samples)
            evidence[member.name] = facts | {"prompts": str(group.recipe)}
            if facts["status"] == "ok":
                rows.append(summarise(member.name, model.card, _finite(model, member, score_NLH), nulls[member.name], seed))
    provenance = {"preset": preset, "seed": seed, **_conditions(model, edits), "versions": versions()}
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(COLUMNS))
    return HeadScores(model.card, table, evidence, provenance)


def _conditions(model: HFModel, edits: Sequence[Edit]) -> dict[str, Any]:
    """What else decides a result: precision, device, implementation, edits."""
    place = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    return {**place, "implementation": "reference", "edits": [edit.describe() for edit in edits]}


def _parts(model: HFModel, group: Group, recipe: Recipe | None, seed: int, runs: Path | None, edits: Sequence[Edit], progress: Progress) -> list[Part]:
    """The results of every batch of a recipe: from disk where they are there, else measured and saved."""
    batches = [None] if recipe is None else recipe.build(model, seed)
    parts = []
    for number, prompts in enumerate(batches):
        question = {
            "model": model.card.fingerprint,
            "probes": sorted(member.name for member in group.probes),
            "recipe": repr(recipe),
            "prompts": [batch.fingerprint for batch in batches if batch is not None],
            "seed": seed,
            "versions": versions(),
            **_conditions(model, edits),
        }
        run = None if runs is None else Run(runs, question)
        part = None if run is None else run.load(f"part-{number:04d}")
        if part is None:
            part = _measure_weights(model, group, None) if prompts is None else _measure(model, group, recipe, prompts, edits)
            if run is not None:
                run.save(f"part-{number:04d}", part)
        parts.append(part)
        progress(group.name, number + 1, len(batches))
    return parts


def _measure(model: HFModel, group: Group, recipe: Recipe | None, prompts: Prompts, edits: Sequence[Edit]) -> Part:
    if isinstance(recipe, NeedleTests) and not recipe.teacher_forced:
        reads = [read for read in group.reads if not isinstance(read, NextToken)]
        seen = generate(model, prompts, reads, edits=edits, stop=lambda text: "\n" in text.strip())
    else:
        seen = capture(model, prompts, group.reads, edits)
    return _scored(group, seen)


def _scored(group: Group, seen: Capture) -> Part:
    scores = {member.name: member.score(seen).astype(float) for member in group.probes}
    valid = {member.name: np.ones(len(scores[member.name]), bool) if member.valid is None else member.valid(seen) for member in group.probes}
    return Part(scores, valid, seen.prompts.facts)


def _measure_weights(model: HFModel, group: Group, shuffle: int | None) -> Part:
    scores = {member.name: member.score(Weights(model.weights, model.shape, shuffle)) for member in group.probes}
    return Part(scores, {name: np.ones(len(array), bool) for name, array in scores.items()}, ())


def _nulls(model: HFModel, group: Group, seed: int, runs: Path | None, edits: Sequence[Edit], progress: Progress) -> dict[str, np.ndarray]:
    """The mean score [L, H] of each probe where its behaviour cannot show."""
    shape = (model.shape.n_layers, model.shape.n_heads)
    if group.recipe is None:
        parts = [_measure_weights(model, group, seed + 1)]
    elif (control := group.recipe.control()) is not None:
        parts = _parts(model, group, control, seed + 1, runs, edits, lambda what, done, total: progress(f"{what} (null)", done, total))
    else:
        parts = [_uniform(model, group, prompts) for prompts in group.recipe.build(model, seed)[:1]]
    stacked = {member.name: np.concatenate([part.scores[member.name] for part in parts]) for member in group.probes}
    fixed = {member.name: member.null_score for member in group.probes if member.null_score is not None}
    means = {name: np.broadcast_to(array.mean(axis=0), shape) for name, array in stacked.items()}
    return means | {name: np.full(shape, value) for name, value in fixed.items()}


def _uniform(model: HFModel, group: Group, prompts: Prompts) -> Part:
    """What a head that attends equally to all it sees would score."""
    only = prompts.only(0)
    pattern_QK = np.tril(np.ones((only.length, only.length))) / np.arange(1, only.length + 1)[:, None]
    return _scored(group, from_patterns(model.card, only, pattern_QK[None, None, None], [read for read in group.reads if not isinstance(read, NextToken)]))


def _counted(member: Probe, parts: Sequence[Part]) -> tuple[np.ndarray, dict[str, Any]]:
    """The samples that count, and how many there were, were valid, and were dead (valid, but no head found anything)."""
    score_NLH = np.concatenate([part.scores[member.name] for part in parts])
    valid_N = np.concatenate([part.valid[member.name] for part in parts])
    dead_N = valid_N & ~(score_NLH != 0).any(axis=(1, 2)) if member.drop_dead else np.zeros_like(valid_N)
    counted = valid_N & ~dead_N
    facts = {"tests": len(valid_N), "valid": int(valid_N.sum()), "dead": int(dead_N.sum()), "counted": int(counted.sum())}
    enough = counted.sum() >= (MINIMUM_VALID if member.valid is not None else 1)
    return score_NLH[counted], {"status": "ok" if enough else "insufficient evidence", **facts, "null": member.null}


def _finite(model: HFModel, member: Probe, score_NLH: np.ndarray) -> np.ndarray:
    if not np.isfinite(score_NLH).all():
        sample, layer, index = map(int, np.argwhere(~np.isfinite(score_NLH))[0])
        raise InputError(
            f"{model.name}, {Head(layer, index)}: the {member.name} score of sample {sample} is {score_NLH[sample, layer, index]}; try --dtype float32"
        )
    return score_NLH
