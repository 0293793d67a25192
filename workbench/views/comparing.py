"""How do two models, or two runs, look beside each other? Their scores head by head, and by depth where they have other heads."""

import numpy as np
import plotly.graph_objects as go

from workbench.comparing import Comparison
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.views.canvas import signed_canvas

LOOKS = (("#0072b2", "solid"), ("#d55e00", "dash"))
"""Colour and line of the first and the second file."""


def difference_canvas(first: HeadLabels, second: HeadLabels, found: Comparison) -> bytes:
    """A layer × head map of the second score less the first; rings mark heads whose labels differ. For models with the same heads."""
    assert found.difference_LH is not None
    changed = [head for head in first.labels if set(first.labels[head]) != set(second.labels[head])]
    return signed_canvas(
        found.difference_LH, f"{found.probe}, second less first", [_told(first, second, head) for head in first.labels], changed, "other labels"
    )


def versus_figure(first: HeadLabels, second: HeadLabels, found: Comparison, names: tuple[str, str]) -> go.Figure:
    """Every head by its score in the first file and in the second, on axes of one scale; heads whose labels differ are diamonds."""
    x, y = (np.asarray(one.scores[found.probe], float) for one in (first, second))
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    figure = go.Figure()
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line={"color": "#999999", "width": 1, "dash": "dot"}, name="equal", hoverinfo="skip")
    for name, (colour, symbol), differ in (("same labels", ("#0072b2", "circle"), False), ("other labels", ("#d55e00", "diamond"), True)):
        heads = [head for head in first.labels if (set(first.labels[head]) != set(second.labels[head])) is differ]
        figure.add_scatter(
            x=[x[head.layer, head.index] for head in heads],
            y=[y[head.layer, head.index] for head in heads],
            customdata=[[str(head), _told(first, second, head)] for head in heads],
            mode="markers",
            name=f"{name}: {len(heads)}",
            marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.75, "line": {"width": 0.5, "color": "white"}},
            hovertemplate="<b>%{customdata[0]}</b><br>first %{x:.3f}, second %{y:.3f}<br>%{customdata[1]}<extra></extra>",
        )
    figure.update_layout(
        template="plotly_white", height=460, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin={"t": 60, "l": 10, "r": 10, "b": 10}
    )
    figure.update_xaxes(title=f"{found.probe} score, {names[0]}")
    figure.update_yaxes(title=f"{found.probe} score, {names[1]}")
    return figure


def depth_figure(found: Comparison, names: tuple[str, str]) -> go.Figure:
    """The highest and the mean score of each layer over relative depth, 0 the first layer and 1 the last: for models of any two shapes."""
    figure = go.Figure()
    for which, (name, (colour, dash)) in enumerate(zip(names, LOOKS, strict=True)):
        rows = found.depth[found.depth["which"] == which]
        for column, width in (("highest", 2.5), ("mean", 1.2)):
            figure.add_scatter(
                x=rows["depth"], y=rows[column], mode="lines", line={"color": colour, "dash": dash, "width": width}, name=f"{name}, {column}",
                hovertemplate=f"{name}<br>depth %{{x:.2f}}<br>{column} %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=380, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin={"t": 60, "l": 10, "r": 10, "b": 10}
    )
    figure.update_xaxes(title="relative depth (0 first layer, 1 last)")
    figure.update_yaxes(title=f"{found.probe} score")
    return figure


def _told(first: HeadLabels, second: HeadLabels, head: Head) -> str:
    mine, theirs = (", ".join(one.labels[head]) or "no label" for one in (first, second))
    return mine if mine == theirs else f"{mine} → {theirs}"
