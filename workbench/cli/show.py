"""How does the command line speak? Results on stdout, remarks and progress on stderr, JSON for machines."""

import json
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from workbench import jobs

AGAIN = 30.0
"""Seconds after which a kind of task that is still going on is said again, where there is no terminal."""


def _console() -> Console:
    """Stdout: as wide as the terminal, or 100 characters elsewhere."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=100)


def width() -> int:
    """How many characters a line of the results may have."""
    return _console().width


def result(*parts: RenderableType) -> None:
    """Show results on stdout. Strings are taken as they are, without markup or wrapping; tables and texts fit the width."""
    console = _console()
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def remark(text: str, style: str = "") -> None:
    """Say something on stderr that is no result."""
    Console(stderr=True, highlight=False, markup=False, emoji=False).print(text, style=style, soft_wrap=True)


def as_json(data: Any) -> None:
    """Print one JSON object on stdout; what is not a finite number becomes null."""
    typer.echo(json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False))


def table(*columns: str, numbers: tuple[str, ...] = (), header: bool = True) -> Table:
    """An empty table without lines; the columns named in `numbers` are aligned to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=header)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=column in numbers)
    return made


@contextmanager
def progress() -> Generator[Callable[[str, int, int], None]]:
    """A function to call with what is done, how many tasks of how many: a bar on a terminal, else a line per kind of task; a job's also goes to its folder."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)


def hush_libraries() -> None:
    """Keep transformers' progress bars and warnings off stderr."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class _Lines:
    """Says each kind of task when its first part is done, and again every `AGAIN` seconds."""

    def __init__(self) -> None:
        self._said, self._when = "", 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        jobs.report(what, done, total)
        now = time.monotonic()
        if what != self._said or now - self._when >= AGAIN:
            remark(f"[{done}/{total}] {what}")
            self._said, self._when = what, now


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
