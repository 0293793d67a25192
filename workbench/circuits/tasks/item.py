"""What is a behaviour, as data? A pair of prompts, one of which shows it, and what may come next."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.errors import InputError, unknown

METRICS = ("logit_difference", "probability_difference", "log_probability", "kl")
"""How well the right answers do against the wrong ones; `Pairs.measure` defines them."""


@dataclass(frozen=True)
class Item:
    """A prompt `clean` that shows a behaviour, a prompt `corrupted` that does not, both ending where the answer comes.

    `right` and `wrong` are the texts that may come next behind the clean prompt, with the space in front of them if there is one: (" Mary",), (" John",).
    `template` names the form of the prompt, so that whole forms can be held out. `facts` are what else is known (a relation, say). `where` tells in which
    line of which file the item stands. Raises `InputError` for an empty prompt or answer and for one that is both right and wrong.
    """

    clean: str
    corrupted: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    template: str = ""
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)
    where: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        place = f"{self.where}: " if self.where else ""
        if not (self.clean.strip() and self.corrupted.strip()):
            raise InputError(f"{place}'clean' and 'corrupted' are prompts that are not empty")
        if not (self.right and self.wrong and all(self.right) and all(self.wrong)):
            raise InputError(f"{place}'right' and 'wrong' hold at least one answer each, none of them empty")
        if both := sorted({*self.right} & {*self.wrong}):
            raise InputError(f"{place}the answer {both[0]!r} is both right and wrong")


Keep = Callable[[Any, Sequence[Item]], list[str]]
"""Which items are kept: from a model and items, for each item an empty text, or the reason why it is dropped."""


@dataclass(frozen=True, eq=False)
class Task:
    """A behaviour that ships with the package: `items(rng, **options)` draws pairs of prompts without end.

    `metric` is `logit_difference` or `probability_difference`. `source` is the paper. `options` holds for each option its values, the first of which is
    the default. `keep` tells which items are of use to a model, where that is more than a matter of tokens. `instead` names a task for models whose
    tokens do not fit. The items of a `sized` task take `size` as well, which counts the tokens of a text, and choose words by it.
    """

    name: str
    metric: str
    items: Callable[..., Iterator[Item]]
    source: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: Keep | None = None
    instead: str = ""
    sized: bool = False

    def __post_init__(self) -> None:
        if not self.about:
            raise ValueError(f"the items of {self.name} need a docstring: its first line is what users see")

    @property
    def about(self) -> str:
        """What the prompts are, what is right, and how they are corrupted."""
        return inspect.getdoc(self.items) or ""

    @property
    def title(self) -> str:
        """The first line of `about`."""
        return self.about.splitlines()[0]

    def chosen(self, text: str) -> dict[str, str]:
        """The options of a text such as `relation=capital,format=coherent`. Raises `InputError` for unknown ones, listing those that exist."""
        found: dict[str, str] = {}
        for part in text.split(",") if text else ():
            name, equals, value = part.partition("=")
            if name not in self.options:
                if not self.options:
                    raise InputError(f"the task {self.name} has no options, got {part!r}")
                raise unknown(f"option of the task {self.name}:", name, self.options)
            if not equals or name in found:
                raise InputError(f"options of the task {self.name} are written once each, as {name}={self.options[name][0]}; got {text!r}")
            if value not in self.options[name]:
                raise unknown(f"{name} of the task {self.name}:", value, self.options[name])
            found[name] = value
        return found

    def draw(self, seed: int, text: str = "", size: Callable[[str], int] | None = None) -> Iterator[Item]:
        """Items without end, the same for the same seed and options, and for the same `size` if the task is `sized`. Raises as `chosen` does."""
        sized = {"size": size} if self.sized and size else {}
        return self.items(np.random.default_rng(seed), **self.chosen(text), **sized)
