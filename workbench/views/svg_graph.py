"""How do a matrix and a graph look without a script? Every pair of two lists as a shade with its number, and a circuit by its layers."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.circuits.circuit import Circuit
from workbench.heads import Head
from workbench.views.circuit import EDGES_SHOWN, HARMS, HELPS
from workbench.views.svg import RIGHT, RISING, SIGNED, WIDTH, drawing, text_at

NAMES = 154
"""Pixels for the names of a matrix's rows."""

MOST = 24
"""Letters of a name that stand beside a matrix; hovering tells all."""

NODE, STEP = 33, 27
"""Pixels of a head in a graph, and from layer to layer."""

BESIDE = 34
"""Pixels for the names of layers."""


def matrix_picture(table: pd.DataFrame, alt: str, *, signed: bool = False) -> str:
    """A table of numbers as shades, each with its number; its columns, numbered, are its rows' names in the same order. Nothing stands where there is none.

    `signed` puts 0 in the middle of the shades, blue below and orange above.
    """
    value_RC = table.to_numpy(float)
    known = value_RC[np.isfinite(value_RC)]
    most = float(np.abs(known).max()) if known.size else 0.0
    low, high = (-(most or 1.0) if signed else 0.0), most or 1.0
    shades = SIGNED if signed else RISING
    wide, tall = (WIDTH - NAMES - RIGHT) / max(1, value_RC.shape[1]), 21
    parts = [text_at(NAMES + (column + 0.5) * wide, 12, str(column + 1), "middle") for column in range(value_RC.shape[1])]
    for row, name in enumerate(map(str, table.index)):
        y = 18 + row * tall
        parts.append(f"<g><title>{html.escape(name)}</title>{text_at(NAMES - 5, y + 14, f'{row + 1} {short(name)}', 'end')}</g>")
        for column, value in enumerate(value_RC[row].tolist()):
            if np.isfinite(value):
                level = round(float(np.clip((value - low) / (high - low), 0, 1)) * (len(shades) - 1))
                told = f"{name}, {table.columns[column]}: {value:.3f}"
                cell = f'<rect x="{NAMES + column * wide:.1f}" y="{y}" width="{wide - 1:.1f}" height="{tall - 1}" fill="{shades[level]}"/>'
                number = f'<text x="{NAMES + (column + 0.5) * wide - 0.5:.1f}" y="{y + 13.5}" text-anchor="middle" font-size="9" fill="{_ink(shades[level])}">'
                parts.append(f"<g><title>{html.escape(told)}</title>{cell}{number}{_number(value)}</text></g>")
    return drawing(parts, WIDTH, 24 + tall * len(value_RC), alt)


def short(name: str) -> str:
    """A name without its options, no longer than there is room for."""
    plain = name.partition(":")[0]
    return plain if len(plain) <= MOST else f"{plain[: MOST - 1]}…"


def _number(value: float) -> str:
    """Two digits, as short as they go: .35, -.02, 0, 1.06."""
    return f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1).replace(".00", "0") if abs(value) < 0.995 else f"{value:.2f}"


def _ink(shade: str) -> str:
    """Black or white, whichever is read on a shade such as #00224e or rgb(0, 34, 78)."""
    numbers = [int(shade[place : place + 2], 16) for place in (1, 3, 5)] if shade.startswith("#") else [int(part) for part in shade[4:-1].split(",")]
    return "#000" if np.dot(numbers, (0.299, 0.587, 0.114)) > 130 else "#fff"


def graph_picture(circuit: Circuit, alt: str) -> str:
    """A circuit by layers, the input below and the logits above: its heads, and of the edges measured the `EDGES_SHOWN` strongest, as wide as they are strong.

    Blue: without it the metric falls; orange: it rises; grey: no single effect. Hovering tells the numbers.
    """
    graph = circuit.graph()
    layers = sorted({int(facts["layer"]) for _, facts in graph.nodes(data=True)}, reverse=True)
    place = {}
    for row, layer in enumerate(layers):
        nodes = sorted(
            (node for node, facts in graph.nodes(data=True) if facts["layer"] == layer), key=lambda node: Head.parse(node).index if "H" in node else 0
        )
        wanted = [Head.parse(node).index / max(1, circuit.card.shape.n_heads - 1) if "H" in node else 0.5 for node in nodes]
        place |= {node: (x, 12.0 + row * STEP) for node, x in zip(nodes, spread(wanted), strict=True)}
    edges = sorted(graph.edges(data=True), key=lambda edge: -edge[2]["strength"])[:EDGES_SHOWN]
    largest = max((facts["strength"] for *_, facts in edges), default=1.0) or 1.0
    parts = [text_at(BESIDE - 8, 16 + row * STEP, f"L{layer}", "end") for row, layer in enumerate(layers) if 0 <= layer < circuit.card.shape.n_layers]
    for sender, receiver, facts in reversed(edges):
        (x0, y0), (x1, y1) = place[sender], place[receiver]
        look = f'stroke="{HELPS if facts["effect"] < 0 else HARMS}" stroke-opacity="0.7" stroke-width="{0.6 + 4 * facts["strength"] / largest:.1f}"'
        told = html.escape(f"{sender} → {receiver} ({facts['branch']}): {facts['effect']:+.3f}")
        parts.append(f'<path d="M{x0:.1f} {y0}L{x1:.1f} {y1}" {look}><title>{told}</title></path>')
    for node, (x, y) in place.items():
        effect = graph.nodes[node].get("effect", np.nan)
        colour = "#555555" if np.isnan(effect) else HARMS if effect > 0 else HELPS
        told = node if np.isnan(effect) else f"{node}: {effect:+.3f}"
        box = f'<rect x="{x - NODE / 2 + 0.5:.1f}" y="{y - 8}" width="{NODE - 1}" height="16" rx="3" fill="{colour}" stroke="#fff" stroke-width="0.5"/>'
        name = f'<text x="{x:.1f}" y="{y + 3.5}" text-anchor="middle" font-size="9.5" fill="{_ink(colour)}">{html.escape(node)}</text>'
        parts.append(f"<g><title>{html.escape(told)}</title>{box}{name}</g>")
    return drawing(parts, WIDTH, 24 + STEP * (len(layers) - 1), alt)


def spread(wanted: Sequence[float]) -> list[float]:
    """Where the heads of one layer stand, from their wanted places 0–1 in rising order: none on another one while there is room, else evenly."""
    left, right = BESIDE + NODE / 2, WIDTH - RIGHT - NODE / 2
    if len(wanted) > 1 and NODE * (len(wanted) - 1) > right - left:
        return [left + (right - left) * number / (len(wanted) - 1) for number in range(len(wanted))]
    at = [left + (right - left) * share for share in wanted]
    for number in range(1, len(at)):
        at[number] = max(at[number], at[number - 1] + NODE)
    for number in reversed(range(len(at))):
        at[number] = min(at[number], right - NODE * (len(at) - 1 - number))
    return at
