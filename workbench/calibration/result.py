"""What came of a calibration? The search, the held-out table and what made them, and the head labels that other parts read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.calibration.crew import Clock, Crew, Progress
from workbench.calibration.evaluation import evaluate
from workbench.calibration.search import Search, Setting, search
from workbench.calibration.taps import WAY
from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.labels import HeadLabels
from workbench.models import HFModel
from workbench.questions import TASKS, Encoded, Question, encode, questions_of, split
from workbench.rules import Rule
from workbench.runs import versions

SCORE, LABEL = "calibration_gain", "calibrate"
RULE = Rule(
    LABEL, SCORE, 0.0, "ACT (2406.15765): alone, it raises the mean accuracy over the tasks", "0: nothing changes; half of the useless heads exceed it by luck"
)
"""A head is calibrated if its gain is above 0."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A calibration of one model: the search, the held-out table, provenance, and remarks worth reading."""

    card: ModelCard
    search: Search
    held_out: pd.DataFrame
    provenance: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def labels(self, given: HeadLabels | None = None) -> HeadLabels:
        """Head labels with the label `calibrate` and the score `calibration_gain`: the change of accuracy, −1 to 1, and 0 of heads that were not measured.

        With `given` labels of the same model, these are kept and the new ones added; a former calibration is replaced. Raises `InputError` for those of
        another model. `Calibrate(heads=labels.heads("calibrate"))` is the edit.
        """
        gain_LH = np.zeros((self.card.shape.n_layers, self.card.shape.n_heads))
        index = {str(head): (head.layer, head.index) for head in self.card.shape.heads()}
        for row in self.search.table.to_dict("records"):
            gain_LH[index[row["head"]]] = row["gain"]
        mine = dict.fromkeys(self.search.kept, (LABEL,))
        tests, measured, every = len(self.search.evidence.task_N), len(self.search.table), len(self.search.candidates)
        evidence = {
            "status": "ok",
            **dict.fromkeys(("tests", "valid", "counted"), tests),
            "dead": 0,
            "heads_measured": measured,
            "heads_candidates": every,
            "restricted": f"{measured} of {every} candidates measured on up to {tests} questions; the others have 0",
            **self.told(),
        }
        if given is None:
            return HeadLabels(self.card, mine, {SCORE: gain_LH}, {LABEL: RULE}, {SCORE: evidence}, self.provenance)
        given.check_model(self.card)
        merged = {head: (*(name for name in names if name != LABEL), *mine.get(head, ())) for head, names in given.labels.items()}
        return replace(
            given,
            labels=merged,
            scores={**given.scores, SCORE: gain_LH},
            rules={**given.rules, LABEL: RULE},
            evidence={**given.evidence, SCORE: evidence},
            provenance={**given.provenance, LABEL: dict(self.provenance)},
        )

    def told(self) -> dict[str, Any]:
        """Agreement of the screening, cost, held-out means and remarks, as plain data."""
        mean = self.held_out[self.held_out["task"] == "mean"]
        rows = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in mean.to_dict("records")]
        return {
            "agreement": {part: {name: None if pd.isna(value) else value for name, value in found.items()} for part, found in self.search.agreement.items()},
            "cost": self.search.cost,
            "held_out": rows,
            "remarks": list(self.remarks),
        }


@dataclass(frozen=True)
class Asked:
    """What the model is asked: tasks by name (see `questions_of`), so many `examples` of each to calibrate on and `held_out` ones; `seed` draws both."""

    tasks: Sequence[str] = tuple(TASKS)
    examples: int = 100
    held_out: int = 100
    seed: int = 0


def calibrate(
    model: HFModel,
    asked: Asked | None = None,
    setting: Setting | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress = lambda *_: None,
) -> Calibration:
    """Search the heads whose sinks hurt, and evaluate them on held-out questions beside random heads drawn for each of `seeds`.

    Raises `InputError` for unknown tasks, bad lines, options that begin with one token, and settings that do not fit the model.
    """
    return calibrate_by(Crew.here(model, progress), asked, setting, seeds=seeds)


def calibrate_by(crew: Crew, asked: Asked | None = None, setting: Setting | None = None, *, seeds: Sequence[int] = (0, 1, 2)) -> Calibration:
    """`calibrate` by whoever is given: the same numbers; only `cost` differs, whose seconds are of this clock, and of the processors of all who worked."""
    asked, setting = asked or Asked(), setting or Setting()
    setting.candidates(crew.card.shape)
    ((used, kept_out, left_out),) = crew.run("questions", encoded, [{"asked": asked}])
    made_by = versions()
    found = search(crew, used, setting)
    clock = Clock(crew)
    table = evaluate(crew, kept_out, setting.edit, found.kept, found.candidates, seeds)
    found = replace(found, cost={**found.cost, **clock.read("held_out")})
    place = {"device": crew.device, "dtype": crew.dtype, "implementation": WAY, **made_by}
    tasks = {task: {"calibration": len(used[task]), "held_out": len(kept_out[task]), "left_out": left_out[task]} for task in used}
    edit = {name: value for name, value in setting.edit.describe().items() if name != "heads"}
    layers = sorted({head.layer for head in found.candidates})
    made = {"tasks": tasks, "edit": edit, "screen": setting.screen, "sample": setting.sample, "block": setting.block, "layers": layers}
    facts = {
        "model": crew.card.name,
        "fingerprint": crew.card.fingerprint,
        **made,
        "seed": asked.seed,
        "seed_search": setting.seed,
        "seeds_random": list(seeds),
        **place,
    }
    return Calibration(crew.card, found, table, facts, tuple(_remarks(found, left_out)))


def encoded(model: HFModel, asked: Asked) -> tuple[dict[str, list[Encoded]], dict[str, list[Encoded]], dict[str, int]]:
    """Calibration and held-out questions as tokens by task, and how many questions of tasks of the package were left out.

    Those are questions whose options this model's tokenizer begins with the same token; in a user's file that is an error.
    """
    used: dict[str, list[Encoded]] = {}
    held: dict[str, list[Encoded]] = {}
    left: dict[str, int] = {}
    for source in dict.fromkeys(asked.tasks):
        questions = questions_of(source)
        good = [question for question in questions if _distinct(model, question)] if source in TASKS else questions
        if not good:
            raise InputError(f"{source}: the tokenizer of {model.name} gives all options of each question the same first token")
        for task, mine in _by_task(good).items():
            if task in used:
                raise InputError(f"two sources have questions of the task {task!r}; name it differently in one of them")
            parts = split(mine, asked.examples, asked.held_out, asked.seed)
            used[task], held[task] = ([encode(model, question) for question in part] for part in (parts.calibration, parts.held_out))
            left[task] = len(questions) - len(good) if source in TASKS else 0
    return used, held, left


def _by_task(questions: Sequence[Question]) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.task, []).append(question)
    return found


def _distinct(model: HFModel, question: Question) -> bool:
    try:
        return bool(encode(model, question))
    except InputError:
        if model.tokenizer is None:
            raise
        return False


def _remarks(found: Search, left_out: Mapping[str, int]) -> list[str]:
    """What a reader should know beside the numbers."""
    sinks_LH = found.evidence.sinks_NLH.sum(0)
    with_sinks = sum(bool(sinks_LH[head.layer, head.index]) for head in found.candidates)
    said = [f"{with_sinks} of {len(found.candidates)} candidates have sinks; {sinks_LH.sum() / len(found.evidence.task_N):.1f} sinks per question in all"]
    if not with_sinks:
        said = ["no sink found in any candidate: calibration changes nothing"]
    if not found.kept:
        said.append("no head helps on the calibration questions")
    return said + [f"{task}: {count} questions left out, whose options begin with the same token" for task, count in left_out.items() if count]
