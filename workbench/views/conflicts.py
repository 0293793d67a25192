"""Memory or context? Every head by what both answers owe to it, and how answers change as heads are pruned."""

import numpy as np
import pandas as pd
import plotly.colors
import plotly.graph_objects as go

from workbench.circuits.sides import Sides
from workbench.heads import Head
from workbench.views.canvas import signed_canvas
from workbench.views.scores import LABELLED, OTHERS

SIDES = {
    "memory": (OTHERS, "circle", ("top center", "bottom center")),
    "context": (LABELLED, "diamond", ("top right", "bottom right")),
    "neither": ("#999999", "square", ("top center", "top center")),
}
"""How the heads of a side are drawn, and where their names stand, in turns."""

NAMED = 0.07
"""Heads with at least this share of the largest score have their names beside them."""

RIM = "#cc79a7"
BAND = 0.14
"""How dark the band of an interval is."""
RATES = {
    "memory": ("internal memory: what the model knows", OTHERS, "solid", "circle"),
    "context": ("external context: what the text states", LABELLED, "solid", "diamond"),
    "other": ("something else", "#888888", "dot", "square"),
    "clean": ("closed book answered rightly", "#009e73", "dash", "x"),
}
"""The columns of a pruning curve: what they are, and how they are drawn."""


def sides_canvas(sides: Sides, pruned: list[Head], mark: str) -> bytes:
    """Every head by what it does to context less what it does to memory: blue serves memory, orange context; rings around those that are `pruned`."""
    value_LH = sides.context_LH - sides.memory_LH
    told = [f"memory {row['memory']:+.3f}, context {row['context']:+.3f}" for row in sides.table.to_dict("records")]
    return signed_canvas(value_LH, "context − memory", told, pruned, mark)


def sides_figure(sides: Sides, pruned: list[Head], unit: str) -> go.Figure:
    """Every head by its two scores; those that are `pruned` are larger, with a rim, and those far from 0 have their names beside them."""
    table, figure = sides.table, go.Figure()
    chosen = {str(head) for head in pruned}
    size = np.maximum(table["memory"].abs(), table["context"].abs())
    named = set(table.loc[size >= NAMED * size.max(), "head"])
    for side, (colour, symbol, places) in SIDES.items():
        rows = table[table["side"] == side].sort_values(["memory", "context"])
        if rows.empty:
            continue
        inside = [head in chosen for head in rows["head"]]
        turns = rows["head"].isin(named).cumsum()
        figure.add_scatter(
            x=rows["memory"], y=rows["context"], customdata=rows["head"], name="neither" if side == "neither" else f"{side} heads",
            mode="markers+text", text=[head if head in named else "" for head in rows["head"]],
            textposition=[places[turn % 2] for turn in turns], textfont={"size": 11},
            marker={"color": colour, "symbol": symbol, "size": [14 if one else 8 for one in inside], "opacity": 0.85,
                    "line": {"color": RIM, "width": [3 if one else 0 for one in inside]}},
            hovertemplate="<b>%{customdata}</b><br>memory %{x:+.3f}<br>context %{y:+.3f}<extra></extra>",
        )  # fmt: skip
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(template="plotly_white", height=460, legend=legend, margin={"t": 60, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title=f"memory ({unit})")
    figure.update_yaxes(title=f"context ({unit})")
    return figure


def pruning_figure(curve: pd.DataFrame, side: str, count: int) -> go.Figure:
    """The rates of a pruning curve against the number of heads pruned, with their 95% intervals as bands, and a line at the `count` that is chosen."""
    figure = go.Figure()
    for column, (_, colour, _, _) in RATES.items():
        if f"{column}_low" in curve:
            band = pd.concat([curve[f"{column}_high"], curve[f"{column}_low"][::-1]])
            counts = pd.concat([curve["heads"], curve["heads"][::-1]])
            faint = f"rgba{(*plotly.colors.hex_to_rgb(colour), BAND)}"
            figure.add_scatter(x=counts, y=band, fill="toself", mode="none", fillcolor=faint, hoverinfo="skip", showlegend=False)
    for column, (name, colour, dash, symbol) in RATES.items():
        interval = curve[[f"{column}_low", f"{column}_high"]] if f"{column}_low" in curve else None
        between = "" if interval is None else " (%{customdata[0]:.0%} to %{customdata[1]:.0%})"
        figure.add_scatter(
            x=curve["heads"], y=curve[column], customdata=interval, mode="lines+markers", name=name, line={"color": colour, "dash": dash},
            marker={"color": colour, "symbol": symbol, "size": 8}, hovertemplate="%{x} heads: %{y:.0%}" + between + "<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.add_vline(x=count, line={"width": 6, "color": "rgba(128,128,128,0.35)"})
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    figure.update_layout(template="plotly_white", height=420, legend=legend, margin={"t": 100, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title=f"{side} heads pruned, strongest first", dtick=max(1, len(curve) // 10), range=[-0.5, len(curve) - 0.5])
    figure.update_yaxes(title="share of answers", tickformat=".0%", range=[-0.04, 1.06])
    return figure
