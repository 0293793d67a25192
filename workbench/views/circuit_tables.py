"""How far is a circuit to be believed? Its faithfulness under every ablation, as a figure and as a table; its heads as a map."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.circuits.circuit import Circuit
from workbench.views.canvas import signed_canvas
from workbench.views.scores import LABELLED, OTHERS

RIVALS = "#999999"


def faithfulness_table(table: pd.DataFrame) -> pd.DataFrame:
    """What was measured, as text, a row for each measure and a column for each ablation: `Faithfulness.table`, turned, whatever columns it has."""
    turned = with_intervals(table.set_index("ablation").astype(float)).T
    return turned.map(_text).rename_axis(columns=None).reset_index(names="measure")


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The same with a number and the ends of its interval, in the columns beside it, in one cell: 0.62 (0.44 to 0.77)."""
    made = table.copy()
    for name in table:
        low, high = ("low", "high") if name == "faithfulness" else (f"{name}_low", f"{name}_high")
        if low in table:
            cells = zip(table[name], table[low], table[high], strict=True)
            made[name] = [None if pd.isna(value) else f"{value:.3g} ({least:.3g} to {most:.3g})" for value, least, most in cells]
            made = made.drop(columns=[low, high])
    return made


def _text(cell: Any) -> str:
    return "–" if pd.isna(cell) else f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def faithfulness_figure(table: pd.DataFrame) -> go.Figure:
    """Faithfulness of the circuit with its interval, of its complement, and of random circuits of its layers, under every ablation; 1 is the full model."""
    figure = go.Figure()
    series = {
        "circuit": ("faithfulness", "low", "high", LABELLED, "circle"),
        "without the circuit": ("complement_faithfulness", "complement_faithfulness_low", "complement_faithfulness_high", OTHERS, "x"),
        "random circuits of the same layers": ("random", "", "", RIVALS, "square-open"),
    }
    for name, (column, low, high, colour, symbol) in series.items():
        if column not in table:
            continue
        bars = {"error_x": _interval(table[column], table[low], table[high])} if low in table and high in table else {}
        marker = {"color": colour, "symbol": symbol, "size": 10}
        text = "%{y}: %{x:.2f}<extra>" + name + "</extra>"
        figure.add_scatter(x=table[column], y=table["ablation"], mode="markers", name=name, marker=marker, hovertemplate=text, **bars)
    for place in (0, 1):
        figure.add_vline(x=place, line={"dash": "dot", "width": 1, "color": RIVALS})
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    figure.update_layout(template="plotly_white", height=190 + 34 * len(table), legend=legend, margin={"t": 70, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title="faithfulness (1: full model)")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _interval(value: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, object]:
    return {"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low, "width": 6, "thickness": 2}


def effects_canvas(circuit: Circuit) -> bytes:
    """The effect of every head as a map that can be clicked; the circuit's heads carry rings, heads that were not measured are grey."""
    shape = circuit.card.shape
    rows = {row["head"]: row for row in circuit.effects.to_dict("records")}
    value_LH = pd.Series([rows[str(head)]["effect"] if str(head) in rows else float("nan") for head in shape.heads()], dtype=float)
    told = [effect_text(rows[str(head)]) if str(head) in rows else "not measured" for head in shape.heads()]
    marks = f"{len(circuit.heads)} in the circuit"
    return signed_canvas(value_LH.to_numpy().reshape(shape.n_layers, shape.n_heads), "effect", told, circuit.heads, marks)


def effect_text(row: Mapping[str, Any]) -> str:
    """An effect's interval, its share of the whole difference, and its q-value, as far as the row (of `effects.COLUMNS`) has them."""
    parts = []
    if row["low"] == row["low"]:
        parts.append(f"95% interval {row['low']:+.3f} to {row['high']:+.3f}")
    if row["normalised"] == row["normalised"]:
        parts.append(f"{row['normalised']:.0%} of the whole difference")
    if "q" in row:
        parts.append(f"q {row['q']:.3f}")
    return "; ".join(parts)
