"""What does patching show? Effects of all heads as a map that can be clicked, with what was done in words; scores by codes beside their controls."""

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from workbench.heads import Head
from workbench.views.canvas import signed_canvas
from workbench.views.circuit_tables import effect_text
from workbench.views.scores import LABELLED, OTHERS

if TYPE_CHECKING:
    from workbench.circuits.coded import Coded
    from workbench.circuits.patch_question import Patched

MARKED = 10
"""Heads that carry a ring: the largest in size."""

ALPHA = 0.05


def patched_canvas(found: "Patched") -> bytes:
    """The mean effect of patching each head; rings around the ten largest in size, faint grey where there is no path. Heads of a KV group share theirs."""
    rows = {row["head"]: row for row in found.table.to_dict("records")}
    shape, groups = found.shape, found.effects.groups
    names = [f"L{head.layer}G{shape.kv_head(head)}" if groups else str(head) for head in shape.heads()]
    told = [f"{f'KV head {name}; ' if groups else ''}{effect_text(rows[name])}" if name in rows else "no path to the receiver" for name in names]
    largest = found.effects.ranked()[:MARKED]
    return signed_canvas(found.value_LH, "effect", told, largest, f"{len(largest)} largest in size")


def patched_text(found: "Patched", shades: bool = True) -> str:
    """What was done, in a sentence or three: method, task, prompts, direction, ablation, positions, receiver or component, and the metric's ends.

    `shades` tells what colours mean, too.
    """
    facts, asked = found.facts, found.question
    each = "KV head" if found.effects.groups else "head"
    what = f"each head's direct path to {facts['receiver']}" if asked.kind == "path" else f"{asked.component} of each {each}"
    runs, gives = ("clean", "corrupted") if asked.direction == "noising" else ("corrupted", "clean")
    by = {"resample": f"what it is on the {gives} prompt", "mean": f"its mean over {gives} prompts", "zero": "zero"}[asked.ablation]
    where = "at all positions" if asked.positions == "all" else "at the last position"
    dropped = f" Left out: {', '.join(f'{count} for {reason}' for reason, count in facts['dropped'].items())}." if facts["dropped"] else ""
    colours = ": blue, it falls; orange, it rises" if shades else ""
    return (
        f"{facts['prompts']} pairs of {asked.task} (seed {asked.seed}). The {runs} prompts run ({asked.direction}); {what} is replaced by {by}, {where}. "
        f"{'Shades' if shades else 'Effects'} are the change of the {facts['metric'].replace('_', ' ')}{colours}. "
        f"On clean prompts it is {facts['clean']:.3f}, on corrupted ones {facts['corrupted']:.3f}.{dropped}"
    )


def coded_canvas(found: "Coded", column: str) -> bytes:
    """One column of `Coded.table` as a map; rings around heads whose p under swapped labels is at most 0.05, before any correction."""
    rows = found.table.to_dict("records")
    told = [f"codes {row['codes']:.0f}, excess {row['excess']:+.2f}, p {row['p']:.3f}, distinct {row['distinct']:.0f}, norm {row['norm']:.2f}" for row in rows]
    marked = [Head.parse(row["head"]) for row in rows if row["p"] <= ALPHA]
    return signed_canvas(found.matrix(column), column, told, marked, f"{len(marked)} with p ≤ {ALPHA:g}")


def coded_figure(found: "Coded", control: str) -> go.Figure:
    """Every head by its score of codes and by a control (`excess`, `norm`, `distinct`): what lies on a line with the control says nothing more than it."""
    figure = go.Figure()
    low = found.table["p"] <= ALPHA
    for name, mask, colour, symbol in (("other heads", ~low, OTHERS, "circle"), (f"p ≤ {ALPHA:g} under swapped labels", low, LABELLED, "diamond")):
        rows = found.table[mask]
        jitter = np.random.default_rng(0).uniform(-0.18, 0.18, len(rows))
        figure.add_scatter(
            x=rows[control], y=rows["codes"] + jitter, customdata=rows[["head", "codes", "p"]], mode="markers", name=name,
            marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.7, "line": {"width": 0.5, "color": "white"}},
            hovertemplate="<b>%{customdata[0]}</b><br>codes %{customdata[1]:.0f}<br>" + control + " %{x:.2f}<br>p %{customdata[2]:.3f}<extra></extra>",
        )  # fmt: skip
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(template="plotly_white", height=400, legend=legend, margin={"t": 60, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title={"norm": "mean length of what the head writes", "distinct": "different codes on all prompts"}.get(control, control))
    figure.update_yaxes(title="codes of clean prompts only")
    return figure
