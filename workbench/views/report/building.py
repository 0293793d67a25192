"""Which sections does a report have? One for each result that is there and can be read; the last says of all others why not."""

from dataclasses import replace

import pandas as pd

from workbench.heads import ModelCard
from workbench.results import LEVELS, Result, Results
from workbench.results.caveats import counted
from workbench.results.reading import TABLES, WORDS
from workbench.scores import HeadScores
from workbench.views.report.circuits import circuit_section
from workbench.views.report.labels import labels_section, scores_section, scores_table
from workbench.views.report.parts import Report, Section, Table
from workbench.views.report.tables import run_section, table_section

MADE_BY = {
    "labels": "`workbench label`",
    "scores": "`workbench score --out scores.parquet`",
    "circuit": "`workbench circuit find`",
    "needles": "`benchmarks/needle_ablation.py`",
    "recall": "`workbench needle`",
    "policies": "`workbench verify`",
    "search": "`workbench calibrate`",
    "held_out": "`workbench calibrate`",
    "ph3": "`workbench ph3`",
    "presets": "`benchmarks/presets.py`",
}
"""Where each kind of result comes from."""


SHOWN = ("labels", "scores", "circuit", "run", *TABLES)
"""The kinds of results that have sections."""


def report_of(results: Results) -> Report:
    """The report of all results of a place: labels first, those with the most scores before others, then scores, circuits, tables, and the list of files."""
    labels = sorted(results.of("labels"), key=lambda result: -len(result.value.scores))
    scores = results.first("scores")
    sections = [labels_section(result.value, scores, result.name, "" if result is labels[0] else f"{_stem(result)}_") for result in labels]
    if labels and scores is not None:
        sections[0] = _with_scores(sections[0], scores, results.of("scores")[0].name)
    sections += [scores_section(result.value, result.name) for result in results.of("scores") if not labels]
    sections += [circuit_section(result.value, result.name) for result in results.of("circuit")]
    sections += [run_section(result.value, result.name) for result in results.of("run")]
    sections += [table_section(result, scores) for kind in TABLES for result in results.of(kind)]
    cards = [result.value.card for result in (*labels, *results.of("scores", "circuit"))]
    return Report(_title(results, cards), tuple(_words(results, cards, sections)), (*sections, _files(results)), _provenance(results))


def _with_scores(section: Section, scores: HeadScores, name: str) -> Section:
    return replace(section, blocks=(*section.blocks, scores_table(scores)), sources=(*section.sources, name))


def _stem(result: Result) -> str:
    return result.name.rpartition(".")[0]


def _title(results: Results, cards: list[ModelCard]) -> str:
    return f"{cards[0].name}: what its attention heads do" if cards else f"Results: {results.title}"


def _words(results: Results, cards: list[ModelCard], sections: list[Section]) -> list[str]:
    words = [results.remark] if results.remark else []
    if cards:
        card = cards[0]
        words.append(f"{card.name}, from {card.origin}{f' ({card.revision})' if card.revision else ''}, fingerprint {card.fingerprint or 'unknown'}.")
        if others := {f"{other.name} ({other.fingerprint or 'unknown'})" for other in cards if other.fingerprint != card.fingerprint}:
            words.append(f"Not all results are of this model; of others: {', '.join(sorted(others))}.")
    caveats = [caveat for section in sections for caveat in section.caveats]
    counts = {level: sum(caveat.level == level for caveat in caveats) for level in LEVELS}
    told = ", ".join(f"{counts[level]} × “{LEVELS[level].lower()}”" for level in LEVELS if counts[level])
    shown = len(results.of(*SHOWN))
    words.append(
        f"{counted(len(results.files), 'file')}, {shown} of them shown; the data call for {counted(len(caveats), 'caveat')}{f': {told}' if told else ''}."
    )
    return words


def _files(results: Results) -> Section:
    rows = [
        {
            "file": result.name,
            "what": WORDS[result.kind],
            "shown": "yes" if result.kind in SHOWN else f"no: {result.problem or _why(result)}",
            "rows": len(result.value) if isinstance(result.value, pd.DataFrame) else None,
            "bytes": result.size,
            "sha256": result.sha256[:16],
        }
        for result in results.files
    ]
    absent = [kind for kind in MADE_BY if not results.of(kind)]
    missing = "; ".join(f"{WORDS[kind]} ({MADE_BY[kind]})" for kind in absent)
    words = [f"Not here, and what makes them: {missing}."] if missing and len(results.files) > 1 else []
    table = pd.DataFrame(rows).astype({"rows": "Int64"})
    return Section("Files", tuple(words), (Table("files", table, "Every file of the folder, by what is in it, with the beginning of its SHA-256.", table),))


def _why(result: Result) -> str:
    return {
        "table": "a table that no section is made for; it is in the shared folder",
        "map": "the dashboard's page Long context shows it",
        "text": "a text, which says more than its table",
        "picture": "a picture or page of its own",
    }[result.kind]


def _provenance(results: Results) -> dict[str, str]:
    """What made each file that is shown, as far as it or the text beside it says so, and its SHA-256."""
    texts = {_stem(result): result.value for result in results.of("text") if result.value is not None}
    made = {}
    for result in results.of(*SHOWN):
        told = result.value.question if result.kind == "run" else getattr(result.value, "provenance", {})
        plain = {key: content for key, content in told.items() if isinstance(content, (str, int, float))} | told.get("versions", {})
        beside = texts.get(result.name.partition(".")[0], "") if result.kind in TABLES else ""
        made[result.name] = ", ".join(
            [*filter(None, [beside.rstrip(".")]), *(f"{key} {content}" for key, content in plain.items()), f"sha256 {result.sha256[:16]}"]
        )
    return made
