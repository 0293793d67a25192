"""What does a policy keep, what does that save, and how fast is it? KV heads that stay full, memory over context, and measured speeds."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from workbench.policies import HeadPolicy

GIB, MIB = 2**30, 2**20
CURVES = {
    "full": ("every head full", "#888888", "dash"),
    "policy": ("this policy", "#d55e00", "solid"),
    "streaming": ("every head streaming", "#0072b2", "dot"),
}
"""The columns of `HeadPolicy.memory` as curves: what they are, their colours, and how they are drawn."""

SHARES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
"""Colours of the shares of full heads in a figure of speeds, the largest first."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKS = ("circle", "square", "diamond", "triangle-up", "x")


def policy_figure(policy: HeadPolicy, score_LG: Float[np.ndarray, "L G"] | None = None, name: str = "") -> go.Figure:
    """Layers to the right, KV heads downwards; rings are full heads. Shades are the scores called `name` that ranked them, if there are any."""
    shape, full_LG = policy.card.shape, policy.full_LG
    value_LG = full_LG.astype(float) if score_LG is None else score_LG
    told_LG = np.where(full_LG, "full: sees the whole context", f"streaming: sees {policy.sinks} first and {policy.window} last tokens")
    for layer, window in enumerate(policy.windows):
        told_LG[layer] = told_LG[layer] if window is None else f"the layer's own window of {window}"
    places = [[f"query heads {group * shape.group}–{(group + 1) * shape.group - 1}" for group in range(shape.n_kv_heads)] for _ in range(shape.n_layers)]
    heat = go.Heatmap(
        z=value_LG.T,
        customdata=np.stack([np.array(places, object).T, told_LG.T], axis=-1),
        colorscale="Cividis",
        zmin=min(0.0, float(value_LG.min())),
        zmax=max(float(value_LG.max()), 1e-9),
        xgap=1,
        ygap=1,
        showscale=score_LG is not None,
        colorbar={"title": {"text": "score"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="layer %{x}, KV head %{y} (%{customdata[0]})<br>%{customdata[1]}"
        + (f"<br>{name} %{{z:.3f}}" if score_LG is not None else "")
        + "<extra></extra>",
    )
    layers, heads = np.nonzero(full_LG)
    ring = {"size": 9 if max(shape.n_layers, shape.n_kv_heads) <= 16 else 6, "color": "white", "line": {"color": "black", "width": 1.5}}
    figure = go.Figure([heat, go.Scatter(x=layers, y=heads, mode="markers", marker=ring, hoverinfo="skip", name="full")])
    figure.update_layout(template="plotly_white", height=110 + 26 * min(shape.n_kv_heads, 24), margin={"t": 10, "l": 10, "r": 10, "b": 10}, showlegend=False)
    figure.update_xaxes(title="layer", range=[-0.5, shape.n_layers - 0.5], showgrid=False, zeroline=False, automargin=True)
    figure.update_yaxes(title="KV head", range=[shape.n_kv_heads - 0.5, -0.5], showgrid=False, zeroline=False, dtick=max(1, shape.n_kv_heads // 8))
    return figure


def memory_figure(table: pd.DataFrame, tokens: int | None = None) -> go.Figure:
    """Bytes of keys and values over the context, both logarithmic: `HeadPolicy.memory` as curves; a dotted line at `tokens`."""
    figure = go.Figure()
    for column, (words, colour, dash) in CURVES.items():
        figure.add_scatter(
            x=table["tokens"], y=table[column] / GIB, mode="lines", name=words, line={"color": colour, "dash": dash, "width": 2.5},
            customdata=np.stack([[bytes_text(size) for size in table[column]], table[column] / table["full"]], axis=-1),
            hovertemplate="%{x:,} tokens: %{customdata[0]}, %{customdata[1]:.1%} of the full cache<extra>" + words + "</extra>",
        )  # fmt: skip
    if tokens is not None:
        figure.add_vline(x=tokens, line={"dash": "dot", "color": "#888888"})
    legend = {"orientation": "h", "traceorder": "normal", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(template="plotly_white", height=420, legend=legend, margin={"t": 50, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title="context, tokens (logarithmic)", type="log", dtick=1, automargin=True)
    figure.update_yaxes(title="keys and values, GiB (logarithmic)", type="log", dtick=1, automargin=True)
    return figure


def bytes_text(size: float) -> str:
    """A number of bytes in words, such as 720 MiB or 1.41 GiB."""
    return f"{size / GIB:,.2f} GiB" if size >= GIB else f"{size / MIB:,.1f} MiB"


def speed_figure(rows: pd.DataFrame) -> go.Figure:
    """How many times faster than every head full, over the context (logarithmic): a colour for each share of full heads, a dash for each variant."""
    figure = go.Figure()
    shares, variants = sorted(set(rows["full"]), reverse=True), list(dict.fromkeys(rows["variant"]))
    for variant, share in dict.fromkeys(zip(rows["variant"], rows["full"], strict=True)):
        part = rows[(rows["variant"] == variant) & (rows["full"] == share)]
        looks = SHARES[shares.index(share) % len(SHARES)], DASHES[variants.index(variant) % len(DASHES)], MARKS[variants.index(variant) % len(MARKS)]
        figure.add_scatter(
            x=part["tokens"], y=part["times"], mode="lines+markers", name=f"{variant}, {share:.0%} full", line={"color": looks[0], "dash": looks[1]},
            marker={"symbol": looks[2], "size": 8}, customdata=part[["time", "unit"]],
            hovertemplate=f"{variant}, {share:.0%} of the KV heads full<br>%{{x:,}} tokens: %{{customdata[0]:.4g}} %{{customdata[1]}}, "
            "%{y:.2f} times as fast<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=1, line={"color": "#888888", "width": 1})
    legend = {"orientation": "h", "traceorder": "normal", "y": -0.2, "yanchor": "top", "x": 0}
    figure.update_layout(template="plotly_white", height=480, legend=legend, margin={"t": 20, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title="context, tokens (logarithmic)", type="log", tickvals=sorted(set(rows["tokens"])), tickformat=",", automargin=True)
    figure.update_yaxes(title="times as fast as every head full", rangemode="tozero", automargin=True)
    return figure
