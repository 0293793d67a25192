"""Which argument is described next? Docstrings of Python functions."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import NOUNS, drawn, listed

ARGUMENTS = listed(
    "load size files last page order user name date value index path data text width height color state title label level limit count key image event "
    "result field option item list node model table group target source parent version status method type code line model port token test time url "
    "content message object number shape space start style table task unit user weight"
)
METHODS = listed("port load run get set make find read call test send build check close open move parse print render save show sort start stop update write")


def _function(method: str, arguments: list[str], described: list[str], words: list[str]) -> str:
    lines = [f"    :param {name}: {words[3 + 2 * place]} {words[4 + 2 * place]}\n" for place, name in enumerate(described)]
    head = f'\n\ndef {method}(self, {", ".join(arguments)}):\n    """{" ".join(words[:3])}\n\n'
    return head + "".join(lines) + "    :param"


def items(rng: np.random.Generator, corruption: str = "random_random") -> Iterator[Item]:
    """A function has six arguments, its docstring describes the third and the fourth; the fifth comes next.

    `def port(self, oil, last, load, size, files, order)` with `:param load: …`, `:param size: …`, `:param` → " files", and not one of the other five.
    `corruption`: `random_random` puts other names in place of the three in the definition, and still others in the docstring; `random_def` and
    `random_doc` do one of the two.
    """
    names = tuple(dict.fromkeys(ARGUMENTS))
    while True:
        method, *fresh = drawn(rng, METHODS, 1) + drawn(rng, names, 11)
        before, matching, after, other, others = fresh[:2], fresh[2:5], fresh[5:6], fresh[6:9], fresh[9:]
        words = drawn(rng, NOUNS, 7)
        inside = matching if corruption == "random_doc" else other
        described = matching[:2] if corruption == "random_def" else others
        clean = _function(method, [*before, *matching, *after], matching[:2], words)
        corrupted = _function(method, [*before, *inside, *after], described, words)
        wrong = tuple(f" {name}" for name in (*before, *matching[:2], *after))
        yield Item(clean, corrupted, (f" {matching[2]}",), wrong, "3 of 6", {"method": method})


TASK = Task(
    name="docstring",
    metric="logit_difference",
    items=items,
    source="Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer",
    options={"corruption": ("random_random", "random_def", "random_doc")},
)
