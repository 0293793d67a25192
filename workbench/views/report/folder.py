"""How is a report given to others? As a folder that opens in any browser without a server: the page, figures, tables, and the results themselves."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

from workbench.circuits.circuit import Circuit
from workbench.errors import InputError
from workbench.files import write_file
from workbench.labels import HeadLabels
from workbench.results import Results
from workbench.views.export import drawn, pictures, table_bytes
from workbench.views.report.figure_page import figure_page
from workbench.views.report.markdown import markdown
from workbench.views.report.page import report_page
from workbench.views.report.parts import Report

MOST_SHARED = 10 * 10**6
"""Bytes of a folder that is shared."""

KINDS = {
    "results as JSON": "labels and circuits, which `workbench` reads",
    "tables as Parquet": "all rows",
    "figures as SVG": "drawings, which the page has inside as well",
    "figures as HTML": "a page for each; maps tell heads on hovering",
    "tables as CSV": "the same rows as Parquet",
    "figures as PNG": "the same drawings as pictures",
}
"""What a folder has beside the page, in the order in which it is kept where there is not room for all."""


Thing = TypeVar("Thing")
Group = dict[str, tuple[str, bytes]]
"""Files by their paths: what each is called in the report, and its content."""

Groups = dict[str, Group]


@dataclass(frozen=True)
class Shared:
    """A folder that was written: its files, its bytes, and what was left out and why."""

    folder: Path
    files: tuple[Path, ...]
    size: int
    left_out: tuple[str, ...]


def share(report: Report, results: Results, folder: str | Path, most: int = MOST_SHARED, say: Callable[[str], None] = lambda _: None) -> Shared:
    """Write the report as a folder of at most `most` bytes; what has no room is left out, and the page and the answer say so.

    Raises `InputError` for a folder that has something in it, and if even the page alone is larger.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} has something in it; name a folder that is new or empty")
    groups, left_out = _groups(report, results, say)
    while True:
        told = replace(report, words=(*report.words, *(f"Left out of this folder: {words}." for words in left_out)))
        page = {"index.html": report_page(told, _links(groups)).encode(), "report.md": markdown(told).encode()}
        total = sum(map(len, page.values())) + sum(map(_size, groups.values()))
        if total <= most:
            break
        if not groups:
            raise InputError(f"the page alone has {total / 10**6:.1f} MB, more than the {most / 10**6:g} MB that a shared folder may have")
        name, group = groups.popitem()
        left_out.append(f"{name} ({KINDS[name]}), {_size(group) / 10**6:.1f} MB, as the folder would have {total / 10**6:.1f} MB with them")
    every = page | {path: content for group in groups.values() for path, (_, content) in group.items()}
    paths = [write_file(target / name, lambda part, content=content: part.write_bytes(content)) for name, content in every.items()]
    return Shared(target, tuple(paths), total, tuple(left_out))


def _groups(report: Report, results: Results, say: Callable[[str], None]) -> tuple[Groups, list[str]]:
    """The files of each of `KINDS`, in that order, and what cannot be made."""
    figures = [(picture, section, name) for (section, picture), name in _named(report.pictures(), lambda pair: pair[1].name)]
    rows = [(table.name, table.rows) for table in report.tables()] + [(result.name.rpartition(".")[0], result.value) for result in results.of("table")]
    tables = [(*pair, name) for pair, name in _named(rows, lambda pair: pair[0])]
    values = [(result.value, name) for result, name in _named(results.of("labels", "circuit"), lambda result: result.name)]
    left_out: list[str] = []
    groups: Groups = {
        "results as JSON": {f"results/{name}": ("", _json(value)) for value, name in values},
        "tables as Parquet": {},
        "figures as SVG": {f"figures/{name}.svg": (picture.name, picture.svg.encode()) for picture, _, name in figures},
        "figures as HTML": {f"figures/{name}.html": (picture.name, figure_page(picture, section, report).encode()) for picture, section, name in figures},
        "tables as CSV": {f"tables/{name}.csv": (called, table_bytes(table)) for called, table, name in tables},
    }
    for called, table, name in tables:
        try:
            groups["tables as Parquet"][f"tables/{name}.parquet"] = (called, table_bytes(table, ".parquet"))
        except InputError as error:
            left_out.append(f"{name}.parquet, as {error}")
    try:
        say(f"drawing {len(figures)} pictures")
        made = pictures([drawn(picture.svg) for picture, *_ in figures])
        groups["figures as PNG"] = {f"figures/{name}.png": (picture.name, content) for (picture, _, name), content in zip(figures, made, strict=True)}
    except InputError as error:
        left_out.append(f"figures as PNG: {error}")
    return groups, left_out


def _size(group: Group) -> int:
    return sum(len(content) for _, content in group.values())


def _json(value: HeadLabels | Circuit) -> bytes:
    return (json.dumps(value.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _links(groups: Groups) -> dict[str, dict[str, str]]:
    """By the name of a figure or table, its files by their endings."""
    links: dict[str, dict[str, str]] = {}
    for group in groups.values():
        for path, (called, _) in group.items():
            if called:
                links.setdefault(called, {})[path.rpartition(".")[2]] = path
    return links


def _named(things: Iterable[Thing], name_of: Callable[[Thing], str]) -> Iterator[tuple[Thing, str]]:
    """Each with a name that any file system takes, whatever a file says its probes are called; no two have the same."""
    taken: set[str] = set()
    for thing in things:
        plain = "".join(letter if letter.isalnum() or letter in "._-+" else "_" for letter in name_of(thing)).lstrip(".") or "_"
        name = next(name for name in chain([plain], (f"{plain}-{number}" for number in count(2))) if name.lower() not in taken)
        taken.add(name.lower())
        yield thing, name
