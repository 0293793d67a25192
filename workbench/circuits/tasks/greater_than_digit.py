"""In which decade did it end? Years that come later than another, digit by digit."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.greater_than import CENTURIES, NOUNS, SOURCE, prompt
from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import one


def items(rng: np.random.Generator) -> Iterator[Item]:
    """Something began in a year; the decade in which it ended comes next, as the third of four digits.

    "The war lasted from the year 1743 to the year 17" → 5 to 9 and not 0 to 3; the 4, which may be right or wrong, counts as neither. Corrupted, it began
    in 1701. Decades of start years are 1 to 8. `greater_than` for tokenizers of which each digit is a token; it is not the published task.
    """
    while True:
        noun, century, decade, unit = one(rng, NOUNS), one(rng, CENTURIES), int(rng.integers(1, 9)), int(rng.integers(10))
        year = 10 * decade + unit
        right, wrong = (tuple(map(str, digits)) for digits in (range(decade + 1, 10), range(decade)))
        facts = {"noun": noun, "century": str(century), "year": str(year), "decade": str(decade)}
        yield Item(prompt(noun, century, year), prompt(noun, century, 1), right, wrong, "lasted", facts)


TASK = Task(name="greater_than_digit", metric="probability_difference", items=items, source=f"after {SOURCE}")
