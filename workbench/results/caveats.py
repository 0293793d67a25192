"""What must a reader know before believing a number? One sentence each, made only where the data call for it."""

from collections.abc import Iterable
from dataclasses import dataclass

from workbench.errors import unknown

LEVELS = {
    "stop": "Do not use",
    "care": "Take care",
    "know": "Good to know",
}
"""How much a caveat matters: numbers that do not belong together or are missing; numbers that may well be otherwise; how they were made."""

SHOWN = 8
"""How many names a caveat lists before it only counts."""


@dataclass(frozen=True)
class Caveat:
    """One sentence that the data call for, how much it matters (`LEVELS`), and `about` which result it is. Raises `InputError` for another level."""

    level: str
    about: str
    text: str

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise unknown("level", self.level, LEVELS)


def ordered(caveats: Iterable[Caveat]) -> list[Caveat]:
    """What matters most first, otherwise in the order given, each sentence once."""
    order = list(LEVELS)
    return sorted(dict.fromkeys(caveats), key=lambda caveat: order.index(caveat.level))


def listed(names: Iterable[object]) -> str:
    """Some names as text: all of up to `SHOWN`, else the first and how many more."""
    every = list(map(str, names))
    return ", ".join(every) if len(every) <= SHOWN else f"{', '.join(every[:SHOWN])} and {len(every) - SHOWN} more"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 head, 2 heads."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def sentence(text: str) -> str:
    """A text with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."
