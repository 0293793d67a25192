"""Which heads are of which kind? The layer × head map of scores and labels, as a figure and as text."""

import html
import json
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from rich.text import Text

from workbench.errors import InputError, unknown
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.views.svg import map_picture

SHADES = "·░▒▓█"
"""Five steps from the lowest to the highest score of a text map."""


class Panel(NamedTuple):
    """One layer × head map: its title, the scores, and the heads to mark with what their mark means."""

    title: str
    score_LH: Float[np.ndarray, "L H"]
    marked: tuple[Head, ...]
    meaning: str


def panels(labels: HeadLabels) -> list[Panel]:
    """One map for each probe, its labelled heads marked, and one of ones and zeros for each label without scores behind it."""
    by_probe: dict[str, list[str]] = {}
    for rule in labels.rules.values():
        by_probe.setdefault(rule.probe, []).append(rule.label)
    made = [Panel(probe, score, *_marked(labels, by_probe.get(probe, []))) for probe, score in labels.scores.items()]
    ruled = {name for name, rule in labels.rules.items() if rule.probe in labels.scores}
    return made + [Panel(name, _membership(labels, name), *_marked(labels, [name])) for name in labels.counts() if name not in ruled]


def panel(labels: HeadLabels, probe: str | None = None, label: str | None = None) -> Panel:
    """The map of one probe, or of one label: the scores behind it with its heads marked. By default retrieval, else the first there is.

    Raises `InputError` for an unknown probe or label, and for both at once.
    """
    if probe and label:
        raise InputError("choose a probe or a label, not both")
    there = {found.title: found for found in panels(labels)}
    if not there:
        raise InputError(f"there is nothing to show of {labels.card.name}: no scores and no labels")
    if label:
        heads = labels.heads(label)
        rule = labels.rules.get(label)
        base = there[rule.probe if rule and rule.probe in there else label]
        return base._replace(marked=heads, meaning=label)
    if probe and probe not in labels.scores:
        raise unknown("probe", probe, labels.scores)
    return there[probe] if probe else there.get("retrieval", next(iter(there.values())))


def _marked(labels: HeadLabels, names: list[str]) -> tuple[tuple[Head, ...], str]:
    return tuple(head for head, has in labels.labels.items() if set(has) & set(names)), " or ".join(names)


def _membership(labels: HeadLabels, label: str) -> np.ndarray:
    shape = labels.card.shape
    return np.array([label in labels.labels[head] for head in shape.heads()], float).reshape(shape.n_layers, shape.n_heads)


def head_map(labels: HeadLabels, probe: str | None = None, label: str | None = None) -> go.Figure:
    """Layer × head heat maps, one shown and all selectable; labelled heads carry a dot, hovering tells head, score and labels.

    Shown first is `probe`, or the probe behind `label` with just that label's heads marked; see `panel`. Hue and lightness both
    rise with the score (cividis), so that it reads without colour. Raises `InputError` as `panel` does.
    """
    first = panel(labels, probe, label)
    every = [first, *(other for other in panels(labels) if other.title != first.title)]
    shape = labels.card.shape
    names_LH = np.array([", ".join(labels.labels[head]) or "none" for head in shape.heads()], object).reshape(shape.n_layers, shape.n_heads)
    figure = go.Figure()
    for item in every:
        figure.add_traces([_heat(item, names_LH), _dots(item, 7 if shape.n_heads <= 32 else 5)])
        figure.data[-1].visible = figure.data[-2].visible = item is first
    figure.update_layout(
        title={"text": _title(labels, first), "x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 24}},
        template="plotly_white",
        height=150 + max(12, min(24, 1600 // shape.n_layers)) * shape.n_layers,
        margin={"l": 60, "r": 20, "t": 92, "b": 50},
        showlegend=False,
        updatemenus=[_menu(labels, every)] if len(every) > 1 else [],
        meta={"model": labels.card.name, "facts": _facts(labels), "evidence": {name: dict(facts) for name, facts in labels.evidence.items()}},
    )
    quiet = {"showgrid": False, "zeroline": False, "showline": False}
    figure.update_xaxes(title_text="head", dtick=_step(shape.n_heads, 24), range=[-0.5, shape.n_heads - 0.5], **quiet)
    figure.update_yaxes(title_text="layer", dtick=_step(shape.n_layers, 40), range=[shape.n_layers - 0.5, -0.5], **quiet)
    return figure


def panel_picture(labels: HeadLabels, shown: Panel) -> str:
    """One map as a drawing that needs no script, SVG: rings are the marked heads, which tell their scores and labels on hovering."""
    told = {head: f"{head}: {shown.score_LH[head.layer, head.index]:.3f}; {', '.join(labels.labels[head])}" for head in shown.marked}
    alt = f"Layer by head map of the {shown.title} scores of {labels.card.name}; {len(shown.marked)} heads are marked"
    return map_picture(shown.score_LH, told, "labelled" if shown.meaning else "", alt)


def _heat(item: Panel, names_LH: np.ndarray) -> go.Heatmap:
    low, high = float(min(0, item.score_LH.min())), float(item.score_LH.max())
    return go.Heatmap(
        z=item.score_LH,
        customdata=names_LH,
        name=item.title,
        colorscale="Cividis",
        zmin=low,
        zmax=high if high > low else low + 1,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "score"}, "thickness": 14, "outlinewidth": 0},
        hovertemplate=f"<b>L%{{y}}H%{{x}}</b><br>{item.title} %{{z:.3f}}<br>labels: %{{customdata}}<extra></extra>",
    )


def _dots(item: Panel, size: int) -> go.Scatter:
    x, y = [head.index for head in item.marked], [head.layer for head in item.marked]
    marker = {"size": size, "color": "white", "line": {"color": "black", "width": 1.5}}
    return go.Scatter(x=x, y=y, mode="markers", marker=marker, hoverinfo="skip", name=item.meaning)


def _title(labels: HeadLabels, item: Panel) -> str:
    marks = f"○ {_heads(len(item.marked))} labelled {item.meaning}" if item.meaning else "no rule labels heads by this score"
    return f"<b>{html.escape(labels.card.name)}: {item.title}</b><br><span style='font-size:13px'>{marks}</span>"


def _heads(count: int) -> str:
    return f"{count} head{'' if count == 1 else 's'}"


def _menu(labels: HeadLabels, every: list[Panel]) -> dict[str, Any]:
    buttons = [
        {
            "label": item.title,
            "method": "update",
            "args": [{"visible": [place // 2 == number for place in range(2 * len(every))]}, {"title.text": _title(labels, item)}],
        }
        for number, item in enumerate(every)
    ]
    return {"buttons": buttons, "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 10}, "showactive": True}


def _step(count: int, most: int) -> int:
    return next(step for step in (1, 2, 4, 8, 16, 32, 64, count) if count <= step * most or step == count)


def _facts(labels: HeadLabels) -> dict[str, str]:
    """What made the scores, as text: the model's identity first, then the provenance as it is recorded."""
    card, shape = labels.card, labels.card.shape
    model = {"model": card.name, "origin": card.origin, "revision": card.revision, "fingerprint": card.fingerprint or "unknown"}
    sizes = {"shape": f"{shape.n_layers} layers × {shape.n_heads} query heads, {shape.n_kv_heads} KV heads"}
    every = {**model, **sizes, **labels.provenance}
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) for name, value in every.items() if value is not None}


def text_map(score_LH: Float[np.ndarray, "L H"], *, title: str = "", marked: Collection[Head] = (), meaning: str = "marked", width: int = 80) -> Text:
    """The scores as shaded cells, a line per layer and a column per head, within `width` characters; wide models get several blocks.

    Five equal steps from the lowest to the highest score, named with their ranges in the last line; `*` stands behind marked heads.
    """
    low, high = float(score_LH.min()), float(score_LH.max())
    level_LH = np.zeros(score_LH.shape, int) if high == low else np.minimum(4, ((score_LH - low) / (high - low) * 5).astype(int))
    heads = score_LH.shape[1]
    cell = max(2, min(4, (width - 6) // heads))
    most = (width - 6) // cell
    block = heads if heads <= most else max(8, most // 8 * 8)
    text = Text(f"{title}\n" if title else "", style="bold")
    for start in range(0, heads, block):
        text.append(_block(level_LH, range(start, min(start + block, heads)), cell, set(marked)))
    return text.append(_legend(low, high, len(marked), meaning))


def _block(level_LH: np.ndarray, heads: range, cell: int, marked: set[Head]) -> Text:
    step = 1 if cell > len(str(heads[-1])) else 2 if cell * 2 > len(str(heads[-1])) else 4
    numbers = "".join(str(head).ljust(cell * step) for head in heads[::step]).rstrip()
    text = Text(f"head  {numbers}\n", style="dim")
    for layer, level_H in enumerate(level_LH):
        text.append(f"{f'L{layer}':<6}", style="dim")
        for head in heads:
            here = Head(layer, head) in marked
            text.append(SHADES[level_H[head]] * (cell - 1) + ("*" if here else " "), style="bold yellow" if here else "")
        text.append("\n")
    return text


def _legend(low: float, high: float, marked: int, meaning: str) -> Text:
    edges = np.linspace(low, high, len(SHADES) + 1)
    steps = "  ".join(f"{shade} {edge:.2f}" for shade, edge in zip(SHADES, edges, strict=False)) if high > low else SHADES[0]
    mark = f"\n* {_heads(marked)}: {meaning}" if marked else ""
    return Text(f"{steps}  up to {high:.2f}{mark}", style="dim")
