"""Memory or context? Facts that a model knows, behind a text that says otherwise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.circuits.tasks.encoding import known
from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import drawn, one, rows
from workbench.errors import InputError

FORMATS = ("substitution", "coherent")
CORRUPTIONS = ("both", "subject", "context")


@dataclass(frozen=True)
class Relation:
    """Facts of one kind: subject → object, and how to ask for them.

    `query` is the closed-book prompt; `passage` asserts an object and `question` asks for it, in the coherent format. `others` are further objects that
    a false statement may name. Texts have {subject} and {object} in them.
    """

    name: str
    query: str
    passage: str
    question: str
    facts: tuple[tuple[str, str], ...]
    others: tuple[str, ...]

    def prompt(self, form: str, subject: str, stated: str) -> str:
        """The prompt that states an object for a subject and asks for it, in one of `FORMATS`."""
        closed = self.closed(form, subject)
        return f"{closed} {stated}. {closed}" if form == "substitution" else f"{self.passage.format(subject=subject, object=stated)}\n{closed}"

    def closed(self, form: str, subject: str) -> str:
        """The prompt that asks for it in that form, and states nothing."""
        return self.query.format(subject=subject) if form == "substitution" else f"Question: {self.question.format(subject=subject)}\nAnswer:"


def _relation(row: dict[str, Any]) -> Relation:
    return Relation(row["relation"], row["query"], row["passage"], row["question"], tuple(row["facts"].items()), tuple(row["others"]))


RELATIONS = {row["relation"]: _relation(row) for row in rows("relations.jsonl")}
"""The relations that ship with the package; each has at least 45 facts."""


def items(
    rng: np.random.Generator,
    relation: str = "capital",
    format: str = "substitution",  # noqa: A002 the name of the option, as users type it
    corruption: str = "both",
    size: Callable[[str], int] = lambda text: 1,
) -> Iterator[Item]:
    """A text states another object than the model knows; what it knows counts as right, and what the text states as wrong.

    "The name of the capital city of France is Rome. The name of the capital city of France is" → " Paris" (memory) and not " Rome" (context).
    `format`: `substitution`, as above, or `coherent`, a passage that asserts the object and a question. `corruption`: `both` takes another subject and
    another stated object, of the same relation, so that neither answer is favoured; `subject` and `context` change one of the two. `relation`: one of
    those in `relations.jsonl`, or `all` in turns. `size` chooses what is stated and what is corrupted so that prompts have one length. Facts hold
    relation, format, subject, context, `closed`, the same prompt without what the text states, and `query`, the closed-book prompt by which items are kept:
    only if the model answers it with what is right.
    """
    chosen = [RELATIONS[relation]] if relation != "all" else list(RELATIONS.values())
    streams = [_conflicts(rng, kind, format, corruption, size) for kind in chosen]
    while True:
        for stream in streams:
            yield next(stream)


def _conflicts(rng: np.random.Generator, kind: Relation, form: str, corruption: str, size: Callable[[str], int]) -> Iterator[Item]:
    """Every subject once, then every subject again, with what is stated and with what is corrupted drawn anew."""
    objects = list(dict.fromkeys([true for _, true in kind.facts] + list(kind.others)))
    shortest = min(size(f"{kind.name} {thing}") for thing in objects)
    stated_ones = [thing for thing in objects if size(f"{kind.name} {thing}") == shortest]
    if len(stated_ones) < 3:
        raise InputError(f"the tokenizer leaves too few objects of one length to state for the relation {kind.name}; choose another relation or model")
    while True:
        for subject, memory in drawn(rng, kind.facts, len(kind.facts)):
            context = one(rng, [thing for thing in stated_ones if thing != memory])
            clean = kind.prompt(form, subject, context)
            others = [(subject, memory)] if corruption == "context" else [fact for fact in kind.facts if fact[1] not in (memory, context)]
            for other, true in drawn(rng, others, len(others)):
                stated = context if corruption == "subject" else one(rng, [thing for thing in stated_ones if thing not in (memory, context, true)])
                corrupted = kind.prompt(form, other, stated)
                if size(corrupted) == size(clean):
                    break
            facts = {"relation": kind.name, "format": form, "subject": subject, "context": context}
            facts |= {"closed": kind.closed(form, subject), "query": kind.query.format(subject=subject)}
            yield Item(clean, corrupted, (f" {memory}",), (f" {context}",), f"{kind.name} {form}", facts)


TASK = Task(
    name="knowledge_conflict",
    metric="logit_difference",
    items=items,
    source="Jin et al. 2024, Cutting off the head ends the conflict, arXiv 2402.18154; the substitution format after JUICE",
    options={"relation": (*RELATIONS, "all"), "format": FORMATS, "corruption": CORRUPTIONS},
    keep=known,
    sized=True,
)
