"""What will a sweep take? Tasks, memory and hours of each model, by arithmetic from its configuration; no weights are loaded."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from workbench.errors import InputError
from workbench.executors import Wanted
from workbench.models import choose_device, choose_dtype
from workbench.plan import Estimate, Pass, estimate, passes_of, size_of, sketch
from workbench.sources import locate
from workbench.sweeping.asking import Cell, Sweep

COLUMNS = {
    "model": "the model, with its revision, device and precision where given",
    "cells": "models × prompts × seeds × edits that are not finished",
    "tasks": "batches of prompts, and two more for each cell: to cut it, and to put its scores together",
    "tokens": "through the model, in millions",
    "gib": "memory of a worker that runs it, GiB",
    "hours": "of one worker; edits, which some probes pay for with as much again, and loading are not counted",
}
"""What the columns of a plan mean."""


def planned(sweep: Sweep, finished: set[str], device: str | None = None, say: Callable[[str], None] = lambda _: None) -> pd.DataFrame:
    """One row per model (`COLUMNS`) of what is not finished, for workers with that kind of `device` (by default this machine's).

    Right within a factor of about two. Models that cannot be found, and prompts that do not fit one, are left out, and `say` is told why. Raises the
    `InputError` if all is left out, and nothing was finished.
    """
    rows, reasons, cells = [], [], list(sweep.cells())
    for wanted in sweep.models:
        left = [cell for cell in cells if cell.wanted == wanted and cell.fingerprint not in finished]
        try:
            row, unfit = _row(wanted, left, device, say)
        except InputError as error:
            row, unfit = None, {wanted.words: error}
        rows += [row] * (row is not None)
        reasons += unfit.values()
        for what, error in unfit.items():
            say(f"the plan leaves out {what}: {error}")
    if reasons and not any(row["cells"] for row in rows) and not any(cell.fingerprint in finished for cell in cells):
        raise reasons[0]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(wanted: Wanted, cells: list[Cell], device: str | None, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, InputError]]:
    """The row of a model, and why which of its prompts are not in it."""
    kind = choose_device(wanted.device).type if device is None else device
    precision = choose_dtype(wanted.dtype, torch.device(kind)).itemsize
    sketched = sketch(locate(wanted.name, revision=wanted.revision, say=say))
    size, count, tasks, seconds, tokens, memory = size_of(sketched), 0, 0, 0.0, 0, 0.0
    known: dict[str, tuple[list[Pass], Estimate]] = {}
    unfit: dict[str, InputError] = {}
    for cell in cells:
        what = f"{wanted.words}, {cell.prompts}"
        if cell.prompts not in known and what not in unfit:  # which seeds and edits do not change
            try:
                passes = passes_of(sketched, cell.asked.groups)
            except InputError as error:
                unfit[what] = error
                continue
            known[cell.prompts] = passes, estimate(size, passes, device=kind, dtype_bytes=precision)
        if cell.prompts in known:
            passes, cost = known[cell.prompts]
            count, tasks = count + 1, tasks + 2 + len(passes) + sum(group.recipe is None for group in cell.asked.groups)
            seconds, tokens, memory = seconds + cost.seconds, tokens + cost.tokens, max(memory, cost.bytes)
    row = (wanted.words, count, tasks, tokens / 1e6, memory / 2**30, seconds / 3600)
    return dict(zip(COLUMNS, row, strict=True)), unfit
