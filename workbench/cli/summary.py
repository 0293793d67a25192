"""What came out of a run? The same facts as a page to read and as data for machines."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from workbench.cli import show
from workbench.files import write_file
from workbench.labels import HeadLabels
from workbench.rules import rule_text
from workbench.scores import HeadScores
from workbench.views import evidence_lines, evidence_text

STRONGEST, RAREST = 10, 2


def as_text(scores: HeadScores, labels: HeadLabels, files: Mapping[str, Path], seconds: float) -> None:
    """Show on stdout how many heads there are of each kind, the strongest, the evidence, and where the files lie."""
    strongest = (*_strongest(scores, labels), "") if scores.probes else ()
    show.result(_heading(labels), "", _kinds(labels), "", *strongest, *_evidence(scores), "")
    show.result(*(f"{name.replace('_', ' '):10}{path}" for name, path in files.items()), f"took      {seconds:.0f} s")


def as_data(scores: HeadScores, labels: HeadLabels, files: Mapping[str, Path], seconds: float) -> dict[str, Any]:
    """The same as plain data."""
    top = (
        {"probe": (probe := main_probe(scores)), "heads": scores.top(STRONGEST, probe).drop(columns=["model", "probe"]).to_dict("records")}
        if scores.probes
        else {}
    )
    return {
        **scores.facts,
        **{name: str(path) for name, path in files.items()},
        "heads": len(labels.labels),
        "counts": labels.counts(),
        "top": top,
        "seconds": round(seconds, 1),
    }


def main_probe(scores: HeadScores) -> str:
    """The probe whose strongest heads are shown: retrieval if it was scored, else the first."""
    return "retrieval" if "retrieval" in scores.probes else scores.probes[0]


def _heading(labels: HeadLabels) -> Text:
    shape, made = labels.card.shape, labels.provenance
    run = ", ".join(f"{name} {made[name]}" for name in ("preset", "seed", "dtype", "device") if name in made)
    sizes = f"{shape.n_layers} layers × {shape.n_heads} query heads ({shape.n_kv_heads} KV heads)"
    return Text.assemble((labels.card.name, "bold"), f": {sizes}, fingerprint {labels.card.fingerprint}\n{run}")


def _kinds(labels: HeadLabels) -> Table:
    total = len(labels.labels)
    table = show.table("kind of head", "heads", "share", "rule", numbers=("heads", "share"))
    for name, count in sorted(labels.counts().items(), key=lambda item: -item[1]):
        table.add_row(name, str(count), f"{count / total:.1%}", rule_text(labels.rules[name]) if name in labels.rules else "")
    table.add_row("none of these", str(none := sum(not names for names in labels.labels.values())), f"{none / total:.1%}", "", style="dim")
    return table


def _strongest(scores: HeadScores, labels: HeadLabels) -> tuple[Text, Table]:
    probe, counts = main_probe(scores), labels.counts()
    table = show.table("head", "score", "95% interval", "null", "is also", numbers=("score", "95% interval", "null"))
    by_name = {str(head): names for head, names in labels.labels.items()}
    for _, row in scores.top(STRONGEST, probe).iterrows():
        interval = f"{row.ci_low:.3f} – {row.ci_high:.3f}" if pd.notna(row.ci_low) else "one sample"
        others = sorted(set(by_name[row["name"]]) - {probe}, key=lambda name: (counts[name], name))
        more = f" and {len(others) - RAREST} more" if len(others) > RAREST else ""
        null = f"{row.null:.3f}" if pd.notna(row.null) else ""
        table.add_row(row["name"], f"{row.score:.3f}", interval, null, ", ".join(others[:RAREST]) + more)
    return Text(f"The strongest by {probe}, with their rarest other kinds", style="bold"), table


def _evidence(scores: HeadScores) -> tuple[Text, Table]:
    table = show.table("probe", "evidence", header=False)
    for name, words in evidence_lines(scores.evidence).items():
        lacking = scores.evidence.get(name, {}).get("status", "ok") != "ok"
        table.add_row(name, words, style="bold red" if lacking else "")
    return Text("Evidence", style="bold"), table


def scores_as_text(scores: HeadScores, out: Path | None, agreement: bool) -> None:
    """Show the agreement of the probes, or where the table lies, or the table itself as CSV."""
    lacking = [name for name, facts in scores.evidence.items() if facts.get("status") != "ok"]
    for name in lacking:
        show.remark(f"{name}: {evidence_text(scores.evidence[name])}", style="bold red")
    if agreement:
        frame = scores.agreement()
        table = show.table(*frame.columns, numbers=tuple(frame.columns[2:]))
        for _, row in frame.sort_values("spearman", ascending=False).iterrows():
            table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
        show.result(table)
    if out is not None:
        show.result(f"scores  {out}")
    elif not agreement:
        show.result(scores.table.to_csv(index=False).rstrip())


def scores_as_data(scores: HeadScores, out: Path | None, agreement: bool, seconds: float) -> dict[str, Any]:
    """The table (or, with `out`, where it lies), and on demand the agreement, as plain data."""
    return {
        **scores.facts,
        **({"scores": str(out)} if out is not None else {"rows": scores.table.to_dict("records")}),
        **({"agreement": scores.agreement().to_dict("records")} if agreement else {}),
        "seconds": round(seconds, 1),
    }


def _save_csv(scores: HeadScores, out: Path) -> Path:
    return write_file(out, lambda part: scores.table.to_csv(part, index=False))


TABLES: dict[str, Callable[[HeadScores, Path], Path]] = {".parquet": HeadScores.save, ".csv": _save_csv}
"""How a table of scores is written, by the ending of its name; Parquet also holds evidence and provenance."""
