"""How does a model score? Probes that share prompts share a pass; every batch of prompts is a task that ends in a file.

1. Group the asked probes by their prompts (`plan`). 2. For each group and each of its batches, unless its result is on disk: one forward
(or one generation), every probe's `score`, save. 3. Do the same for the null of each group. 4. Drop what does not count, and summarise.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.captures import Capture, capture, generate
from workbench.edits import Edit
from workbench.errors import InputError
from workbench.given import uniform
from workbench.groups import Group, Way, check_listed, plan, suited
from workbench.heads import Head, ModelCard
from workbench.implementations import choose
from workbench.matching import canonical
from workbench.models import HFModel
from workbench.needles import NeedleTests
from workbench.options import Options
from workbench.passes import beyond_training, clamped
from workbench.probes import Probe
from workbench.prompts import Prompts
from workbench.reads import NextToken
from workbench.recipes import Recipe
from workbench.runs import Part, Run, versions
from workbench.scores import COLUMNS, HeadScores, summarise
from workbench.weights import Weights

MINIMUM_VALID = 3
"""With fewer valid samples a probe that can fail has "insufficient evidence"."""

MADE_FROM = ("haystack", "bos", "chat", "block", "repeats", "needle", "length", "depth_found")
"""The facts of prompts that go into the evidence."""

Progress = Callable[[str, int, int], None]


def score(
    model: HFModel,
    probes: Sequence[str | Probe] | None = None,
    *,
    preset: str = "quick",
    seed: int = 0,
    runs: Path | None = None,
    options: Options | None = None,
    way: Way | None = None,
    edits: Sequence[Edit] = (),
    progress: Progress = lambda what, done, total: None,
) -> HeadScores:
    """Score every head of a model on some probes (all by default): by name, or a `Probe` of one's own, whose results cannot be kept.

    `way` says how passes are made: the implementation, the chunk, the sampled rows. Results of finished batches lie under `runs` and are not made
    again; without `runs` nothing is kept. `progress` hears of every finished batch. A probe with too little evidence has no scores; `evidence` says so,
    with counts; so it does of probes that cannot be asked of this model. Raises `InputError` for unknown probes or presets, and for prompts that cannot be
    made for this model, those of named probes included.
    """
    groups, way = plan(probes, preset, options), way or Way()
    way.check(groups)
    if runs is not None:
        check_listed(groups)
    groups, left_out = suited(groups, model, probes)
    built = {recipe: recipe.build(model, start) for recipe, start in _recipes(groups, seed)}  # what cannot be built shows before any work is done
    measure = _Measure(model, runs, seed, edits, progress, built, way)
    rows, evidence = [], {}
    for group in groups:
        samples, nulls = measure.parts(group, group.recipe, seed, group.name), measure.nulls(group)
        for member in group.probes:
            score_NLH, facts = _counted(member, samples)
            null_NLH = nulls[member.name]
            summary = {} if member.summary is None or not len(score_NLH) else member.summary(score_NLH)
            evidence[member.name] = {
                **facts,
                "null_samples": len(null_NLH),
                "prompts": str(group.recipe),
                "made_from": _made_from(samples),
                **_remarks(samples, member),
                **summary,
            }
            if facts["status"] == "ok":
                rows.append(summarise(member.name, model.card, score_NLH, null_NLH.mean(axis=0), seed))
    provenance = {"preset": preset, "seed": seed, **measure.conditions([batch for batches in built.values() for batch in batches]), "versions": versions()}
    if (longest := max((batch.length for batches in built.values() for batch in batches), default=0)) > model.max_length:
        provenance["warning"] = beyond_training(model, longest)
    wide = [line for group in groups if group.recipe is not None for batch in built[group.recipe] for line in clamped(group.reads, batch)]
    if wide:
        provenance["clamped"] = sorted(set(wide))
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(COLUMNS))
    return HeadScores(model.card, table, evidence | left_out, provenance)


def _recipes(groups: Iterable[Group], seed: int) -> Iterator[tuple[Recipe, int]]:
    """Every recipe that is needed, controls included, with its seed."""
    for recipe in (group.recipe for group in groups if group.recipe is not None):
        yield recipe, seed
        if (control := recipe.control()) is not None:
            yield control, seed + 1


@dataclass(frozen=True)
class _Measure:
    """One call of `score`: what its tasks have in common."""

    model: HFModel
    runs: Path | None
    seed: int
    edits: Sequence[Edit]
    progress: Progress
    built: Mapping[Recipe, list[Prompts]]
    way: Way

    def conditions(self, batches: Iterable[Prompts]) -> dict[str, Any]:
        """What else decides a result: precision, device, implementations, sampled rows, edits."""
        lengths = {batch.length for batch in batches} or {1}
        size = self.model.shape.d_head
        chosen = sorted({choose(self.way.implementation, self.model.device, length, size) for length in lengths})
        place = {"dtype": str(self.model.dtype).removeprefix("torch."), "device": self.model.device.type, "implementation": ", ".join(chosen)}
        asked = {"chunk": self.way.chunk, "sampled_rows": self.way.sample}
        return {**place, **{name: value for name, value in asked.items() if value is not None}, "edits": [edit.describe() for edit in self.edits]}

    def parts(self, group: Group, recipe: Recipe | None, seed: int, name: str) -> list[Part]:
        """The results of every batch of a recipe: from disk where they are there, else measured and saved."""
        batches: Sequence[Prompts | None] = [None] if recipe is None else self.built[recipe]
        question = {
            "model": self.model.card.fingerprint,
            "probes": sorted(member.name for member in group.probes),
            "prompts": [batch.fingerprint for batch in batches if batch is not None],
            "teacher_forced": getattr(recipe, "teacher_forced", None),
            "seed": seed,
            "versions": versions(),
            **self.conditions([batch for batch in batches if batch is not None]),
        }
        run = None if self.runs is None else Run(self.runs, question)
        parts = []
        for number, prompts in enumerate(batches):
            part = None if run is None else run.load(f"part-{number:04d}")
            if part is None:
                part = self._one(group, recipe, prompts)
                if run is not None:
                    run.save(f"part-{number:04d}", part)
            parts.append(part)
            self.progress(name, number + 1, len(batches))
        return parts

    def nulls(self, group: Group) -> dict[str, np.ndarray]:
        """The scores [N, L, H] of each probe where its behaviour cannot show."""
        if group.recipe is None:
            parts = [_weighed(self.model, group, self.seed + 1)]
        elif (control := group.recipe.control()) is not None:
            parts = self.parts(group, control, self.seed + 1, f"{group.name} (null)")
        else:
            parts = [_uniform(self.model, group, self.built[group.recipe][0])]
        shape = (self.model.shape.n_layers, self.model.shape.n_heads)
        stacked = {member.name: np.concatenate([part.scores[member.name] for part in parts]) for member in group.probes}
        fixed = {member.name: np.full((1, *shape), member.null_score) for member in group.probes if member.null_score is not None}
        return {name: np.broadcast_to(array, (len(array), *shape)) for name, array in stacked.items()} | fixed

    def _one(self, group: Group, recipe: Recipe | None, prompts: Prompts | None) -> Part:
        if prompts is None:
            return _weighed(self.model, group, None)
        if isinstance(recipe, NeedleTests) and not recipe.teacher_forced:
            reads: list[Any] = [read for read in group.reads if not isinstance(read, NextToken)]
            matching = partial(canonical, self.model.tokenizer)
            return _scored(
                group,
                generate(
                    self.model,
                    prompts,
                    reads,
                    edits=self.edits,
                    implementation=self.way.implementation,
                    chunk=self.way.chunk,
                    stop=lambda text: "\n" in text.strip(),
                    matching=matching,
                ),
            )
        return _scored(group, capture(self.model, prompts, group.reads, self.edits, **asdict(self.way)))


def _scored(group: Group, seen: Capture) -> Part:
    scores = {member.name: _finite(seen.card, member, member.score(seen).astype(float)) for member in group.probes}
    valid = {member.name: np.ones(len(scores[member.name]), bool) if member.valid is None else member.valid(seen) for member in group.probes}
    facts = seen.prompts.facts
    if seen.sampled:
        errors = {member.name: _largest_error(member, seen) for member in group.probes if seen.sampled & set(member.reads)}
        sampled = {"sampled_rows": seen.provenance["rows"]["sampled"], "of_rows": seen.prompts.length, "standard_errors": errors}
        facts = tuple({**fact, **sampled} for fact in facts or ({},) * seen.prompts.count)
    return Part(scores, valid, facts)


def _largest_error(member: Probe, seen: Capture) -> float:
    """The largest standard error that sampling puts on a head's mean over the rows that count for a probe."""
    return max(float(seen.standard_error(read, member.skip).max()) for read in seen.sampled & set(member.reads))


def _weighed(model: HFModel, group: Group, shuffle: int | None) -> Part:
    """The scores of probes that look at weights alone."""
    weights = Weights(model.weights, model.shape, shuffle, model.tokenizer)
    scores = {member.name: _finite(model.card, member, member.score(weights)) for member in group.probes}
    told = {member.name: member.told(weights) for member in group.probes if member.told is not None and shuffle is None}
    return Part(scores, {name: np.ones(len(array), bool) for name, array in scores.items()}, ({"told": told},) if told else ())


def _uniform(model: HFModel, group: Group, prompts: Prompts) -> Part:
    """What a head that attends equally to all it sees would score."""
    reads: list[Any] = [read for read in group.reads if not isinstance(read, NextToken)]
    return _scored(group, uniform(model.card, prompts.only(0), reads))


def _remarks(parts: Sequence[Part], member: Probe) -> dict[str, Any]:
    """What a probe of weights tells; of how many rows samples were read, and the largest standard error of a head's mean over the rows of a prompt."""
    told = [fact["told"][member.name] for part in parts for fact in part.facts if member.name in fact.get("told", {})]
    facts = [fact for part in parts for fact in part.facts if member.name in fact.get("standard_errors", {})]
    if not facts:
        return told[0] if told else {}
    largest = max(fact["standard_errors"][member.name] for fact in facts)
    return {"rows": {"sampled": facts[0]["sampled_rows"], "of": facts[0]["of_rows"], "largest_standard_error": largest}}


def _made_from(parts: Sequence[Part]) -> dict[str, list[str]]:
    """What the samples were made from: every value of the facts that say so."""
    facts = [fact for part in parts for fact in part.facts]
    return {key: values for key in MADE_FROM if (values := sorted({str(fact[key]) for fact in facts if key in fact}))}


def _counted(member: Probe, parts: Sequence[Part]) -> tuple[np.ndarray, dict[str, Any]]:
    """The samples that count, and how many there were, were valid, and were dead (valid, but no head found anything)."""
    score_NLH = np.concatenate([part.scores[member.name] for part in parts])
    valid_N = np.concatenate([part.valid[member.name] for part in parts])
    dead_N = valid_N & ~(score_NLH != 0).any(axis=(1, 2)) if member.drop_dead else np.zeros_like(valid_N)
    counted = valid_N & ~dead_N
    facts = {"tests": len(valid_N), "valid": int(valid_N.sum()), "dead": int(dead_N.sum()), "counted": int(counted.sum())}
    enough = counted.sum() >= (MINIMUM_VALID if member.valid is not None else 1)
    return score_NLH[counted], {"status": "ok" if enough else "insufficient evidence", **facts, "null": member.null}


def _finite(card: ModelCard, member: Probe, score_NLH: np.ndarray) -> np.ndarray:
    if not np.isfinite(score_NLH).all():
        sample, layer, index = map(int, np.argwhere(~np.isfinite(score_NLH))[0])
        raise InputError(f"{card.name}, {Head(layer, index)}: the {member.name} score is {score_NLH[sample, layer, index]}; try --dtype float32")
    return score_NLH
