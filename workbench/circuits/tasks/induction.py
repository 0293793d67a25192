"""What came next the last time? Words that repeat."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import NOUNS, drawn

PERIOD = 10
CUTS = (3, 4, 5, 6, 7)


def items(rng: np.random.Generator) -> Iterator[Item]:
    """Ten random words, and the first few of them again; the word that followed comes next, and not one of the other nine.

    "Words: sun key … oil sun key" → what followed " key" at first. Corrupted, other words stand in place of the ten, so that nothing repeats. Three to seven
    words are repeated; the templates are named by how many.
    """
    while True:
        words, cut = drawn(rng, NOUNS, 2 * PERIOD), CUTS[int(rng.integers(len(CUTS)))]
        first, other = words[:PERIOD], words[PERIOD:]
        clean, corrupted = (" ".join(["Words:", *ten, *first[:cut]]) for ten in (first, other))
        wrong = tuple(f" {word}" for place, word in enumerate(first) if place != cut)
        yield Item(clean, corrupted, (f" {first[cut]}",), wrong, f"{cut} repeated")


TASK = Task(
    name="induction",
    metric="logit_difference",
    items=items,
    source="Olsson et al. 2022, In-context learning and induction heads, arXiv 2209.11895",
)
