"""Where does one head look? The map of a rectangle of its attention, pooled or exact."""

import numpy as np
import plotly.graph_objects as go

from workbench.maps import AttentionMap

FAINTEST = -6
"""The power of ten below which shades no longer differ."""


def attention_figure(shown: AttentionMap, name: str = "") -> go.Figure:
    """Queries downwards, keys to the right, shades by the logarithm of the probability; what a causal head cannot see stays empty.

    Blocks of more than one token say so in the title and give the tokens that they join. `name` is that of the model.
    """
    rows, columns = (np.arange(size) * shown.block + begin for size, begin in zip(shown.value_UV.shape, (shown.queries[0], shown.keys[0]), strict=True))
    last = np.minimum(rows + shown.block, shown.queries[1]) - 1
    value_UV = np.where(columns[None, :] > last[:, None], np.nan, shown.value_UV)
    with np.errstate(divide="ignore"):
        shade_UV = np.clip(np.log10(value_UV), FAINTEST, None).astype(np.float32)
    pooled = "" if shown.exact else f", {'largest' if shown.reducer == 'max' else 'summed'} in blocks of {shown.block} × {shown.block} tokens"
    ticks = list(range(FAINTEST, 1))
    size = f" – %{{x}} + {shown.block - 1}" if not shown.exact else ""
    heat = go.Heatmap(
        z=shade_UV,
        x=columns,
        y=rows,
        customdata=value_UV.astype(np.float32),
        colorscale="Viridis",
        zmin=FAINTEST,
        zmax=max(0.0, float(np.nanmax(shade_UV, initial=0.0))),
        colorbar={"title": "probability", "tickvals": ticks, "ticktext": [f"{10.0**tick:g}" for tick in ticks]},
        hovertemplate=f"query %{{y}}<br>key %{{x}}{size}<br>%{{customdata:.3g}}<extra></extra>",
    )
    figure = go.Figure(heat)
    title = f"{name} {shown.head}: attention of queries {shown.queries[0]}–{shown.queries[1] - 1} to keys {shown.keys[0]}–{shown.keys[1] - 1}{pooled}".strip()
    figure.update_layout(title=title, template="plotly_white", width=900, height=900, meta={"model": name, "facts": _facts(shown)})
    figure.update_xaxes(title="key", constrain="domain", showgrid=False)
    figure.update_yaxes(title="query", autorange="reversed", scaleanchor="x", showgrid=False, zeroline=False)
    return figure


def _facts(shown: AttentionMap) -> dict[str, str]:
    """What the page says below the picture."""
    cells = "exact probabilities" if shown.exact else f"{shown.reducer} over blocks of {shown.block} × {shown.block} tokens"
    return {"prompt": f"{shown.tokens} tokens", "cells": cells, **{name: str(value) for name, value in shown.provenance.items() if value not in ([], None)}}
