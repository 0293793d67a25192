"""What does a head write within a class of words? The matrix of a class, in the order of its words."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float


def class_figure(logits_TC: Float[np.ndarray, "T C"], texts: Sequence[str], title: str = "") -> go.Figure:
    """Tokens that the head looks at downwards, tokens that it writes to the right; shades are logits in standard deviations of their row.

    Both in the order of the words: a successor head has a blue line to the right of the diagonal, a copying head on it; a head that suppresses what it
    looks at has a red one on it.
    """
    shade_TC = (logits_TC - logits_TC.mean(1, keepdims=True)) / np.maximum(logits_TC.std(1, keepdims=True), 1e-12)
    labels = [repr(text)[1:-1] for text in texts]
    places = list(range(len(labels)))
    heat = go.Heatmap(
        z=shade_TC.astype(np.float32),
        x=places,
        y=places,
        colorscale="RdBu",
        zmid=0,
        colorbar={"title": "logit, sd"},
        customdata=np.asarray(logits_TC, np.float32),
    )
    figure = go.Figure(heat)
    figure.update_traces(hovertemplate="looks at row %{y}<br>writes column %{x}<br>logit %{customdata:.3g}<extra></extra>")
    figure.update_layout(title=title, template="plotly_white", width=760, height=760, meta={"model": title})
    figure.update_xaxes(title="written", tickvals=places, ticktext=labels, constrain="domain", showgrid=False)
    figure.update_yaxes(title="looked at", tickvals=places, ticktext=labels, autorange="reversed", scaleanchor="x", showgrid=False)
    return figure
