"""How does a model score? Probes that share prompts share a pass; every batch of prompts is a task that ends in a file.

1. Group the asked probes by their prompts (`groups.plan`). 2. For each group and each of its batches, unless its result is on disk: one forward
(or one generation), every probe's `score`, save. 3. Do the same for the null of each group. 4. Drop what does not count, and summarise.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import pandas as pd

from workbench.batches import Asked, Work
from workbench.edits import Edit
from workbench.groups import Group, Way
from workbench.models import HFModel
from workbench.options import Options
from workbench.passes import beyond_training, clamped
from workbench.probes import Probe
from workbench.runs import Part, versions
from workbench.scores import COLUMNS, HeadScores, summarise
from workbench.storage import Place

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
    runs: Place | None = None,
    options: Options | None = None,
    way: Way | None = None,
    edits: Sequence[Edit] = (),
    progress: Progress = lambda what, done, total: None,
) -> HeadScores:
    """Score every head of a model on some probes (all by default): by name, or a `Probe` of one's own, whose results cannot be kept.

    `way` says how passes are made: the implementation, the chunk, the sampled rows. Results of finished batches lie under `runs` and are not made
    again; without `runs` nothing is kept. `progress` hears of every finished batch, which of all it is, and how many there are, those of nulls included.
    A probe with too little evidence has no scores; `evidence` says so, with counts; so it does of probes that cannot be asked of this model. Raises
    `InputError` for unknown probes or presets, and for prompts that cannot be made for this model, those of named probes included.
    """
    asked = Asked(None if probes is None else tuple(probes), preset, seed, options, way or Way(), tuple(edits))
    return answer(Work(model, asked, runs), progress)


def answer(work: Work, progress: Progress = lambda what, done, total: None) -> HeadScores:
    """The scores that a question asks for; what has not been measured yet is measured. See `score`."""
    model, asked, rows, evidence, done = work.model, work.asked, [], {}, _counting(work, progress)
    for group in work.groups:
        samples, nulls = _parts(work, group, False, done), _nulls(work, group, done)
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
                rows.append(summarise(member.name, model.card, score_NLH, null_NLH.mean(axis=0), asked.seed))
    provenance = {"preset": asked.preset, "seed": asked.seed, **work.conditions(work.prompts), "versions": versions()}
    if (longest := max((batch.length for batch in work.prompts), default=0)) > model.max_length:
        provenance["warning"] = beyond_training(model, longest)
    wide = [line for group in work.groups if group.recipe is not None for batch in work.built[group.recipe] for line in clamped(group.reads, batch)]
    if wide:
        provenance["clamped"] = sorted(set(wide))
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(COLUMNS))
    return HeadScores(model.card, table, evidence | work.left_out, provenance)


def _counting(work: Work, progress: Progress) -> Callable[[str], None]:
    """Tells what was finished just now, and how many batches of all groups and of their nulls are."""
    total, numbers = sum(work.count(group, control) for group in work.groups for control in (False, True)), count(1)
    return lambda what: progress(what, next(numbers), total)


def _parts(work: Work, group: Group, control: bool, done: Callable[[str], None]) -> list[Part]:
    parts, name = [], f"{group.name} (null)" if control else group.name
    for number in range(work.count(group, control)):
        parts.append(work.part(group.name, control, number))
        done(name)
    return parts


def _nulls(work: Work, group: Group, done: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The scores [N, L, H] of each probe where its behaviour cannot show."""
    parts = _parts(work, group, True, done) if work.count(group, control=True) else [work.known_null(group)]
    shape = (work.model.shape.n_layers, work.model.shape.n_heads)
    stacked = {member.name: np.concatenate([part.scores[member.name] for part in parts]) for member in group.probes}
    fixed = {member.name: np.full((1, *shape), member.null_score) for member in group.probes if member.null_score is not None}
    return {name: np.broadcast_to(array, (len(array), *shape)) for name, array in stacked.items()} | fixed


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
