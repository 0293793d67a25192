"""Which colour has it? One of three objects on a table."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import drawn, listed

OBJECTS = listed("pencil necklace lighter cup pen book phone plate bracelet puzzle ball notebook scarf mug fan crayon keychain")
COLOURS = listed("red orange yellow green blue brown purple pink")


def _question(colours: list[str], things: list[str], asked: int) -> str:
    listing = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {thing}" for colour, thing in zip(colours, things, strict=True)]
    return f"Q: On the table, there is {listing[0]}, {listing[1]}, and {listing[2]}. What color is the {things[asked]}?\nA:"


def items(rng: np.random.Generator, corruption: str = "object") -> Iterator[Item]:
    r"""Three coloured objects are named behind one example with its answer; the colour of one of them comes next, and not that of the other two.

    "… Q: On the table, there is a blue pencil, a red cup, and a green pen. What color is the cup?\nA:" → " Red" and not " Blue", " Green".
    `corruption`: `object` asks for another of the three, `colours` gives them three other colours. Which of the three is asked for takes turns.
    """
    turn = 0
    while True:
        shot_colours, shot_things, shot_asked = drawn(rng, COLOURS, 3), drawn(rng, OBJECTS, 3), int(rng.integers(3))
        colours, things, asked = drawn(rng, COLOURS, 6), drawn(rng, OBJECTS, 3), turn % 3
        turn += 1
        front = f"{_question(shot_colours, shot_things, shot_asked)} {shot_colours[shot_asked].title()}\n"
        other = (asked + 1 + int(rng.integers(2))) % 3
        clean = _question(colours[:3], things, asked)
        corrupted = _question(colours[:3], things, other) if corruption == "object" else _question(colours[3:], things, asked)
        wrong = tuple(f" {colours[place].title()}" for place in range(3) if place != asked)
        yield Item(front + clean, front + corrupted, (f" {colours[asked].title()}",), wrong, "one example", {"asked": str(asked + 1)})


TASK = Task(
    name="colored_objects",
    metric="logit_difference",
    items=items,
    source="Merullo et al. 2023, Circuit component reuse across tasks in transformer language models, arXiv 2310.08744",
    options={"corruption": ("object", "colours")},
)
