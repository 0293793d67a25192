"""How is a report given to others? As a folder that opens in any browser without a server: the page, figures, tables, and the results themselves."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

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
        total = sum(len(content) for group in (page, *groups.values()) for content in group.values())
        if total <= most:
            break
        if not groups:
            raise InputError(f"the page alone has {total / 10**6:.1f} MB, more than the {most / 10**6:g} MB that a shared folder may have")
        name, group = groups.popitem()
        left_out.append(f"{name} ({KINDS[name]}), {sum(map(len, group.values())) / 10**6:.1f} MB, as the folder would have {total / 10**6:.1f} MB with them")
    every = {name: content for group in (page, *groups.values()) for name, content in group.items()}
    paths = [write_file(target / name, lambda part, content=content: part.write_bytes(content)) for name, content in every.items()]
    return Shared(target, tuple(paths), total, tuple(left_out))


def _groups(report: Report, results: Results, say: Callable[[str], None]) -> tuple[dict[str, dict[str, bytes]], list[str]]:
    """The files of each of `KINDS` by name, in that order, and what cannot be made."""
    figures, tables = list(report.pictures()), {table.name: table.rows for table in report.tables()}
    tables |= {result.name.rpartition(".")[0]: result.value for result in results.of("table")}
    left_out: list[str] = []
    groups: dict[str, dict[str, bytes]] = {
        "results as JSON": {f"results/{_file(result.name)}": _json(result.value) for result in results.of("labels", "circuit")},
        "tables as Parquet": {},
        "figures as SVG": {f"figures/{_file(picture.name)}.svg": picture.svg.encode() for picture in figures},
        "figures as HTML": {f"figures/{_file(picture.name)}.html": figure_page(picture, report).encode() for picture in figures},
        "tables as CSV": {f"tables/{_file(name)}.csv": table_bytes(rows) for name, rows in tables.items()},
    }
    for name, rows in tables.items():
        try:
            groups["tables as Parquet"][f"tables/{_file(name)}.parquet"] = table_bytes(rows, ".parquet")
        except InputError as error:
            left_out.append(f"{name}.parquet, as {error}")
    try:
        say(f"drawing {len(figures)} pictures")
        made = pictures([drawn(picture.svg) for picture in figures])
        groups["figures as PNG"] = {f"figures/{_file(picture.name)}.png": content for picture, content in zip(figures, made, strict=True)}
    except InputError as error:
        left_out.append(f"figures as PNG: {error}")
    return groups, left_out


def _json(value: HeadLabels | Circuit) -> bytes:
    return (json.dumps(value.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _links(groups: dict[str, dict[str, bytes]]) -> dict[str, dict[str, str]]:
    """By the name of a figure or table, its files by their endings."""
    links: dict[str, dict[str, str]] = {}
    for path in _paths(groups):
        if not path.startswith("results/"):
            stem, _, ending = path.partition("/")[2].rpartition(".")
            links.setdefault(stem, {})[ending] = path
    return links


def _paths(groups: dict[str, dict[str, bytes]]) -> Iterator[str]:
    return (path for group in groups.values() for path in group)


def _file(name: str) -> str:
    """A name that any file system takes: whatever else a file says its probes are called."""
    return "".join(letter if letter.isalnum() or letter in "._-+" else "_" for letter in name).lstrip(".") or "_"
