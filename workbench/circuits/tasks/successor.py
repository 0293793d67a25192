"""What comes after it? Words in their order."""

from collections.abc import Iterator
from itertools import pairwise, permutations

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import one
from workbench.sequences import CLASSES

SHOWN = (3, 4, 5)

CLASSES_SHOWN = {"days": str.title, "months": str.title, "number words": str.lower, "ordinals": str.lower, "letters": str.upper}
"""The classes that are drawn from, and how their words are written. Numbers in digits are left out: many tokenizers have no token for " 5"."""

ORDERS = {
    count: tuple(order for order in permutations(range(count)) if order[-1] != count - 1 and all(after != before + 1 for before, after in pairwise(order)))
    for count in SHOWN
}
"""The orders of so many words in which none follows the one before it, and the last does not stay."""


def items(rng: np.random.Generator) -> Iterator[Item]:
    """Three to five words in order; the word that follows comes next, and not one of those shown.

    "Monday, Tuesday, Wednesday, Thursday," → " Friday". Corrupted, the words stand in an order in which none follows the one before it, and another is
    the last. Days, months, number words, ordinals and letters take turns, and are the templates.
    """
    turn = 0
    while True:
        name = list(CLASSES_SHOWN)[turn % len(CLASSES_SHOWN)]
        turn += 1
        words, count, many = CLASSES[name], len(CLASSES[name].members), one(rng, SHOWN)
        start = int(rng.integers(count if words.cyclic else count - many))
        shown = [CLASSES_SHOWN[name](words.members[(start + step) % count]) for step in range(many + 1)]
        clean, corrupted = (", ".join(shown[place] for place in places) + "," for places in (range(many), one(rng, ORDERS[many])))
        yield Item(clean, corrupted, (f" {shown[-1]}",), tuple(f" {word}" for word in shown[:-1]), name)


TASK = Task(
    name="successor",
    metric="logit_difference",
    items=items,
    source="after Gould et al. 2023, Successor heads, arXiv 2312.09230",
)
