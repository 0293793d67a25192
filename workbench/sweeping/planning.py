"""What will a sweep take? Tasks, memory and hours of each model, by arithmetic from its configuration; no weights are loaded."""

from collections.abc import Callable

import pandas as pd
import torch

from workbench.models import choose_device, choose_dtype
from workbench.plan import Estimate, Pass, estimate, passes_of, size_of, sketch
from workbench.sources import locate
from workbench.sweeping.asking import Sweep

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

    Right within a factor of about two. Raises `InputError` for models that cannot be found, and prompts that do not fit them.
    """
    rows = []
    for wanted in sweep.models:
        cells = [cell for cell in sweep.cells() if cell.wanted == wanted and cell.fingerprint not in finished]
        kind = choose_device(wanted.device).type if device is None else device
        precision = choose_dtype(wanted.dtype, torch.device(kind)).itemsize
        sketched = sketch(locate(wanted.name, revision=wanted.revision, say=say))
        size, tasks, seconds, tokens, memory = size_of(sketched), 0, 0.0, 0, 0.0
        known: dict[str, tuple[list[Pass], Estimate]] = {}
        for cell in cells:
            if cell.prompts not in known:  # which seeds and edits do not change
                passes = passes_of(sketched, cell.asked.groups)
                known[cell.prompts] = passes, estimate(size, passes, device=kind, dtype_bytes=precision)
            passes, cost = known[cell.prompts]
            tasks += 2 + len(passes) + sum(group.recipe is None for group in cell.asked.groups)
            seconds, tokens, memory = seconds + cost.seconds, tokens + cost.tokens, max(memory, cost.bytes)
        row = (wanted.words, len(cells), tasks, tokens / 1e6, memory / 2**30, seconds / 3600)
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=list(COLUMNS))
