"""Where are a text's sinks, and which scores of heads are about sinks? Layers and tokens, and the maps to choose from."""

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from workbench.labels import HeadLabels
from workbench.views.heads import Panel

if TYPE_CHECKING:
    from workbench.sinks import Sinks

FAMILIES = ("attention_sink", "sink_anywhere", "later_sink", "no_op")
"""How the names of probes begin that are about sinks."""

READABLE = 48
"""With at most so many tokens, each stands under its column."""


def sink_probes(labels: HeadLabels) -> list[str]:
    """The scores of a labels file that are about sinks, in its order."""
    return [name for name in labels.scores if name.startswith(FAMILIES)]


def sinks_panel(found: "Sinks", rule: str) -> Panel:
    """How many sinks each head has on a text by a rule, as a layer × head map."""
    return Panel(f"sinks by {rule}", found.by_head(rule).astype(float), (), "")


def places_figure(found: "Sinks", rule: str) -> go.Figure:
    """Tokens of the text to the right, layers downwards, shades by the number of heads of the layer that have a sink there by the rule.

    Hovering tells the token and the most that a head of the layer gives it (α: the mean over the rows that see the token, 0–1).
    """
    count_LK, most_LK = found.by_layer(rule), found.received_LHK.max(1)
    places, heads = list(range(len(found.tokens))), found.card.shape.n_heads
    told_LKT = np.empty((*count_LK.shape, 2), object)
    told_LKT[..., 0], told_LKT[..., 1] = [repr(token) for token in found.tokens], most_LK.round(3)
    heat = go.Heatmap(
        z=count_LK,
        x=places,
        customdata=told_LKT,
        colorscale="Cividis",
        zmin=0,
        zmax=heads,
        xgap=1 if len(places) <= 2 * READABLE else 0,
        ygap=1,
        colorbar={"title": {"text": "heads"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="layer %{y}, token %{x} %{customdata[0]}<br>%{z} heads of " + str(heads) + " have a sink here"
        "<br>the most that a head of the layer gives it: %{customdata[1]}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heat)
    figure.update_layout(template="plotly_white", height=150 + 13 * len(count_LK), margin={"t": 10, "l": 10, "r": 10, "b": 10})
    figure.update_yaxes(title="layer", autorange="reversed", showgrid=False, zeroline=False, automargin=True)
    figure.update_xaxes(title="token of the text", showgrid=False, zeroline=False, automargin=True)
    if len(places) <= READABLE:
        figure.update_xaxes(tickvals=places, ticktext=[repr(token)[1:-1] for token in found.tokens], tickangle=-60)
    return figure
