"""Which of two people gets something? Indirect object identification."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import NAMES, drawn, one

TEMPLATES = (
    "Then, {X} and {Y} went to the {place}. {S} gave a {thing} to",
    "When {X} and {Y} went to the {place}, {S} gave a {thing} to",
    "Then, {X} and {Y} had a lot of fun at the {place}. {S} gave a {thing} to",
    "Then, {X} and {Y} were working at the {place}. {S} decided to give a {thing} to",
    "Then, {X} and {Y} were thinking about going to the {place}. {S} wanted to give a {thing} to",
    "Then, {X} and {Y} had a long argument, and afterwards {S} said to",
    "After {X} and {Y} went to the {place}, {S} gave a {thing} to",
    "When {X} and {Y} got a {thing} at the {place}, {S} decided to give it to",
    "While {X} and {Y} were working at the {place}, {S} gave a {thing} to",
    "While {X} and {Y} were commuting to the {place}, {S} gave a {thing} to",
    "After the lunch, {X} and {Y} went to the {place}. {S} gave a {thing} to",
    "Afterwards, {X} and {Y} went to the {place}. {S} gave a {thing} to",
    "The {place} that {X} and {Y} went to had a {thing}. {S} gave it to",
    "Friends {X} and {Y} found a {thing} at the {place}. {S} gave it to",
)

PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station", "park", "library", "market", "beach")
THINGS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack", "book", "ticket", "letter", "cup")
ORDERS = ("ABBA", "BABA")


def items(rng: np.random.Generator, corruption: str = "abc") -> Iterator[Item]:
    """Two people are named, one of them again; the other comes next.

    "When Mary and John went to the store, John gave a drink to" → " Mary" and not " John", the one named twice standing second (ABBA) or first (BABA).
    `corruption`: `abc` puts three other names in place of the three, `repeat` a third one where the name is repeated, and `swap` exchanges the two, so
    that " John" would be right.
    """
    while True:
        number, order = int(rng.integers(len(TEMPLATES))), one(rng, ORDERS)
        io, subject, *fresh = drawn(rng, NAMES, 5)
        rest = {"place": one(rng, PLACES), "thing": one(rng, THINGS)}

        def said(io: str, first: str, second: str, number: int = number, order: str = order, rest: dict[str, str] = rest) -> str:
            x, y = (io, first) if order == "ABBA" else (first, io)
            return TEMPLATES[number].format(X=x, Y=y, S=second, **rest)

        corrupted = {"abc": said(*fresh), "repeat": said(io, subject, fresh[0]), "swap": said(subject, io, io)}[corruption]
        facts = {"order": order, "io": io, "subject": subject}
        yield Item(said(io, subject, subject), corrupted, (f" {io}",), (f" {subject}",), f"{number + 1:02d}", facts)


TASK = Task(
    name="ioi",
    metric="logit_difference",
    items=items,
    source="Wang et al. 2022, Interpretability in the Wild, arXiv 2211.00593",
    options={"corruption": ("abc", "repeat", "swap")},
)
