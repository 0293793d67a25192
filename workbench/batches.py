"""What is asked of a model, and how is it cut? One question; for each group of probes, batches of prompts that are measured anywhere, in any order.

Every batch ends in a file that is named by the question's fingerprint, so that whoever has measured the batches, all find the same results.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from workbench.captures import Capture, capture, generate
from workbench.edits import Edit
from workbench.errors import InputError, unknown
from workbench.given import uniform
from workbench.groups import Group, Way, check_listed, plan, suited
from workbench.heads import Head, ModelCard
from workbench.implementations import choose
from workbench.matching import canonical
from workbench.models import HFModel
from workbench.needles import NeedleTests
from workbench.options import Options
from workbench.probes import Probe
from workbench.prompts import Prompts
from workbench.reads import NextToken
from workbench.recipes import Recipe
from workbench.runs import Part, Run, versions
from workbench.sharding import from_first
from workbench.storage import Place
from workbench.weights import Weights


@dataclass(frozen=True)
class Asked:
    """A question that is put to a model, as plain data: see `measure.score`. None for `probes` stands for all that suit the model."""

    probes: tuple[str | Probe, ...] | None = None
    preset: str = "quick"
    seed: int = 0
    options: Options | None = None
    way: Way = field(default_factory=Way)
    edits: tuple[Edit, ...] = ()

    @cached_property
    def groups(self) -> list[Group]:
        """The probes by the prompts that they share. Raises `InputError` for what cannot be asked of any model."""
        groups = plan(self.probes, self.preset, self.options)
        self.way.check(groups)
        if self.edits and all(group.recipe is None for group in groups):
            raise InputError("edits concern none of the chosen probes: they look at weights")
        return groups


@dataclass(frozen=True)
class Work:
    """A question and the model that it is put to: every batch of it can be measured; results of finished ones lie under `runs`, or in this object.

    Raises `InputError` for prompts that cannot be made for this model, before any work is done.
    """

    model: HFModel
    asked: Asked
    runs: Place | None = None
    patience: float = 0
    """Seconds for which a storage that refuses is waited for."""
    _held: dict[tuple[str, bool, int], Part] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.runs is not None:
            check_listed(self.asked.groups)
        _ = self.built

    @cached_property
    def _suited(self) -> tuple[list[Group], dict[str, dict[str, Any]]]:
        return suited(self.asked.groups, self.model, self.asked.probes)

    @property
    def groups(self) -> list[Group]:
        """The groups whose prompts can be made for the model."""
        return self._suited[0]

    @property
    def left_out(self) -> dict[str, dict[str, Any]]:
        """Why the probes of the other groups are not asked, as evidence."""
        return self._suited[1]

    @cached_property
    def built(self) -> dict[Recipe, list[Prompts]]:
        """Every batch of every recipe that is needed, controls included."""
        made: dict[Recipe, list[Prompts]] = {}
        for group in self.groups:
            for control in (False, True):
                if (recipe := _recipe(group, control)) is not None:
                    made[recipe] = recipe.build(self.model, self._seed(control))
        return made

    @property
    def prompts(self) -> list[Prompts]:
        """All batches."""
        return [batch for batches in self.built.values() for batch in batches]

    def conditions(self, batches: Iterable[Prompts]) -> dict[str, Any]:
        """What else decides a result: precision, device, implementations, sampled rows, edits."""
        way = self.asked.way
        lengths = {batch.length for batch in batches} or {1}
        chosen = sorted({choose(way.implementation, self.model.device, length, self.model.shape.d_head) for length in lengths})
        place = {"dtype": str(self.model.dtype).removeprefix("torch."), "device": self.model.device.type, "implementation": ", ".join(chosen)}
        asked = {"chunk": way.chunk, "sampled_rows": way.sample}
        return {**place, **{name: value for name, value in asked.items() if value is not None}, "edits": [edit.describe() for edit in self.asked.edits]}

    def count(self, group: Group, control: bool = False) -> int:
        """How many batches a group has, or its null; 0 for a null that is known without the model."""
        recipe = _recipe(group, control)
        return int(not control) if recipe is None else len(self.built[recipe])

    def part(self, name: str, control: bool, number: int) -> Part:
        """The results of one batch of a group, or of its control: found where they are, else measured and kept."""
        if name not in (named := {group.name: group for group in self.groups}):
            raise unknown("group of probes", name, named)
        group = named[name]
        if not 0 <= number < self.count(group, control):
            raise InputError(f"{name} has {self.count(group, control)} batches; there is no number {number}")
        if self.runs is None:
            if (key := (name, control, number)) not in self._held:
                self._held[key] = self._measured(group, control, number)
            return self._held[key]
        run, file, shards = Run(self.runs, self._question(group, control), self.patience), f"part-{number:04d}", self.model.shards
        part = run.load(file) if shards is None else from_first(lambda: run.load(file))
        if part is None:
            part = self._measured(group, control, number)
            if shards is None or shards.rank == 0:
                run.save(file, part)
        return part

    def known_null(self, group: Group) -> Part:
        """The null of a group that has no control: a head that attends equally, or weights that are shuffled."""
        return _weighed(self.model, group, self._seed(control=True)) if group.recipe is None else _uniform(self.model, group, self.built[group.recipe][0])

    def _seed(self, control: bool) -> int:
        return self.asked.seed + int(control)

    def _question(self, group: Group, control: bool) -> dict[str, Any]:
        recipe = _recipe(group, control)
        batches = [] if recipe is None else self.built[recipe]
        return {
            "model": self.model.card.fingerprint,
            "probes": sorted(member.name for member in group.probes),
            "prompts": [batch.fingerprint for batch in batches],
            "teacher_forced": getattr(recipe, "teacher_forced", None),
            "seed": self._seed(control),
            "versions": versions(),
            **self.conditions(batches),
        }

    def _measured(self, group: Group, control: bool, number: int) -> Part:
        recipe, way, edits = _recipe(group, control), self.asked.way, self.asked.edits
        if recipe is None:
            return _weighed(self.model, group, None)
        prompts = self.built[recipe][number]
        if not isinstance(recipe, NeedleTests) or recipe.teacher_forced:
            return _scored(group, capture(self.model, prompts, group.reads, edits, **asdict(way)))
        reads: list[Any] = [read for read in group.reads if not isinstance(read, NextToken)]
        matching = partial(canonical, self.model.tokenizer)
        how: dict[str, Any] = {"implementation": way.implementation, "chunk": way.chunk, "matching": matching}
        return _scored(group, generate(self.model, prompts, reads, edits=edits, stop=lambda text: "\n" in text.strip(), **how))


def _recipe(group: Group, control: bool) -> Recipe | None:
    return group.recipe if group.recipe is None or not control else group.recipe.control()


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
    weights = Weights(model.own.weights, model.own.shape, shuffle, model.tokenizer)
    scores = {member.name: _finite(model.card, member, _of_all(model, member.score(weights))) for member in group.probes}
    told = {member.name: member.told(weights) for member in group.probes if member.told is not None and shuffle is None}
    return Part(scores, {name: np.ones(len(array), bool) for name, array in scores.items()}, ({"told": told},) if told else ())


def _of_all(model: HFModel, score_NLH: np.ndarray) -> np.ndarray:
    """The scores of the heads that are here as those of all heads."""
    return score_NLH if model.shards is None else model.shards.gathered(torch.from_numpy(np.ascontiguousarray(score_NLH)), dim=2).numpy()


def _uniform(model: HFModel, group: Group, prompts: Prompts) -> Part:
    """What a head that attends equally to all it sees would score."""
    reads: list[Any] = [read for read in group.reads if not isinstance(read, NextToken)]
    return _scored(group, uniform(model.card, prompts.only(0), reads))


def _finite(card: ModelCard, member: Probe, score_NLH: np.ndarray) -> np.ndarray:
    if not np.isfinite(score_NLH).all():
        sample, layer, index = map(int, np.argwhere(~np.isfinite(score_NLH))[0])
        raise InputError(f"{card.name}, {Head(layer, index)}: the {member.name} score is {score_NLH[sample, layer, index]}; try --dtype float32")
    return score_NLH
