"""What does a policy cost? Quality against KV memory, for each way to choose the full heads."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

LOOKS = {
    "random": ("random heads (mean; bars: lowest to highest seed)", "#999999", "x"),
    "window": ("one window in every head (StreamingLLM)", "#d97706", "square"),
    "saved": ("the policy in the file", "#7c3aed", "star"),
    "full": ("every head full", "#ffffff", "diamond"),
}
"""Name, colour and mark of each way of `verification` that is no ranking."""

COLOURS = ("#0b62a4", "#1a936f", "#c1121f", "#b5179e", "#5f6c37", "#3a86ff")
"""Of the rankings, in turn."""

HOVER = "%{y:.1%} with %{x:.1%} of the memory<br>%{customdata[0]} full heads<br>recall %{customdata[1]:.3f}, perplexity %{customdata[2]:.2f}"

PANELS = {"kept": "needle recall, share of the full model's", "agreement": "next token as the full model's"}
"""The two qualities of a table of `verify` that are drawn."""

MEMORY = "KV memory, share of the full model's"


def quality_figure(table: pd.DataFrame, facts: Mapping[str, Any]) -> go.Figure:
    """Needle recall kept and next-token agreement, against KV bytes as a share of the full model's: a table of `verification.verify` as a picture."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=list(PANELS.values()), horizontal_spacing=0.09)
    for column, quality in enumerate(PANELS, 1):
        for trace in _traces(table, quality):
            figure.add_trace(trace.update(showlegend=column == 1), row=1, col=column)
    figure.update_xaxes(title=MEMORY, tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(tickformat=".0%")
    sizes = f"{facts['sinks']} sinks, window {facts['window']}, {facts['semantics']}"
    figure.update_layout(
        title=f"{facts['model']}: what a policy keeps<br><sub>{sizes}; bars: 95% intervals of the paired difference</sub>",
        template="plotly_white",
        height=520,
        legend={"orientation": "h", "y": -0.2},
        margin={"t": 125},
        meta={"model": facts["model"], "facts": {name: str(value) for name, value in facts.items()}},
    )
    return figure


def quality_panel(table: pd.DataFrame, quality: str, marked: Mapping[str, Any] | None = None) -> go.Figure:
    """One of `PANELS` alone, for narrow places; a dotted line where the KV share of the `marked` row of the table is."""
    figure = go.Figure(list(_traces(table, quality)))
    if marked is not None:
        figure.add_vline(x=marked["kv_share"], line={"dash": "dot", "color": "#888888"}, annotation_text=f"{marked['full_heads']} full")
    legend = {"orientation": "h", "traceorder": "normal", "y": -0.2, "yanchor": "top", "x": 0}
    figure.update_layout(template="plotly_white", height=520, legend=legend, margin={"t": 30, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title=MEMORY, tickformat=".0%", rangemode="tozero", automargin=True)
    figure.update_yaxes(title=PANELS[quality], tickformat=".0%", automargin=True)
    return figure


def _traces(table: pd.DataFrame, quality: str) -> Iterator[go.Scatter]:
    """One trace for each way in the table."""
    for name, (words, colour, mark) in _looks(table).items():
        points = _points(table[table["policy"] == name], quality)
        edge = {"line": {"color": "black", "width": 1.5}} if name == "full" else {}
        yield go.Scatter(
            x=points["kv_share"],
            y=points[quality],
            error_y=_bars(points, quality),
            customdata=points[["full_heads", "recall", "perplexity"]],
            hovertemplate=HOVER,
            mode="lines+markers" if len(points) > 1 else "markers",
            line={"color": colour, "dash": "dot" if name == "random" else "solid"},
            marker={"symbol": mark, "size": 10 if len(points) == 1 else 8, "color": colour, **edge},
            name=words,
            legendgroup=name,
        )


def _looks(table: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Name, colour and mark of each way in the table, rankings first."""
    there = list(dict.fromkeys(table["policy"]))
    rankings = [name for name in there if name not in LOOKS]
    looks = {name: (f"by {name}", COLOURS[number % len(COLOURS)], "circle") for number, name in enumerate(rankings)}
    return looks | {name: look for name, look in LOOKS.items() if name in there}


def _points(rows: pd.DataFrame, quality: str) -> pd.DataFrame:
    """One row per budget: seeds are averaged, and their spread is kept."""
    numbers = ["kv_share", "full_heads", "recall", "perplexity", "kept", "agreement", "kept_low", "kept_high"]
    points = rows.groupby("budget")[numbers].mean().reset_index()
    spread = rows.groupby("budget")[quality].agg(["min", "max"]).reset_index()
    return points.merge(spread, on="budget").sort_values("kv_share").assign(seeds=rows["seed"].nunique())


def _bars(points: pd.DataFrame, quality: str) -> dict[str, Any] | None:
    if points["seeds"].iloc[0] > 1:
        low, high = points["min"], points["max"]
    elif quality == "kept":
        low, high = points["kept_low"], points["kept_high"]
    else:
        return None
    return {"type": "data", "array": high - points[quality], "arrayminus": points[quality] - low, "thickness": 1, "width": 3}
