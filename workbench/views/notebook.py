"""What does a notebook show of a result? A small page without scripts: what it is, its strongest heads, a map, and its caveats."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels
from workbench.results import LEVELS, Caveat, ordered
from workbench.results.of_circuits import caveats_of_circuit
from workbench.results.of_scores import caveats_of_labels, caveats_of_scores
from workbench.results.standing import backed
from workbench.rules import rule_text
from workbench.scores import HeadScores
from workbench.views.heads import panel, panel_picture
from workbench.views.report.circuits import effect_matrix
from workbench.views.report.parts import cell
from workbench.views.svg import map_picture

if TYPE_CHECKING:
    from workbench.captures import Capture
    from workbench.circuits.circuit import Circuit

BEST = 5
"""How many heads of a kind are named."""

STYLE = "font:13px/1.45 system-ui,sans-serif;display:flex;flex-wrap:wrap;gap:8px 28px;align-items:flex-start"
CELL = "text-align:left;padding:1px 12px 1px 0;vertical-align:top"


def small_page(value: object) -> str:
    """A capture, scores, labels or circuit as HTML of some kilobytes; the colours are those of the notebook."""
    return _OF[type(value).__name__](value)


def _labels(labels: HeadLabels) -> str:
    known = set(backed(labels, labels.measured))
    rows = []
    for name, count in labels.counts().items():
        rule = labels.rules.get(name)
        heads = list(labels.heads(name))
        if rule is not None and rule.probe in labels.scores:
            score_LH = labels.scores[rule.probe]
            heads.sort(key=lambda head: -score_LH[head.layer, head.index])
        best = _measured(labels.measured, rule.probe, heads[0]) if labels.measured and rule and heads and rule.probe in known else ("–", "–", "–")
        rows.append((name, count, "" if rule is None else rule_text(rule), *(best if known else ()), _some(heads)))
    shown = panel(labels) if labels.scores or rows else None
    picture = ""
    if shown is not None:
        picture = _picture(panel_picture(labels, shown), shown.title)
    heading = ("label", "heads", "rule", *(("best", "95% interval", "null") if known else ()), "strongest")
    said = caveats_of_labels(labels, labels.measured, "labels", "the table that they were made from")
    return _page("Head labels", labels.card, _table(heading, rows), picture, said, labels.provenance)


def _measured(scores: HeadScores, probe: str, head: Head) -> tuple[object, object, object]:
    """A head's score with its interval and null."""
    value, low, high, null = (float(scores.matrix(probe, name)[head.layer, head.index]) for name in ("score", "ci_low", "ci_high", "null"))
    return value, _interval(low, high), null


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} – {high:.3f}" if np.isfinite(low) else "one sample"


def _scores(scores: HeadScores) -> str:
    rows: list[tuple[object, ...]] = []
    for probe in scores.probes:
        best = scores.top(BEST, probe)
        first = best.iloc[0]
        rows.append((probe, int(first["n"]), first["score"], _interval(first.ci_low, first.ci_high), first["null"], ", ".join(best["name"])))
    rows += [(probe, "–", "–", str(facts["status"]), "–", "–") for probe, facts in scores.evidence.items() if facts.get("status", "ok") != "ok"]
    picture = ""
    if scores.probes:
        probe = "retrieval" if "retrieval" in scores.probes else scores.probes[0]
        picture = _picture(map_picture(scores.matrix(probe), {}, "", f"Map of {probe}"), probe)
    heading = ("probe", "n", "best", "95% interval", "null", "strongest")
    return _page("Head scores", scores.card, _table(heading, rows), picture, caveats_of_scores(scores, "scores"), scores.provenance)


def _circuit(circuit: "Circuit") -> str:
    held = [[row[name] for name in ("ablation", "n", "faithfulness", "low", "high", "random")] for row in circuit.faithfulness.to_dict("records")]
    effect = dict(zip(circuit.effects["head"], circuit.effects["effect"], strict=True))
    heads = [(str(head), effect.get(str(head))) for head in circuit.heads[: 2 * BEST]]
    told = {head: f"{head}: {effect.get(str(head), float('nan')):+.3f}" for head in circuit.heads}
    picture = _picture(map_picture(effect_matrix(circuit), told, "in the circuit", "Map of effects", signed=True), "effect of each head")
    tables = _table(("ablation", "n", "faithfulness", "low", "high", "random heads"), held)
    tables += _table(("head", "effect"), heads)
    if len(circuit.heads) > len(heads):
        tables += f"<div>and {len(circuit.heads) - len(heads)} more heads</div>"
    return _page(f"Circuit for {circuit.task}", circuit.card, tables, picture, caveats_of_circuit(circuit, "circuit"), circuit.provenance)


def _capture(seen: "Capture") -> str:
    rows = []
    for read, value in seen.values.items():
        parts = value._asdict() if isinstance(value, tuple) and hasattr(value, "_asdict") else {"": value}
        for name, given in parts.items():
            array = np.asarray(given)
            finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array.ravel()
            spread = (finite.min(), finite.mean(), finite.max()) if finite.size else (None,) * 3
            rows.append((f"{read}{f'.{name}' if name else ''}", " × ".join(map(str, array.shape)), *(None if one is None else float(one) for one in spread)))
    prompts = f"{seen.prompts.count} prompt{'' if seen.prompts.count == 1 else 's'} of {seen.prompts.length} tokens"
    said = [Caveat("care", "capture", f"{seen.provenance['warning']}.")] if seen.provenance.get("warning") else []
    return _page(f"Capture: {prompts}", seen.card, _table(("read", "shape", "lowest", "mean", "highest"), rows), "", said, seen.provenance)


_OF: Mapping[str, Callable[[Any], str]] = {"HeadLabels": _labels, "HeadScores": _scores, "Circuit": _circuit, "Capture": _capture}


def _page(title: str, card: ModelCard, tables: str, picture: str, caveats: Iterable[Caveat], provenance: Mapping[str, Any]) -> str:
    shape = card.shape
    sizes = f"{shape.n_layers} layers × {shape.n_heads} heads ({shape.n_kv_heads} KV heads)"
    heading = f"<div><b>{html.escape(title)}</b> · {html.escape(card.name)}, {sizes}, fingerprint {html.escape(card.fingerprint or 'unknown')}</div>"
    made = ", ".join(f"{name} {value}" for name, value in provenance.items() if isinstance(value, (str, int, float)))
    every = ordered(caveats)
    items = "".join(f"<li><b>{LEVELS[caveat.level]}.</b> {html.escape(caveat.text)}</li>" for caveat in every)
    count = f"{len(every)} caveat{'' if len(every) == 1 else 's'}"
    told = f"<details><summary>{count}</summary><ul>{items}</ul></details>" if every else ""
    middle = f'<div style="{STYLE}"><div style="overflow-x:auto;max-width:100%">{tables}</div>{picture}</div>'
    return f'{heading}{middle}{told}<div style="font-size:12px;opacity:.75">{html.escape(made)}</div>'


def _picture(svg: str, title: str) -> str:
    return f'<div style="max-width:330px"><div><b>{html.escape(title)}</b></div>{svg}</div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f'<th style="{CELL}">{html.escape(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f'<td style="{CELL}">{html.escape(cell(value))}</td>' for value in row) + "</tr>" for row in rows)
    return f'<table style="border-collapse:collapse;margin:4px 0"><tr>{head}</tr>{body}</table>' if rows else ""


def _some(heads: Sequence[object]) -> str:
    more = f" and {len(heads) - BEST} more" if len(heads) > BEST else ""
    return ", ".join(map(str, heads[:BEST])) + more
