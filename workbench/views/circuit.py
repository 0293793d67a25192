"""What does a circuit look like? Its heads by layer with the edges measured between them, and beside it the effect of every head of the model."""

import networkx as nx
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.circuits.circuit import Circuit
from workbench.heads import Head

HELPS, HARMS = "#0b62a4", "#d97706"
"""Colours of what the metric needs (patching it lowers the metric), and of what works against it."""

COLOURS = "blue: without what it does the metric falls; orange: it rises; grey: no single effect"

EDGES_SHOWN = 60
"""Of the edges the strongest, so that they can still be told apart."""

ROW = 40
"""Pixels for each layer of the graph."""


def circuit_figure(circuit: Circuit) -> go.Figure:
    """A circuit as a layered graph, the input below and the logits above, and the layer × head map of effects; hovering tells numbers."""
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.6, 0.4], horizontal_spacing=0.09, subplot_titles=["heads and edges measured", "effect of each head"]
    )
    _draw_graph(figure, circuit.graph(), circuit.card.shape.n_layers)
    _draw_map(figure, circuit)
    row = circuit.faithfulness.iloc[0] if len(circuit.faithfulness) else None
    said = "" if row is None else f"; faithfulness {row['faithfulness']:.2f} ({row['low']:.2f} to {row['high']:.2f}, {row['ablation']}), on held-out prompts"
    name = f"{circuit.card.name}, {circuit.task}: {len(circuit.heads)} heads"
    figure.update_layout(
        title={
            "yref": "container",
            "y": 0.97,
            "yanchor": "top",
            "text": f"{name}<br><sub>by {circuit.provenance.get('method', '')}{said}<br>{COLOURS}</sub>",
        },
        template="plotly_white",
        height=max(700, 260 + ROW * len({head.layer for head in circuit.heads})),
        showlegend=False,
        margin={"t": 150},
        meta={"model": circuit.card.name, "facts": {name: str(value) for name, value in circuit.provenance.items()}},
    )
    return figure


def graph_figure(circuit: Circuit) -> go.Figure:
    """The layered graph of a circuit alone; its heads carry their names as custom data, so that a click can open them."""
    figure = make_subplots(rows=1, cols=1)
    graph = circuit.graph()
    _draw_graph(figure, graph, circuit.card.shape.n_layers)
    figure.update_layout(
        template="plotly_white",
        height=100 + 38 * len({facts["layer"] for _, facts in graph.nodes(data=True)}),
        showlegend=False,
        margin={"t": 10, "l": 10, "r": 0, "b": 10},
        meta={"model": circuit.card.name, "facts": {name: str(value) for name, value in circuit.provenance.items()}},
    )
    figure.update_xaxes(range=[-0.55, circuit.card.shape.n_heads - 0.45], showgrid=False)
    figure.update_yaxes(title=None, ticktext=[text and f"L{text}" for text in figure.layout.yaxis.ticktext], automargin=True)
    return figure


def _draw_graph(figure: go.Figure, graph: nx.DiGraph, layers: int) -> None:
    place = _places(graph)
    edges = sorted(graph.edges(data=True), key=lambda edge: -edge[2]["strength"])[:EDGES_SHOWN]
    largest = max((edge[2]["strength"] for edge in edges), default=1.0) or 1.0
    middles, told = [], []
    for sender, receiver, facts in reversed(edges):
        (x0, y0), (x1, y1) = place[sender], place[receiver]
        colour = HELPS if facts["effect"] < 0 else HARMS
        middles.append(((x0 + x1) / 2, (y0 + y1) / 2))
        told.append(f"{sender} → {receiver} ({facts['branch']}): {facts['effect']:+.3f}")
        line = {"color": colour, "width": 0.6 + 5 * facts["strength"] / largest}
        figure.add_scatter(x=[x0, x1], y=[y0, y1], mode="lines", line=line, opacity=0.6, hoverinfo="skip", row=1, col=1)
    if edges:
        x, y = zip(*middles, strict=True)
        figure.add_scatter(x=x, y=y, mode="markers", marker={"size": 7, "color": "#555555", "opacity": 0.01}, hovertext=told, hoverinfo="text", row=1, col=1)
    effect = [graph.nodes[node].get("effect", np.nan) for node in graph]
    figure.add_scatter(
        x=[place[node][0] for node in graph],
        y=[place[node][1] for node in graph],
        mode="markers+text",
        text=list(graph),
        textposition="middle center",
        textfont={"size": 10, "color": "white"},
        marker={"symbol": "square", "size": 32, "color": [HARMS if value > 0 else HELPS if value <= 0 else "#555555" for value in effect]},
        hovertext=[node if np.isnan(value) else f"{node}: {value:+.3f}" for node, value in zip(graph, effect, strict=True)],
        hoverinfo="text",
        customdata=list(graph),
        row=1,
        col=1,
    )
    rows = {place[node][1]: int(graph.nodes[node]["layer"]) for node in graph}
    names = ["" if layer in (-1, layers) else str(layer) for layer in rows.values()]
    figure.update_xaxes(title="head", zeroline=False, dtick=1, row=1, col=1)
    figure.update_yaxes(title="layer", zeroline=False, tickvals=list(rows), ticktext=names, row=1, col=1)


def _places(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """Where each node stands: at its number within the layer, and its layer's place among those there are; input and logits in the middle."""
    layers = sorted({int(graph.nodes[node]["layer"]) for node in graph})
    index = {node: float(Head.parse(node).index) for node in graph if "H" in node}
    middle = (min(index.values(), default=0.0) + max(index.values(), default=0.0)) / 2
    return {node: (index.get(node, middle), float(layers.index(int(graph.nodes[node]["layer"])))) for node in graph}


def _draw_map(figure: go.Figure, circuit: Circuit) -> None:
    shape = circuit.card.shape
    effect_LH = np.full((shape.n_layers, shape.n_heads), np.nan)
    for row in circuit.effects.to_dict("records"):
        head = Head.parse(row["head"])
        effect_LH[head.layer, head.index] = row["effect"]
    largest = float(np.nanmax(np.abs(effect_LH))) if np.isfinite(effect_LH).any() else 1.0
    names = [[f"L{layer}H{index}" for index in range(shape.n_heads)] for layer in range(shape.n_layers)]
    figure.add_heatmap(
        z=effect_LH, zmin=-largest, zmax=largest, colorscale=[[0, HELPS], [0.5, "#ffffff"], [1, HARMS]], customdata=names,
        hovertemplate="%{customdata}: %{z:+.3f}<extra></extra>", colorbar={"title": "change of<br>the metric", "len": 0.5}, row=1, col=2,
    )  # fmt: skip
    inside = {"x": [head.index for head in circuit.heads], "y": [head.layer for head in circuit.heads]}
    figure.add_scatter(**inside, mode="markers", marker={"symbol": "circle-open", "size": 9, "color": "#111111"}, hoverinfo="skip", row=1, col=2)
    figure.update_xaxes(title="head", dtick=1, row=1, col=2)
    figure.update_yaxes(title="layer", tick0=0, dtick=max(1, shape.n_layers // 10), row=1, col=2)
