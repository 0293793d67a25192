"""How is a circuit shown in a terminal? Its heads, its edges, and how far to believe them."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from workbench.cli import show

if TYPE_CHECKING:
    import pandas as pd

    from workbench.circuits.circuit import Circuit

SHOWN = 15
"""Rows of heads and of edges on the page; the file has all."""


def circuit_page(made: "Circuit", written: list[Path]) -> None:
    """A circuit: heads, edges, faithfulness on held-out prompts, agreement, and the files that were written."""
    facts = made.provenance
    right = facts.get("accuracy", {})
    said = ", ".join(f"{name} {value:.0%}" for name, value in right.items())
    show.result(f"{made.card.name}, {made.task}: {len(made.heads)} heads by {facts.get('method', '?')} (accuracy: {said})")
    names = {str(head) for head in made.heads}
    inside = made.effects[made.effects["head"].isin(names)].head(SHOWN)
    heading = (
        "codes of clean prompts only, below 0; nothing is intervened on" if facts.get("method") == "codes" else "change of the metric without what they do"
    )
    show.result("", f"heads: {heading}", page_table(inside))
    for name, agreed in facts.get("agreement", {}).items():
        show.result(f"rank agreement with {name}: Spearman {_number(agreed['spearman'])}, {agreed['top10_overlap']:.0%} of the first ten")
    if len(made.edges):
        missed = facts.get("edges_missed", {})
        told = f"; of {missed['sampled']} others drawn, {missed['rate']:.0%} matter (up to {missed['high']:.0%})" if missed.get("sampled") else ""
        show.result(
            "",
            f"edges, measured on held-out prompts{told}",
            page_table(made.edges.sort_values("exact", key=abs, ascending=False).head(SHOWN).drop(columns=["chosen", "n"])),
        )
    show.result("", "on held-out prompts (heads, all positions; MLPs stay)", by_ablation(made.faithfulness))
    area = facts.get("held_out", {})
    if area.get("cpr") is not None:
        show.result(f"over the share of heads kept: CPR {area['cpr']:.2f}, CMD {area['cmd']:.2f}")
    for path in written:
        show.remark(f"written: {path}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def by_ablation(table: "pd.DataFrame") -> Table:
    """What `faithfulness.evaluate` measured, a column for each ablation."""
    from workbench.views.circuit_tables import faithfulness_table

    return page_table(faithfulness_table(table))


def page_table(frame: "pd.DataFrame") -> Table:
    """A table of results: three digits, – for what is not known."""
    made = show.table(*map(str, frame.columns), numbers=tuple(str(name) for name in frame.columns if frame[name].dtype.kind in "fiu"))
    for row in frame.itertuples(index=False):
        made.add_row(*map(_cell, row))
    return made


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and isnan(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
