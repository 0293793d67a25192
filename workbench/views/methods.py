"""Which method finds circuits? What each recovers of a circuit that is known, and how faithful its first heads are."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#888888")
DASHES = ("solid", "dash")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
"""Colours that colour-blind readers tell apart, on light and on dark; a method beyond the seventh has the second kind of line and another symbol."""

MEASURES = {"auroc": "AUROC", "average_precision": "average precision", "f1": "F1"}


def recovery_figure(table: pd.DataFrame, what: str) -> go.Figure:
    """AUROC, average precision and F1 of every method (`compared.recovery`), ± one standard deviation over model seeds; a line at chance."""
    figure = go.Figure()
    shown = {name: label for name, label in MEASURES.items() if name in table}
    for place, (name, label) in enumerate(shown.items()):
        figure.add_scatter(
            x=table[name], y=table["method"], mode="markers", name=label, orientation="h", offsetgroup=name,
            marker={"color": COLOURS[place], "symbol": SYMBOLS[place], "size": 10},
            error_x={"type": "data", "array": table[f"{name}_sd"], "thickness": 1.5, "width": 3},
            hovertemplate="%{y}<br>" + label + " %{x:.3f}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=float(table["chance"].iloc[0]), line={"dash": "dot", "width": 1.5, "color": "#888888"})
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(template="plotly_white", height=150 + 30 * len(table), legend=legend, margin={"t": 70, "l": 10, "r": 10, "b": 10})
    figure.update_layout(scattermode="group")  # one above the other, so that none hides another
    figure.update_xaxes(title=f"recovery of {what}, 0–1", range=[-0.03, 1.05])
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def kept_figure(table: pd.DataFrame, ablation: str, methods: Sequence[str]) -> go.Figure:
    """The faithfulness of the first k heads of each method (`compared.kept`), means over seeds; the bars span the seeds' 95% intervals."""
    figure = go.Figure()
    every = list(dict.fromkeys(table["method"]))
    for place, method in enumerate(every):
        if method not in methods:
            continue
        rows = table[table["method"] == method]
        turn, place_in = divmod(place, len(COLOURS))
        colour, symbol, dash = COLOURS[place_in], SYMBOLS[(place_in + turn) % len(SYMBOLS)], DASHES[turn % len(DASHES)]
        figure.add_scatter(
            x=[str(count) for count in rows["heads"]], y=rows["faithfulness"], mode="lines+markers", name=method,
            line={"color": colour, "dash": dash}, marker={"color": colour, "symbol": symbol, "size": 9},
            error_y={"type": "data", "symmetric": False, "array": rows["highest"] - rows["faithfulness"], "arrayminus": rows["faithfulness"] - rows["lowest"],
                     "thickness": 1, "width": 3},
            hovertemplate=f"{method}: first %{{x}} heads<br>faithfulness %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    for place in (0, 1):
        figure.add_hline(y=place, line={"dash": "dot", "width": 1, "color": "#888888"})
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(template="plotly_white", height=440, legend=legend, margin={"t": 90, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title="heads kept, first of the ranking", type="category")
    figure.update_yaxes(title=f"faithfulness ({ablation})")
    return figure
