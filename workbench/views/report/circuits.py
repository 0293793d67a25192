"""How does a circuit stand in a report? Its faithfulness beside random heads, the effect of every head, the heads and the edges."""

from functools import partial

import numpy as np

from workbench.circuits.circuit import Circuit
from workbench.heads import Head
from workbench.results.of_circuits import caveats_of_circuit
from workbench.views.canvas import signed_canvas
from workbench.views.circuit import COLOURS, EDGES_SHOWN
from workbench.views.report.parts import Block, Picture, Section, Table
from workbench.views.svg import Dot, intervals_picture, map_picture
from workbench.views.svg_graph import graph_picture

HEADS_SHOWN = 15
HELD_OUT = ["ablation", "n", "faithfulness", "low", "high", "random", "complement_faithfulness", "incompleteness"]


def circuit_section(circuit: Circuit, name: str) -> Section:
    """A section about the circuit in the file `name`."""
    made = circuit.provenance
    prompts, right = made.get("prompts", {}), made.get("accuracy", {})
    found = f"{len(circuit.heads)} heads for {circuit.task}, found by {made.get('method', 'a method that the file does not name')}"
    words = [f"{found}: {', '.join(map(str, circuit.heads))}."]
    if prompts and right:
        words.append(
            f"Searched on {prompts['searched']} prompts, evaluated on {prompts['held_out']} others, of which the model does {right['held_out']:.0%} right "
            f"(chance {right['chance']:.0%})."
        )
    words.append(f"The metric is {made.get('metric', 'not named')}: blue heads hold it up, orange ones work against it.")
    stem = name.removesuffix(".json")
    blocks: list[Block] = [_effects(circuit, stem), _strongest(circuit, stem)]
    if len(circuit.faithfulness):
        held = circuit.faithfulness
        columns = [column for column in HELD_OUT if column in held]
        caption = "Held-out prompts: how much of the metric's difference the circuit alone keeps (1: all), with 95% intervals; `random` is as many others."
        blocks += [_faithfulness(circuit, stem), Table(f"{stem}_faithfulness", held, caption, held[columns])]
    inside = circuit.effects[circuit.effects["head"].isin({str(head) for head in circuit.heads})]
    blocks.append(
        Table(f"{stem}_effects", circuit.effects, "The circuit's heads: the change of the metric without what each does; files have all heads.", inside)
    )
    if len(circuit.edges):
        blocks.insert(0, _graph(circuit, stem))
        edges = circuit.edges.sort_values("exact", key=abs, ascending=False)
        shown = edges[[column for column in ("edge", "exact", "low", "high", "q", "n") if column in edges]]
        blocks.append(Table(f"{stem}_edges", edges, "Edges between these heads, measured on held-out prompts, the strongest first.", shown))
    held = [f"{row['faithfulness']:.2f} ({row['low']:.2f} to {row['high']:.2f}, {row['ablation']})" for row in circuit.faithfulness.to_dict("records")]
    in_short = f"{len(circuit.heads)} heads for {circuit.task}: faithfulness {'; '.join(held) or 'not measured'}."
    return Section(f"Circuit: {circuit.task} ({name})", tuple(words), tuple(blocks), tuple(caveats_of_circuit(circuit, name)), in_short, sources=(name,))


def effect_matrix(circuit: Circuit) -> np.ndarray:
    """The effect of every head as layers × heads; NaN of heads without one."""
    effect_LH = np.full((circuit.card.shape.n_layers, circuit.card.shape.n_heads), np.nan)
    for row in circuit.effects.to_dict("records"):
        head = Head.parse(row["head"])
        effect_LH[head.layer, head.index] = row["effect"]
    return effect_LH


def _graph(circuit: Circuit, stem: str) -> Picture:
    shown = f"the {EDGES_SHOWN} strongest edges of {len(circuit.edges)}" if len(circuit.edges) > EDGES_SHOWN else "the edges"
    caption = f"The heads by layer, with {shown} measured between them on held-out prompts: wider is stronger. {COLOURS.capitalize()}."
    alt = f"Graph of the circuit for {circuit.task}: {len(circuit.heads)} heads by layer, the input below and the logits above, with the edges between them"
    return Picture(f"{stem}_graph", graph_picture(circuit, alt), caption)


def _effects(circuit: Circuit, stem: str) -> Picture:
    effect_LH = effect_matrix(circuit)
    told = {head: f"{head}: {effect_LH[head.layer, head.index]:+.3f}" for head in circuit.heads}
    alt = f"Layer by head map of the effect of each head on {circuit.task}; the {len(circuit.heads)} heads of the circuit are marked"
    caption = "Change of the metric without what each head does; ringed are the circuit's heads."
    inside = ["in the circuit" if head in told else "" for head in circuit.card.shape.heads()]
    canvas = partial(signed_canvas, effect_LH, "effect", inside, circuit.heads, f"{len(circuit.heads)} in the circuit")
    return Picture(f"{stem}_map", map_picture(effect_LH, told, "in the circuit", alt, signed=True), caption, canvas)


def _strongest(circuit: Circuit, stem: str) -> Picture:
    mine = {str(head) for head in circuit.heads}
    rows = circuit.effects.sort_values("effect", key=abs, ascending=False).head(HEADS_SHOWN)
    dots = [Dot(row["head"], row["effect"], row["low"], row["high"], filled=row["head"] in mine) for row in rows.to_dict("records")]
    svg = intervals_picture(dots, "change of the metric", f"The {len(dots)} heads with the largest effects, with intervals")
    return Picture(f"{stem}_strongest", svg, "The largest effects with 95% intervals; filled are the circuit's heads.")


def _faithfulness(circuit: Circuit, stem: str) -> Picture:
    rows = circuit.faithfulness.to_dict("records")
    dots = [Dot(row["ablation"], row["faithfulness"], row["low"], row["high"], row["random"]) for row in rows]
    svg = intervals_picture(dots, "faithfulness", "Faithfulness under each ablation with intervals, beside random heads", [1.0])
    return Picture(f"{stem}_held_out", svg, "Faithfulness by what stands in for the other heads; grey, as many random heads; dashed, all of the behaviour.")
