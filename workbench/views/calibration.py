"""What does a calibration of sinks do? Gains of heads, how far the screening can be trusted, and held-out answers beside the controls."""

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from workbench.heads import Head
from workbench.views.canvas import signed_canvas
from workbench.views.heads import Panel
from workbench.views.scores import LABELLED, OTHERS

if TYPE_CHECKING:
    import numpy as np

    from workbench.calibration.reading import Found

ACT_VARIANTS = {
    "plain": ("the model as it is", "#999999"),
    "calibrated": ("{} calibrated", "#d55e00"),
    "control": ("as many others of the same layers calibrated", "#0072b2"),
}
"""The columns of `calibration.Trial.following`: what they are (`{}` is the name of the heads), and their colours."""

TASK_LOOKS = (("#d55e00", "square"), ("#0072b2", "circle"), ("#009e73", "triangle-up"), ("#cc79a7", "cross"), ("#e69f00", "star"))
"""Colour and mark of each task in turn; the mean over them is a white diamond with a black edge, which is seen on light and dark."""

MEAN = {"color": "white", "size": 11, "line": {"color": "black", "width": 1.5}}
SURE = 0.05
"""Below this p of McNemar's test, held-out answers tell that calibration changes something."""


def gain_canvas(found: "Found") -> bytes:
    """The change of accuracy by calibrating each head alone, as a layer × head map that can be clicked; kept heads are marked."""
    rows = {} if found.measured is None else {row["head"]: row for row in found.measured.to_dict("records")}
    layers, heads = found.gain_LH.shape
    told = []
    for head in (Head(layer, index) for layer in range(layers) for index in range(heads)):
        row = rows.get(str(head))
        told.append("not measured" if row is None else f"{row['fixed']} answers turned right, {row['broken']} wrong, of {row['n']}")
    return signed_canvas(found.gain_LH, "gain", told if rows else [""] * len(told), found.kept, f"{len(found.kept)} kept, to be calibrated")


def found_panel(found_LH: "np.ndarray", name: str) -> Panel:
    """How many sinks a calibration found in each head, as a layer × head map called `name`."""
    return Panel(name, found_LH.astype(float), (), "")


def screening_figure(measured: pd.DataFrame) -> go.Figure:
    """The measured change of the loss by calibrating one head, against the first-order change that chose what to measure; nats, below 0 is better."""
    figure = go.Figure()
    kinds = {"kept": (measured["kept"], LABELLED, "square"), "not kept": (~measured["kept"], OTHERS, "circle")}
    for name, (chosen, colour, mark) in kinds.items():
        rows = measured[chosen]
        figure.add_scatter(
            x=rows["predicted_seen"], y=rows["exact"], mode="markers", name=name, customdata=rows[["head", "chosen", "n"]],
            marker={"color": colour, "symbol": mark, "size": 9, "opacity": 0.8, "line": {"width": 0.5, "color": "white"}},
            hovertemplate="<b>%{customdata[0]}</b> (%{customdata[1]}, %{customdata[2]} questions)"
            "<br>first order %{x:+.4f}, measured %{y:+.4f} nats<extra></extra>",
        )  # fmt: skip
    edges = [float(measured[["predicted_seen", "exact"]].min().min()), float(measured[["predicted_seen", "exact"]].max().max())]
    figure.add_scatter(x=edges, y=edges, mode="lines", line={"dash": "dot", "color": "#888888"}, name="equal", hoverinfo="skip")
    figure.update_layout(template="plotly_white", height=380, legend=_ABOVE, margin=_TIGHT)
    figure.update_xaxes(title="change of the loss, first order (nats)", automargin=True)
    figure.update_yaxes(title="change of the loss, measured (nats)", automargin=True)
    return figure


def held_out_figure(held_out: pd.DataFrame) -> go.Figure:
    """Held-out questions: the change of accuracy for each way to calibrate, in all tasks and in each, with 95% intervals; right of 0 is better."""
    rows = held_out[held_out["heads"] != "none"]
    ways = list(dict.fromkeys(_way(row) for row in rows.to_dict("records")))
    tasks = [name for name in dict.fromkeys(rows["task"]) if name != "mean"]
    looks = {"mean": ("#888888", "diamond"), **{name: TASK_LOOKS[number % len(TASK_LOOKS)] for number, name in enumerate(tasks)}}
    figure = go.Figure()
    for number, (task, (colour, mark)) in enumerate(looks.items()):
        part = rows[rows["task"] == task]
        if part.empty:
            continue
        offset = 0.14 * (number - (len(looks) - 1) / 2)
        error = {
            "array": part["difference_high"] - part["difference"],
            "arrayminus": part["difference"] - part["difference_low"],
            "thickness": 1.2,
            "width": 3,
            "color": colour,
        }
        figure.add_scatter(
            x=part["difference"], y=[ways.index(_way(row)) + offset for row in part.to_dict("records")], error_x=error, mode="markers",
            marker={"color": colour, "symbol": mark, "size": 9} | (MEAN if task == "mean" else {}), name="mean over tasks" if task == "mean" else task,
            customdata=part[["n", "accuracy", "fixed", "broken", "p"]],
            hovertemplate="%{x:+.1%} of %{customdata[0]} questions, to %{customdata[1]:.1%} right<br>%{customdata[2]} answers turned right, "
            "%{customdata[3]} wrong; McNemar p = %{customdata[4]:.2g}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": "#888888", "width": 1})
    figure.update_layout(template="plotly_white", height=130 + 80 * len(ways), legend=_ABOVE, margin=_TIGHT)
    figure.update_yaxes(tickvals=list(range(len(ways))), ticktext=ways, autorange="reversed", automargin=True, zeroline=False)
    figure.update_xaxes(title="change of accuracy on held-out questions", tickformat="+.0%", automargin=True)
    return figure


def held_out_text(held_out: pd.DataFrame) -> str:
    """What calibrating the kept heads did on held-out questions, over all tasks, as a sentence: helps or hurts where McNemar's p is below 0.05."""
    rows = held_out[(held_out["heads"] == "kept") & (held_out["task"] == "mean")]
    if rows.empty:
        return "No head was kept, so that held-out questions tell nothing."
    row = rows.iloc[0]
    sure = row["p"] < SURE
    said = "helps" if sure and row["difference"] > 0 else "hurts" if sure else "shows no effect that they could tell"
    turned = f"{row['fixed']:.0f} answers turned right and {row['broken']:.0f} wrong, McNemar p = {row['p']:.2g}"
    interval = f"95% {row['difference_low']:+.1%} to {row['difference_high']:+.1%}"
    return f"On {row['n']:.0f} held-out questions calibrating the kept heads **{said}**: {row['difference']:+.1%} ({interval}; {turned})."


def _way(row: dict) -> str:
    count = f"{row['count']:.0f}"
    return {"kept": f"the {count} kept", "all": f"all {count}", "random": f"{count} random ({row['seed']:.0f})"}.get(row["heads"], row["heads"])


_ABOVE = {"orientation": "h", "traceorder": "normal", "y": 1.02, "yanchor": "bottom", "x": 0}
_TIGHT = {"t": 60, "l": 10, "r": 10, "b": 10}
