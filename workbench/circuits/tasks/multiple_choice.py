"""Which letter has it? Four options, one of which the question names."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import drawn, listed, one
from workbench.questions import categories

LETTERS = "ABCD"
COLOURS = listed("red orange yellow green blue brown purple pink black white")
THINGS = listed("table phone shirt door car box hat cup chair wall bag book house boat lamp ball coat desk")
KINDS = ("animal", "fruit", "city", "country", "instrument", "vehicle")


def _given(rng: np.random.Generator) -> tuple[str, str, list[str]]:
    thing, (right, *wrong) = one(rng, THINGS), drawn(rng, COLOURS, 4)
    return f"The {thing} is {right}. What color is the {thing}?", right, wrong


def _known(rng: np.random.Generator) -> tuple[str, str, list[str]]:
    kind, *others = drawn(rng, KINDS, 4)
    right, *wrong = (one(rng, categories()[one_kind]) for one_kind in (kind, *others))
    return f"Which of these is {'an' if kind[0] in 'aeiou' else 'a'} {kind}?", right, wrong


def _asked(question: str, options: list[str]) -> str:
    return "".join([f"Question: {question}\n", *(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=True)), "Answer:"])


def _placed(right: str, wrong: list[str], place: int) -> list[str]:
    return [*wrong[:place], right, *wrong[place:]]


def items(rng: np.random.Generator, answer: str = "given") -> Iterator[Item]:
    """A question with four options behind four solved ones; the letter of the right option comes next, and not the other three.

    "Question: The hat is red. What color is the hat?", "A. blue", "B. red", … "Answer:" → " B". Corrupted, two options change places, so that another
    letter is right. `answer`: `given` in the question, or `known` to the model, for which kind of thing a word is. Right letters, and pairs of right and
    corrupted letters, are balanced: twelve items in a row have each pair once. The four examples have each letter once. Small models cannot do it.
    """
    draw = _given if answer == "given" else _known
    pairs = [(place, other) for place in range(4) for other in range(4) if place != other]
    while True:
        for place, other in drawn(rng, pairs, len(pairs)):
            front = ""
            for shown in drawn(rng, range(4), 4):
                question, right, wrong = draw(rng)
                front += f"{_asked(question, _placed(right, wrong, shown))} {LETTERS[shown]}\n\n"
            question, right, wrong = draw(rng)
            options = _placed(right, wrong, place)
            changed = list(options)
            changed[place], changed[other] = options[other], options[place]
            wrong_letters = tuple(f" {letter}" for letter in LETTERS if letter != LETTERS[place])
            facts = {"letter": LETTERS[place], "corrupted_letter": LETTERS[other]}
            yield Item(front + _asked(question, options), front + _asked(question, changed), (f" {LETTERS[place]}",), wrong_letters, answer, facts)


TASK = Task(
    name="multiple_choice",
    metric="logit_difference",
    items=items,
    source="after Lieberum et al. 2023, Does circuit analysis interpretability scale?, arXiv 2307.09458",
    options={"answer": ("given", "known")},
)
