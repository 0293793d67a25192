"""Is it she or he? The pronoun that fits a name."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import listed, one

WOMEN = listed("Alice Amy Anna Elizabeth Emily Eva Jane Jennifer Jessica Kate Laura Lisa Maria Mary Michelle Rachel Sarah Victoria Emma Susan Linda Helen")
MEN = listed("Adam Alan Andrew Anthony Arthur Brian Charles Daniel David Edward Eric Frank George Henry Jack Jacob James Jason John Joseph Peter Paul")
SAYING = (
    "is a really great friend",
    "is such a good cook",
    "is a very good athlete",
    "is a really nice person",
    "is such an amazing musician",
    "was at home last night",
)
STARTS = ("So {} {}, {}n't", "{} {}, {}n't", "I think that {} {}, {}n't", "You know, {} {}, {}n't")


def items(rng: np.random.Generator) -> Iterator[Item]:
    """A person is named; the pronoun comes next.

    "So Mary is a really great friend, isn't" → " she" and not " he"; corrupted, the name is one of the other gender. Names of women and of men take turns.
    """
    turn = 0
    while True:
        people, others = (WOMEN, MEN) if turn % 2 == 0 else (MEN, WOMEN)
        pronouns = ((" she",), (" he",)) if turn % 2 == 0 else ((" he",), (" she",))
        turn += 1
        name, other = one(rng, people), one(rng, others)
        number, said = int(rng.integers(len(STARTS))), one(rng, SAYING)
        clean, corrupted = (STARTS[number].format(person, said, said.split()[0]) for person in (name, other))
        yield Item(clean, corrupted, *pronouns, f"{number + 1} {said}", {"name": name, "pronoun": pronouns[0][0].strip()})


TASK = Task(
    name="gendered_pronoun",
    metric="logit_difference",
    items=items,
    source="Mathwin et al. 2023, Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 small",
)
