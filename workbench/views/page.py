"""How is a figure kept? As one self-contained page, with the evidence and what made it below."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from workbench.files import write_text

_CONFIG = {"displaylogo": False, "responsive": True}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 0 auto; max-width: 1000px; padding: 0 16px 32px; }}
footer {{ border-top: 1px solid #ccc; padding-top: 8px; font-size: 12.5px; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 4px 0 14px; }}
dt {{ color: #666; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 14px; margin: 10px 0 2px; }}
</style>
</head>
<body>
{figure}
<footer>
{footer}
</footer>
</body>
</html>
"""


def save_html(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as one self-contained page; see `page_of`.

    An older file stays intact until the new one is complete. Raises `InputError` where it cannot be written.
    """
    return write_text(path, page_of(figure))


def page_of(figure: go.Figure) -> str:
    """A figure as one page, its evidence and provenance below: plotly.js is inside, and no network is needed."""
    meta = figure.layout.meta or {}
    inside = figure.to_html(full_html=False, include_plotlyjs=True, include_mathjax=False, config=_CONFIG, div_id="figure")
    sections = [("Evidence", evidence_lines(meta.get("evidence", {}))), ("Made from", meta.get("facts", {}))]
    footer = "\n".join(f"<h2>{title}</h2>\n{_definitions(entries)}" for title, entries in sections if entries)
    title = html.escape(f"{meta.get('model', 'a model')}: attention heads")
    return _PAGE.format(title=title, figure=inside, footer=footer)


def _definitions(entries: dict[str, str]) -> str:
    rows = "\n".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in entries.items())
    return f"<dl>\n{rows}\n</dl>"


def evidence_lines(evidence: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The evidence in words: first each probe that lacks tests or of whose tests some do not count, then all others together."""
    words = {name: evidence_text(facts) for name, facts in evidence.items()}
    whole = [name for name, said in words.items() if said == "ok"]
    return {name: said for name, said in words.items() if said != "ok"} | ({"every test counts": ", ".join(whole)} if whole else {})


def evidence_text(facts: Mapping[str, Any]) -> str:
    """One probe's evidence in words: how many tests were valid, and plainly whether that was too few; `ok` if all count. What restricted it comes behind."""
    said, restricted = _counts(facts), facts.get("restricted")
    return f"{said}; {restricted}" if restricted else said


def _counts(facts: Mapping[str, Any]) -> str:
    status = str(facts.get("status", "ok"))
    if not {"tests", "valid", "dead", "counted"} <= set(facts) or (status == "ok" and facts["counted"] == facts["tests"]):
        return status
    dead = f", and in {facts['dead']} of these no head found anything" if facts["dead"] else ""
    return f"{'' if status == 'ok' else f'{status}: '}the model passed {facts['valid']} of {facts['tests']} tests{dead}"
