"""What every benchmark ends with: a table as Markdown and CSV, with the machine, the versions and the command behind it."""

import os
import platform
import sys
from pathlib import Path

import pandas as pd
import torch

from workbench.files import write_text
from workbench.runs import versions


def machine() -> str:
    """The processor that did the work."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {platform.machine()} CPU"


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell) for cell in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def made() -> str:
    """The command, the machine and the versions."""
    command = " ".join(Path(word).name if word.startswith("/") else word for word in sys.argv)
    return f"Made by `python {command}` on {machine()}; " + ", ".join(f"{name} {version}" for name, version in versions().items()) + "."


def write_report(out: Path, title: str, remarks: list[str], table: pd.DataFrame, rows: pd.DataFrame | None = None, digits: int = 3) -> None:
    """OUT.md with the table and what it stands on; OUT.csv with the rows behind it (the table itself if there are none)."""
    write_text(out.with_suffix(".md"), "\n\n".join([f"# {title}", *remarks, markdown(table, digits), made()]) + "\n")
    write_text(out.with_suffix(".csv"), (table if rows is None else rows).to_csv(index=False))
