"""What does a model still find without some heads? Maps of length × depth side by side, and the totals with their intervals."""

import json
import textwrap
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.recall import MEASURES, VARIANTS, Recall

COLOURS = {"full": "#7f7f7f", "without": "#d55e00", "control": "#0072b2"}
"""Of the variants: readable on white and on black, and told apart by all."""
NARROW, WIDE = 22, 76
"""Characters of a line above one of three maps, and above all of them, where the window has 600 pixels."""
LENGTH, DEPTH = "length of the text, tokens", "depth of the needle"


def recall_map(found: Recall, variant: str, measure: str = "recall") -> go.Figure:
    """One variant's mean recall for each length and depth, 0–1 in equal colours for all variants; depth 0 is the start of the text."""
    figure = go.Figure(_heat(found, variant, measure))
    figure.update_layout(**_layout(found), height=170 + 44 * found.tests["depth"].nunique(), margin={"l": 60, "r": 10, "t": 50, "b": 50})
    figure.update_layout(title={"text": _name(found, variant, measure), "x": 0, "xref": "paper", "font": {"size": 14}})
    figure.update_xaxes(title=LENGTH, type="category")
    figure.update_yaxes(title=DEPTH, type="category", autorange="reversed")
    return figure


def recall_figure(found: Recall, measure: str = "recall") -> go.Figure:
    """The maps of all variants side by side; see `recall_map`."""
    there = list(found.totals(measure)["variant"])
    names = [_folded(_name(found, variant, measure), NARROW) for variant in there]
    figure = make_subplots(rows=1, cols=len(there), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.04)
    for column, variant in enumerate(there, 1):
        figure.add_trace(_heat(found, variant, measure), row=1, col=column)
    verdict, lines = _folded(found.verdict(measure), WIDE), max(name.count("<br>") for name in names)
    above = 104 + 18 * verdict.count("<br>") + 16 * lines
    title = {"text": f"{_folded(MEASURES[measure], WIDE)}<br><sub>{verdict}</sub>", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 26}}
    figure.update_layout(**_layout(found), height=110 + above + 44 * found.tests["depth"].nunique(), margin={"t": above}, title=title)
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(type="category")
    figure.update_xaxes(title=LENGTH, col=(len(there) + 1) // 2)  # once: under three narrow maps they would overlap
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_yaxes(title=DEPTH, col=1)
    return figure


def recall_totals(found: Recall, measure: str = "recall") -> go.Figure:
    """Each variant's recall over all tests with its 95% interval; of the others also every single draw."""
    figure = go.Figure()
    row: dict[str, Any]
    for row in found.totals(measure).to_dict("records"):
        colour, name = COLOURS[row["variant"]], VARIANTS[row["variant"]]
        bars = {"type": "data", "symmetric": False, "array": [row["high"] - row["mean"]], "arrayminus": [row["mean"] - row["low"]], "thickness": 2, "width": 6}
        said = f"{name}: %{{x:.3f}}<br>95% {row['low']:.3f} to {row['high']:.3f}<br>{row['n']} tests<extra></extra>"
        figure.add_scatter(x=[row["mean"]], y=[name], error_x=bars, mode="markers", marker={"size": 11, "color": colour}, hovertemplate=said)
        drawn = found.tests[found.tests["variant"] == row["variant"]].groupby("draw")[measure].mean()
        if len(drawn) > 1:
            single = {"symbol": "line-ns-open", "size": 14, "color": colour, "line": {"width": 2}}
            figure.add_scatter(x=drawn, y=[name] * len(drawn), mode="markers", marker=single, hovertemplate="one draw: %{x:.3f}<extra></extra>")
    figure.update_layout(**_layout(found), height=230, margin={"l": 10, "r": 10, "t": 10, "b": 40}, showlegend=False)
    figure.update_xaxes(title="recall over all tests, 0–1", range=[-0.02, 1.05])
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _heat(found: Recall, variant: str, measure: str) -> go.Heatmap:
    grid = found.grid(variant, measure)
    said = f"{VARIANTS[variant]}<br>%{{x}} tokens, depth %{{y}}<br>recall %{{z:.3f}}<extra></extra>"
    where = {"x": [f"{length:,}" for length in grid.columns], "y": [f"{depth:g}" for depth in grid.index]}
    looks = {"colorscale": "Cividis", "zmin": 0, "zmax": 1, "xgap": 2, "ygap": 2, "showscale": False}
    return go.Heatmap(z=grid.to_numpy(float), texttemplate="%{z:.2f}", hovertemplate=said, **where, **looks)


def _name(found: Recall, variant: str, measure: str) -> str:
    totals = found.totals(measure).set_index("variant").loc[variant]
    return f"{VARIANTS[variant]}: {totals['mean']:.2f}"


def _folded(text: str, width: int) -> str:
    """A text in lines of about so many characters."""
    return "<br>".join(textwrap.wrap(text, width))


def _layout(found: Recall) -> dict[str, Any]:
    facts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.provenance.items()}
    return {"template": "plotly_white", "meta": {"model": str(found.provenance.get("name", "a model")), "facts": facts}}
