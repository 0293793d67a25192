"""How does a report look? One page without scripts, that reads from 360 pixels up, light and dark, on paper, and without a network."""

import html
import re
from collections.abc import Mapping
from importlib.resources import files

from workbench.results import LEVELS, ordered
from workbench.views.report.parts import Block, Card, Picture, Report, Section, Table, cell


def report_page(report: Report, links: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The report as one self-contained page. `links` are the files of each picture and table by its name, such as `{"map_retrieval": {"svg": "figures/…"}}`."""
    style = files("workbench").joinpath("data/report.css").read_text(encoding="utf-8")
    links = links or {}
    contents = "".join(f'<li><a href="#{section.anchor}">{_words(section.title)}</a></li>' for section in report.sections)
    made = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(words)}</dd>" for name, words in report.provenance.items())
    body = [
        f"<h1>{_words(report.title)}</h1>",
        *(f"<p>{_words(words)}</p>" for words in report.words),
        _in_short(report),
        _caveats(report),
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>',
        *(_section(section, links) for section in report.sections),
        f"<section><h2>Made from</h2><dl>{made}</dl></section>" if made else "",
    ]
    start = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_plain(report.title)}</title>'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{start}\n<style>\n{style}</style>\n</head>\n<body>\n'
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def _in_short(report: Report) -> str:
    items = "".join(f'<li>{_words(section.in_short)} <a href="#{section.anchor}">more</a></li>' for section in report.sections if section.in_short)
    return f'<section><h2>In short</h2><ul class="short">{items}</ul></section>' if items else ""


def _caveats(report: Report) -> str:
    found = ordered(report.caveats)
    if not found:
        return ""
    anchors = {caveat: section.anchor for section in report.sections for caveat in section.caveats}
    parts = []
    for level, words in LEVELS.items():
        mine = [caveat for caveat in found if caveat.level == level]
        items = "".join(f'<li>{_words(caveat.text)} <a href="#{anchors[caveat]}">{html.escape(caveat.about)}</a></li>' for caveat in mine)
        shut = "" if level == "know" else " open"
        parts.append(f'<details class="{level}"{shut}><summary>{words} ({len(mine)})</summary><ul>{items}</ul></details>' if mine else "")
    return f'<section class="caveats"><h2>Before you believe it</h2>{"".join(parts)}</section>'


def _section(section: Section, links: Mapping[str, Mapping[str, str]]) -> str:
    parts = [f"<h2>{_words(section.title)}</h2>", *(f"<p>{_words(words)}</p>" for words in section.words)]
    group: list[str] = []
    for block in [*section.blocks, None]:
        if isinstance(block, (Card, Picture)):
            group.append(_small(block, links))
            continue
        if group:
            parts.append(f'<div class="cards">{"".join(group)}</div>')
            group = []
        if isinstance(block, Table) and len(block.page):
            parts.append(_table(block, links))
    return f'<section id="{section.anchor}">{"".join(parts)}</section>'


def _small(block: Block, links: Mapping[str, Mapping[str, str]]) -> str:
    if isinstance(block, Picture):
        return f'<div class="card">{_picture(block, links)}</div>'
    assert isinstance(block, Card)
    words = "".join(f"<p>{_words(words)}</p>" for words in block.words)
    return f'<article class="card"><h3>{_words(block.title)}</h3>{words}{"".join(_picture(picture, links) for picture in block.pictures)}</article>'


def _picture(picture: Picture, links: Mapping[str, Mapping[str, str]]) -> str:
    return f"<figure>{picture.svg}<figcaption>{_words(picture.caption)}{_links(picture.name, links)}</figcaption></figure>"


def _table(block: Table, links: Mapping[str, Mapping[str, str]]) -> str:
    page = block.page
    numbers = [page[name].dtype.kind in "fiu" for name in page]
    head = "".join(f"<th{_right(right)}>{html.escape(str(name))}</th>" for name, right in zip(page, numbers, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{_right(right)}>{html.escape(cell(value))}</td>" for value, right in zip(row, numbers, strict=True)) + "</tr>"
        for row in page.itertuples(index=False)
    )
    more = f" {block.left:,} more rows are not shown." if block.left else ""
    caption = f"<p class='caption'>{_words(block.caption)}{more}{_links(block.name, links)}</p>"
    return f'{caption}<div class="wide" tabindex="0" role="region" aria-label="{_plain(block.caption)}"><table><tr>{head}</tr>{rows}</table></div>'


def _right(right: bool) -> str:
    return ' class="n"' if right else ""


def _links(name: str, links: Mapping[str, Mapping[str, str]]) -> str:
    return "".join(f' <a href="{html.escape(path, quote=True)}">{kind}</a>' for kind, path in links.get(name, {}).items())


def _words(text: str) -> str:
    """A sentence as HTML; what stands in backquotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _plain(text: str) -> str:
    return html.escape(text, quote=True)
