"""How does a report read as text? The same words, caveats and tables as Markdown, and the first map in letters."""

from workbench.results import LEVELS, ordered
from workbench.views.report.parts import Card, Report, Section, Table, cell


def markdown(report: Report) -> str:
    """The report as Markdown; pictures stand in the page alone, but for the first map, in letters."""
    parts = [f"# {report.title}", *report.words]
    if short := [f"- {section.in_short}" for section in report.sections if section.in_short]:
        parts += ["## In short", "\n".join(short)]
    parts += caveats(report)
    for place, section in enumerate(report.sections):
        parts += _section(section, letters=not place)
    if report.provenance:
        parts += ["## Made from", "\n".join(f"- {name}: {words}" for name, words in report.provenance.items())]
    return "\n\n".join(parts) + "\n"


def caveats(report: Report) -> list[str]:
    """All caveats by how much they matter."""
    found = ordered(report.caveats)
    parts = ["## Before you believe it"] if found else []
    for level, words in LEVELS.items():
        mine = [caveat for caveat in found if caveat.level == level]
        if mine:
            parts += [f"**{words}**", "\n".join(f"- {caveat.text} ({caveat.about})" for caveat in mine)]
    return parts


def _section(section: Section, *, letters: bool) -> list[str]:
    parts = [f"## {section.title}", *section.words]
    if letters and section.text:
        parts.append(f"```text\n{section.text.rstrip()}\n```")
    for block in section.blocks:
        if isinstance(block, Table) and len(block.page):
            parts += [block.caption, table(block)]
        elif isinstance(block, Card):
            parts.append(f"**{block.title}**: {' '.join(block.words)}")
    return parts


def table(block: Table) -> str:
    """The rows that are shown, and how many are not."""
    page = block.page
    lines = ["| " + " | ".join(map(str, page.columns)) + " |", "|" + "---|" * len(page.columns)]
    lines += ["| " + " | ".join(cell(value).replace("|", "\\|").replace("\n", " ") for value in row) + " |" for row in page.itertuples(index=False)]
    return "\n".join(lines) + (f"\n\n{block.left} more rows." if block.left else "")
