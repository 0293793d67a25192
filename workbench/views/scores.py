"""How do scores lie? One probe's distribution with its threshold, two probes against each other, and how far all of them agree."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from workbench.errors import unknown
from workbench.labels import HeadLabels
from workbench.rules import Rule, rule_text
from workbench.views.heads import panel

LABELLED, OTHERS = "#d55e00", "#0072b2"
"""Of heads with the label and of the rest: two colours that no kind of colour blindness confuses."""


def distribution_figure(labels: HeadLabels, probe: str, null_LH: Float[np.ndarray, "L H"] | None = None) -> go.Figure:
    """How many heads have which score (logarithmic), the labelled ones in front, and a line where a rule's fixed threshold is.

    With nulls, their distribution as an outline: what the same heads score where the behaviour cannot show. Raises `InputError` for an unknown probe.
    """
    shown = panel(labels, probe)
    marked = set(shown.marked)
    groups = (
        ("others", OTHERS, [head not in marked for head in labels.labels]),
        (f"labelled {shown.meaning}", LABELLED, [head in marked for head in labels.labels]),
    )
    every = shown.score_LH if null_LH is None else np.concatenate([shown.score_LH, null_LH])
    low, high = float(min(0, np.nanmin(every))), float(max(np.nanmax(every), np.nanmin(every) + 1e-9))
    bins = {"start": low, "end": high * 1.0001, "size": (high - low) / 40}
    figure = go.Figure()
    for name, colour, mask in groups:
        if any(mask):
            scores = shown.score_LH.ravel()[np.array(mask)]
            figure.add_histogram(
                x=scores, name=name, marker={"color": colour}, opacity=0.8, xbins=bins, hovertemplate="score %{x}<br>%{y} heads<extra></extra>"
            )
    if null_LH is not None:
        outline = {"color": "rgba(0,0,0,0)", "line": {"color": "#888888", "width": 1.5}}
        figure.add_histogram(x=null_LH.ravel(), name="null of all heads", marker=outline, xbins=bins, hovertemplate="null %{x}<br>%{y} heads<extra></extra>")
    for rule in _fixed(labels, probe):
        figure.add_vline(x=rule.value, line={"dash": "dash", "width": 1.5}, annotation_text=rule_text(rule))
    figure.update_layout(barmode="overlay", template="plotly_white", height=380, legend=_ABOVE, margin=_TIGHT, bargap=0.02)
    figure.update_xaxes(title=f"{probe} score")
    figure.update_yaxes(title="heads, logarithmic", type="log", range=[-0.3, np.log10(shown.score_LH.size * 1.2)], dtick=1)
    return figure


def _fixed(labels: HeadLabels, probe: str) -> list[Rule]:
    return [rule for rule in labels.rules.values() if rule.probe == probe and rule.kind == "at_least"]


def pair_figure(labels: HeadLabels, probe: str, other: str) -> go.Figure:
    """Every head by two scores; hovering tells the head and its labels, the colour which of the two probes' rules label it. Raises `InputError`."""
    for name in (probe, other):
        if name not in labels.scores:
            raise unknown("probe", name, labels.scores)
    first, second = (set(panel(labels, name).marked) for name in (probe, other))
    kinds = {
        "neither": ("#999999", "circle", lambda head: head not in first | second),
        f"labelled by {probe}": (LABELLED, "square", lambda head: head in first - second),
        f"labelled by {other}": (OTHERS, "diamond", lambda head: head in second - first),
        "labelled by both": ("#009e73", "star", lambda head: head in first & second),
    }
    figure = go.Figure()
    for name, (colour, symbol, belongs) in kinds.items():
        heads = [head for head in labels.labels if belongs(head)]
        if not heads:
            continue
        figure.add_scatter(
            x=[labels.scores[probe][head.layer, head.index] for head in heads],
            y=[labels.scores[other][head.layer, head.index] for head in heads],
            customdata=[[str(head), ", ".join(labels.labels[head]) or "no label"] for head in heads],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9, "opacity": 0.8, "line": {"width": 0.5, "color": "white"}},
            name=name,
            hovertemplate=f"<b>%{{customdata[0]}}</b><br>{probe} %{{x:.3f}}<br>{other} %{{y:.3f}}<br>%{{customdata[1]}}<extra></extra>",
        )
    figure.update_layout(template="plotly_white", height=460, legend=_ABOVE, margin=_TIGHT)
    figure.update_xaxes(title=f"{probe} score")
    figure.update_yaxes(title=f"{other} score")
    return figure


def agreement_figure(table: pd.DataFrame) -> go.Figure:
    """A table of `scores.agreement` as a matrix: Spearman's rho of each two probes, −1 to 1, and on hovering the overlap of their strongest heads."""
    names = list(dict.fromkeys([*table["probe"], *table["other"]]))
    place = {name: number for number, name in enumerate(names)}
    overlap = next(name for name in table.columns if name.endswith("_overlap"))
    rho, shared = np.eye(len(names)), np.eye(len(names))
    for row in table.to_dict("records"):
        a, b = place[row["probe"]], place[row["other"]]
        rho[a, b] = rho[b, a] = row["spearman"]
        shared[a, b] = shared[b, a] = row[overlap]
    heat = go.Heatmap(
        z=rho, x=names, y=names, customdata=shared, colorscale="RdBu", zmin=-1, zmax=1, xgap=1, ygap=1,
        colorbar={"title": {"text": "Spearman's ρ", "side": "top"}, "thickness": 12, "orientation": "h", "y": 1, "yanchor": "bottom", "tickvals": [-1, 0, 1]},
        hovertemplate=f"%{{y}} and %{{x}}<br>Spearman's ρ %{{z:.2f}}<br>{overlap.replace('_', ' ')} %{{customdata:.0%}}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heat)
    figure.update_layout(template="plotly_white", height=260 + 18 * len(names), margin={"t": 70, "l": 10, "r": 10, "b": 10})
    figure.update_yaxes(autorange="reversed", dtick=1, automargin=True, tickfont={"size": 10})
    figure.update_xaxes(dtick=1, tickangle=-90, automargin=True, tickfont={"size": 9})
    return figure


_ABOVE = {"orientation": "h", "traceorder": "normal", "y": 1.02, "yanchor": "bottom", "x": 0}
_TIGHT = {"t": 60, "l": 10, "r": 10, "b": 10}
