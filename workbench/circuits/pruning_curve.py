"""How many heads steer a model, and at what price? Memory and context heads measured now, and answers to conflicts as more and more are pruned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.circuits.conflicts import answers, closed_book, conflict_sets, rates
from workbench.circuits.faithfulness import mask
from workbench.circuits.paths import LOGITS, path_patching
from workbench.circuits.sides import Sides
from workbench.circuits.steering import bounded
from workbench.circuits.tasks import Item, TaskSet, prepare, task_of
from workbench.circuits.tasks.encoding import encode
from workbench.errors import InputError
from workbench.heads import Head
from workbench.looking import token_texts, without
from workbench.models import HFModel

TASK = "knowledge_conflict:relation=capital,format=substitution,corruption=both"
"""Where heads are measured if no file tells."""

MOST = 20
"""The most heads that are pruned in a curve."""


def measured(model: HFModel, data: TaskSet) -> Sides:
    """How far the log-probability of each answer falls, in nats, when a head's path from the last position to the logits carries the other prompt.

    Other heads are frozen, MLPs follow. Raises `InputError` for items with several right or wrong answers.
    """
    found = []
    for swap in (False, True):
        pairs = tuple(replace(pairs, right=pairs.wrong, wrong=pairs.right) if swap else pairs for pairs in data.pairs)
        effects = path_patching(model, replace(data, pairs=pairs), positions=[-1], metric="log_probability")[LOGITS]
        found.append(-effects.mean_LH.astype(np.float64))
    return Sides(found[0], found[1])


def searched_on(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Relation, format and corruption of the conflicts that a search was made on, by the `provenance` of a `Ph3`; those of `TASK` if it tells none."""
    asked = str(provenance.get("task", TASK))
    task = task_of(asked)
    return {name: values[0] for name, values in task.options.items()} | task.chosen(asked.partition(":")[2])


def conflicts_of(model: HFModel, relation: str, count: int, provenance: Mapping[str, Any]) -> tuple[TaskSet, str]:
    """About `count` conflicts of a relation, and in words what they are to the search that `provenance` (of a `Ph3`) tells of, if it tells of one.

    Of the relation that was searched on, those that the search kept for its test, if they can be drawn again. Raises `InputError` as `prepare` does.
    """
    on, seed = searched_on(provenance), int(provenance.get("seed", 0))
    if on["relation"] != relation or not provenance:
        source = f"knowledge_conflict:relation={relation},format={on['format']}"
        return prepare(model, source, count, seed), f"of another relation than the search's, {on['relation']}" if provenance else "drawn now"
    sets = conflict_sets(model, on["relation"], on["format"], on["corruption"], transfer=False, seed=seed)
    sizes = {"searched": len(sets.searched), "validated": len(sets.validated), "tested": len(sets.tested)}
    known = {name: provenance.get("items", {}).get(name) for name in sizes}
    return first(sets.tested, count), "kept out of the search" if sizes == known else "drawn anew: the search may have had some of them"


def first(data: TaskSet, count: int) -> TaskSet:
    """The first so many items. Raises `InputError` for a number below 1."""
    if count < 1:
        raise InputError(f"at least one item, not {count}")
    kept, left = [], count
    for pairs in data.pairs:
        if left > 0:
            kept.append(pairs.rows(range(min(left, len(pairs)))))
        left -= len(pairs)
    return replace(data, pairs=tuple(kept))


def pruning_curve(model: HFModel, data: TaskSet, ranking: Sequence[Head], most: int = MOST) -> pd.DataFrame:
    """How a model answers conflicts with the first 0, 1, 2, … heads of a ranking pruned, up to `most`: z = 0 at all positions.

    One row per number of `heads`: the shares of answers `memory`, `context` and `other`, the share of closed-book queries answered rightly (`clean`), each but
    `other` with its 95% interval (Wilson), and `n`, the items.
    """
    counts = range(min(most, len(ranking)) + 1)
    pruned = np.stack([mask(model.shape, ranking[:count]) for count in counts])
    kind_SN, clean_SN = answers(model, data, pruned)[0], answers(model, closed_book(model, data), pruned)[0]
    rows = [
        {"heads": count, **bounded({**rates(kind_N), "clean": rates(clean_N)["memory"]}, len(data)), "n": len(data)}
        for count, kind_N, clean_N in zip(counts, kind_SN, clean_SN, strict=True)
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Answer:
    """How one conflict is answered with all heads (`whole`), `without` some, and without as many others of their layers (`control`).

    `following` has the next tokens with their probabilities, as `looking.Without`; `said` the likeliest one of each, and its kind: memory, context or other.
    """

    following: pd.DataFrame
    said: Mapping[str, tuple[str, str]]


def answer(model: HFModel, item: Item, heads: Sequence[Head], seed: int = 0) -> Answer:
    """Have the model answer a conflict. Raises `InputError` as `looking.without`, and for an item that does not fit the model's tokens."""
    encoded = encode(model, item)
    if isinstance(encoded, str):
        raise InputError(f"this conflict does not fit {model.name}: {encoded}")
    following = without(model, item.clean, heads, seed).following
    tokens = {name: str(following["token"][following[name].idxmax()]) for name in ("whole", "without", "control")}
    kinds = dict.fromkeys(token_texts(model, encoded.wrong), "context") | dict.fromkeys(token_texts(model, encoded.right), "memory")
    return Answer(following, {name: (token, kinds.get(token, "other")) for name, token in tokens.items()})
