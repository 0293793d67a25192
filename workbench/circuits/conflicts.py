"""Which answer does a model give when a text contradicts it? What it remembers, what the text says, or another; with heads pruned, or told otherwise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.circuits.anatomy import taken_apart
from workbench.circuits.patching import Scene, scenes
from workbench.circuits.sweep import outcomes
from workbench.circuits.tasks import Item, Pairs, TaskSet, prepare
from workbench.circuits.tasks.encoding import ids_of
from workbench.circuits.tasks.knowledge_conflict import FORMATS, RELATIONS
from workbench.errors import InputError
from workbench.models import HFModel

MEMORY, CONTEXT, OTHER = 0, 1, 2
"""Kinds of answers: the most probable next token is what the model remembers, what the text states, or neither."""

INSTRUCTIONS = {"context": "Answer with what the text says, even if it is wrong. ", "memory": "Ignore what the text says, and answer with what is true. "}
"""The prompt that is put in front as a control."""

CONTRAST = 1.0
"""α of contrastive decoding: (1 + α) · logits with the text − α · logits without it (Shi et al. 2023, 2305.14739), or the other way round."""


@dataclass(frozen=True, eq=False)
class ConflictSets:
    """Conflicts to search heads on, to choose how many on, and to test on, no subject in two of them; and `others` by name, of other relations and formats.

    `left_out` tells which of those could not be made for the model, and why.
    """

    searched: TaskSet
    validated: TaskSet
    tested: TaskSet
    others: Mapping[str, TaskSet]
    left_out: Mapping[str, str]


def conflict_sets(
    model: HFModel,
    relation: str = "capital",
    form: str = "substitution",
    corruption: str = "both",
    *,
    counts: tuple[int, int, int] = (40, 24, 32),
    transfer: bool = True,
    seed: int = 0,
) -> ConflictSets:
    """Conflicts that the model knows the facts of: about so many to search on, validate and test, subjects apart, and the last number of each of the others.

    Raises `InputError` for unknown relations, formats and corruptions, and where the model knows too few facts of the relation.
    """
    total = sum(counts)
    every = prepare(model, f"knowledge_conflict:relation={relation},format={form},corruption={corruption}", total, seed)
    rest, tested = every.split((total - counts[2]) / total, by="subject", seed=seed)
    searched, validated = rest.split(counts[0] / (counts[0] + counts[1]), by="subject", seed=seed)
    others, left_out = {}, {}
    for other in RELATIONS if transfer else ():
        for kind in FORMATS:
            if kind == form and relation in (other, "all"):
                continue
            try:
                made = prepare(model, f"knowledge_conflict:relation={other},format={kind}", counts[2], seed)
                others[f"{other}, {kind}"] = _without(made, searched, validated)
            except InputError as error:
                left_out[f"{other}, {kind}"] = str(error)
    return ConflictSets(searched, validated, tested, others, left_out)


def _without(data: TaskSet, *used: TaskSet) -> TaskSet:
    """The items whose subjects are in none of the sets used before. Raises `InputError` if none is left."""
    known = {(item.facts["relation"], item.facts["subject"]) for one in used for item in one.items}
    kept = []
    for pairs in data.pairs:
        rows = [row for row, item in enumerate(pairs.items) if (item.facts["relation"], item.facts["subject"]) not in known]
        if rows:
            kept.append(pairs.rows(rows))
    if not kept:
        raise InputError("no conflict is left whose subject was not used in the search")
    return replace(data, pairs=tuple(kept))


def answers(model: HFModel, data: TaskSet, pruned_SLH: Bool[np.ndarray, "S L H"]) -> tuple[Int[np.ndarray, "S N"], Float[np.ndarray, "S N"]]:
    """The kind of answer to each item with sets of heads pruned (their output zero at all positions), and log p(memory) − log p(context) of the two tokens."""
    kinds, margins = [], []
    for scene in scenes(model, data):
        zero = [torch.zeros_like(z) for z in scene.base.z]
        found_SN2 = outcomes(scene.anatomy, scene.base, zero, pruned_SLH, _measure(scene))
        kinds.append(found_SN2[..., 0].astype(int))
        margins.append(found_SN2[..., 1])
    return np.concatenate(kinds, axis=1), np.concatenate(margins, axis=1)


def _measure(scene: Scene) -> Callable[[Tensor, int], Tensor]:
    """The kind of each answer and its margin, side by side."""

    def both(logits_BV: Tensor) -> Tensor:
        return torch.stack([kind_of(scene.pairs, logits_BV), scene.pairs.measure(logits_BV, "logit_difference")], dim=-1)

    return lambda logits_SV, variants: torch.cat([both(logits_BV) for logits_BV in logits_SV.unflatten(0, (variants, -1))])


def kind_of(pairs: Pairs, logits_BV: Float[Tensor, "B V"]) -> Float[Tensor, " B"]:
    """The kind of each answer, as a number."""
    best_B = logits_BV.argmax(-1)
    memory_B, context_B = (torch.tensor([ids[0] for ids in side], device=best_B.device) for side in (pairs.right, pairs.wrong))
    return torch.where(best_B == memory_B, MEMORY, torch.where(best_B == context_B, CONTEXT, OTHER)).float()


def rates(kind_N: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Internal-memory rate RM, external-context rate RC, and the rest, 0–1."""
    return {name: float((kind_N == kind).mean()) for name, kind in (("memory", MEMORY), ("context", CONTEXT), ("other", OTHER))}


def asked(model: HFModel, data: TaskSet, prompt: Callable[[Item], str]) -> TaskSet:
    """The same items asked by other prompts, such as the closed-book query, or the conflict behind an instruction. Their order is not kept."""
    groups: dict[int, list[tuple[Item, Sequence[int], tuple[int, ...], tuple[int, ...]]]] = {}
    for pairs in data.pairs:
        for item, right, wrong in zip(pairs.items, pairs.right, pairs.wrong, strict=True):
            ids = ids_of(model.tokenizer, prompt(item))
            groups.setdefault(len(ids), []).append((item, ids, right, wrong))
    made = []
    for group in groups.values():
        items, ids, right, wrong = zip(*group, strict=True)
        made.append(Pairs(data.task, "logit_difference", items, np.array(ids), np.array(ids), right, wrong))
    return replace(data, pairs=tuple(made))


def closed_book(model: HFModel, data: TaskSet) -> TaskSet:
    """The items without the text that contradicts: clean accuracy is the share of memory answers to these."""
    return asked(model, data, lambda item: item.facts["query"])


def instructed(model: HFModel, data: TaskSet, side: str) -> TaskSet:
    """The items behind an instruction to follow the text, or to ignore it."""
    return asked(model, data, lambda item: INSTRUCTIONS[side] + item.clean)


@torch.no_grad()
def contrastive(model: HFModel, data: TaskSet, side: str, alpha: float = CONTRAST) -> Int[np.ndarray, " N"]:
    """The kind of answer when the logits with and without the text are contrasted, towards the text (`context`) or away from it (`memory`).

    Without the text stands the same question in the same form.
    """
    kinds = []
    for pairs in data.pairs:
        with_BV = _logits(model, pairs.clean_BT.tolist())
        without_BV = _logits(model, [list(ids_of(model.tokenizer, item.facts["closed"])) for item in pairs.items])
        toward, away = (with_BV, without_BV) if side == "context" else (without_BV, with_BV)
        kinds.append(kind_of(pairs, (1 + alpha) * toward - alpha * away).cpu().numpy().astype(int))
    return np.concatenate(kinds)


def _logits(model: HFModel, ids: list[list[int]]) -> Float[Tensor, "B V"]:
    """The last log-probabilities of prompts of any length."""
    made: dict[int, Tensor] = {}
    for length in {len(one) for one in ids}:
        rows = [row for row, one in enumerate(ids) if len(one) == length]
        with taken_apart(model, length) as anatomy:
            trace = anatomy.trace(torch.tensor([ids[row] for row in rows], device=model.device))
        made.update(zip(rows, trace.logits_BV.float().log_softmax(-1), strict=True))
    return torch.stack([made[row] for row in range(len(ids))])
