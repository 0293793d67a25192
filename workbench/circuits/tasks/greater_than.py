"""When did it end? Years that come later than another."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import listed, one

NOUNS = listed(
    "war siege voyage expedition reign dynasty marriage treaty trial plague drought strike campaign journey project study epidemic dispute debate tour "
    "conflict crisis famine occupation alliance partnership investigation construction rebellion revolution uprising pilgrimage program experiment custody "
    "captivity friendship rivalry romance rule kingdom empire boom decline slump expansion exchange contract agreement feud hostility quest mission "
    "tradition practice process operation patrol invasion outbreak recession imprisonment employment negotiation collaboration"
)
"""What can last for years; after the list of Hanna et al."""

CENTURIES = tuple(range(11, 18))
"""The centuries that start years are drawn from, by their first two digits."""

SOURCE = "Hanna et al. 2023, How does GPT-2 compute greater-than?, arXiv 2305.00586"


def prompt(noun: str, century: int, year: int) -> str:
    """The prompt for a thing that began in such a year of a century (first two digits)."""
    return f"The {noun} lasted from the year {century}{year:02d} to the year {century}"


def items(rng: np.random.Generator) -> Iterator[Item]:
    """Something began in a year; the year in which it ended comes next, as the last two of four digits.

    "The war lasted from the year 1743 to the year 17" → 44 to 99 and not 00 to 43; corrupted, it began in 1701. Start years are 02 to 98. For tokenizers
    that have two-digit numbers as tokens, such as GPT-2's; where digits are tokens of their own, as in Llama and SmolLM2, take `greater_than_digit`.
    """
    while True:
        noun, century, year = one(rng, NOUNS), one(rng, CENTURIES), int(rng.integers(2, 99))
        right, wrong = (tuple(f"{end:02d}" for end in ends) for ends in (range(year + 1, 100), range(year + 1)))
        facts = {"noun": noun, "century": str(century), "year": f"{year:02d}"}
        yield Item(prompt(noun, century, year), prompt(noun, century, 1), right, wrong, "lasted", facts)


TASK = Task(name="greater_than", metric="probability_difference", items=items, source=SOURCE, instead="greater_than_digit")
