"""What is a report made of? Sections of words, pictures, tables and cards, which a page, a Markdown file and a folder are made from alike."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from workbench.results import Caveat

SHOWN = 30
"""Rows of a table that a page shows; the files of a folder have all."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing with a caption; `name` is that of its files. `canvas` makes the message of `views.canvas` from which a browser draws a map to hover over."""

    name: str
    svg: str
    caption: str
    canvas: Callable[[], bytes] | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """Rows with a caption; a page shows the first `SHOWN` of `shown` (the rows themselves by default), files have all `rows`."""

    name: str
    rows: pd.DataFrame
    caption: str
    shown: pd.DataFrame | None = None

    @property
    def page(self) -> pd.DataFrame:
        """The rows that a page shows."""
        rows = (self.rows if self.shown is None else self.shown).head(SHOWN)
        whole = [name for name in rows if rows[name].dtype.kind == "f" and len(rows) and (rows[name].dropna() % 1 == 0).all()]
        return rows.astype(dict.fromkeys(whole, "Int64"))

    @property
    def left(self) -> int:
        """How many rows the page leaves out."""
        return len(self.rows if self.shown is None else self.shown) - len(self.page)


@dataclass(frozen=True, eq=False)
class Card:
    """A small unit that stands beside others of its kind: a title, words, pictures."""

    title: str
    words: tuple[str, ...]
    pictures: tuple[Picture, ...]


Block = Picture | Table | Card

Told = tuple[str, tuple[str, ...], tuple[Block, ...], str]
"""What a table is made into: title, words, blocks, and the sentence of what came out."""


@dataclass(frozen=True, eq=False)
class Section:
    """One result: a title, words, the blocks that show it, the caveats that it calls for, and what came out `in_short`, a sentence.

    `text` is a drawing in letters, for files without pictures; `sources` are the names of the files that it shows.
    """

    title: str
    words: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    caveats: tuple[Caveat, ...] = ()
    in_short: str = ""
    text: str = ""
    sources: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """The title as a place of the page."""
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


@dataclass(frozen=True, eq=False)
class Report:
    """A whole report: title, what is told first, sections, and what made each file by its name."""

    title: str
    words: tuple[str, ...]
    sections: tuple[Section, ...]
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def caveats(self) -> list[Caveat]:
        """Those of all sections."""
        return [caveat for section in self.sections for caveat in section.caveats]

    def pictures(self) -> Iterator[tuple[Section, Picture]]:
        """Every picture with its section, in order."""
        for section in self.sections:
            for block in section.blocks:
                found = block.pictures if isinstance(block, Card) else (block,) if isinstance(block, Picture) else ()
                yield from ((section, picture) for picture in found)

    def made_from(self, section: Section) -> dict[str, str]:
        """What made the files of a section."""
        return {name: self.provenance[name] for name in section.sources if name in self.provenance}

    def tables(self) -> Iterator[Table]:
        """Every table, in order."""
        return (block for section in self.sections for block in section.blocks if isinstance(block, Table))


def cell(value: Any) -> str:
    """A value as a table shows it: three digits behind the point, – for what is not known."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if pd.isna(value):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int) else str(value)
