"""When do heads appear while a model is trained? Losses, the strongest head of each kind, and how many there are, over steps; one column per run."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.emergence.onset import THRESHOLDS, UNNORMALISED, checked, strongest

LOSSES = {
    "text": ("loss on held-out text", "#0b62a4", "solid"),
    "first": ("loss on random tokens", "#999999", "dot"),
    "second": ("loss on their repetition", "#c1121f", "solid"),
}
"""Name, colour and line of each loss."""

KINDS = {
    "previous_token": ("previous token", "#0b62a4", "circle"),
    "induction": ("induction", "#d97706", "square"),
    "attention_sink": ("attention sink", "#1a936f", "diamond"),
    "attention_sink_bos": ("sink on BOS, random tokens", "#b5179e", "x"),
}
"""Name, colour and mark of each kind of head."""

READINGS = {"probabilities": ("solid", ""), "shares": ("solid", ""), "weights": ("dot", ", weights not normalised")}
"""How each reading of the attention is drawn, and what its name adds."""

ROWS = ("loss, nats per token", "score of the strongest head", "heads above the threshold")


def emergence_figure(table: pd.DataFrame, run: str = "run", seed: str = "seed") -> go.Figure:
    """A table of checkpoints (`emergence.swept`, with columns that name the run and its seed) as a picture: one column per run, a line per seed.

    Steps are logarithmic; step 0, which has no logarithm, stands at the left edge. Dashed lines are the thresholds,
    which are for rows that sum to 1; no head is counted by weights that are not normalised.
    """
    checked(table, [run, seed, "reading"])
    names, left = list(dict.fromkeys(table[run])), _left(table)
    titles = [str(name) if row == 0 else "" for row in range(len(ROWS)) for name in names]
    figure = make_subplots(len(ROWS), len(names), shared_xaxes=True, shared_yaxes="rows", subplot_titles=titles, vertical_spacing=0.05, horizontal_spacing=0.02)
    shown: set[str] = set()
    for column, name in enumerate(names, 1):
        for row, trace in _traces(table[table[run] == name], seed, left):
            figure.add_trace(trace.update(showlegend=trace.name not in shown), row=row, col=column)
            shown.add(trace.name)
        for probe, (_, colour, _mark) in KINDS.items():
            figure.add_hline(y=THRESHOLDS[probe], line={"dash": "dash", "width": 1, "color": colour}, opacity=0.5, row=2, col=column)
        figure.update_xaxes(title="step", row=len(ROWS), col=column)
    for row, title in enumerate(ROWS, 1):
        figure.update_yaxes(title=title, rangemode="tozero", row=row, col=1)
    figure.update_yaxes(dtick=1 if table.groupby("layer")["head"].max().add(1).sum() <= 12 else None, row=len(ROWS))
    ticks = [step for step in (10**power for power in range(8)) if left < step <= table["step"].max()]
    figure.update_xaxes(type="log", tickvals=[left, *ticks], ticktext=["0", *(f"{step:,}" for step in ticks)])
    legend = {"orientation": "h", "y": -0.08, "yanchor": "top", "x": 0}
    figure.update_layout(template="plotly_white", height=780, width=max(520, 120 + 260 * len(names)), legend=legend, margin={"t": 40, "r": 10})
    return figure


def _left(table: pd.DataFrame) -> float:
    """Where step 0 is drawn: half of the first step after it."""
    return float(table.loc[table["step"] > 0, "step"].min()) / 2


def _traces(rows: pd.DataFrame, seed: str, left: float) -> Iterator[tuple[int, go.Scatter]]:
    """The lines of one run, each with its row in the figure."""
    for number, part in rows.groupby(seed):
        losses = part.groupby("step")[list(LOSSES)].first()
        at, told = losses.index.to_series().clip(lower=left), f"step %{{customdata}}, seed {number}<br>%{{y:.3f}}"
        for loss, (words, colour, dash) in LOSSES.items():
            line = {"color": colour, "dash": dash, "width": 2}
            yield 1, go.Scatter(x=at, y=losses[loss], customdata=losses.index, mode="lines", line=line, name=words, legendgroup=words, hovertemplate=told)
        best = strongest(part, ["reading"])
        for reading, probe in ((reading, probe) for reading in READINGS for probe in KINDS):
            head = best[(best["reading"] == reading) & (best["probe"] == probe)]
            if head.empty:
                continue
            words, colour, mark = KINDS[probe]
            dash, more = READINGS[reading]
            which = [f"L{layer}H{index}" for layer, index in zip(head["layer"], head["head"], strict=True)]
            look: dict[str, Any] = {"mode": "lines+markers", "line": {"color": colour, "dash": dash}, "marker": {"symbol": mark, "size": 5, "color": colour}}
            look |= {"name": words + more, "legendgroup": words + more, "x": head["step"].clip(lower=left)}
            data = list(zip(head["step"], which, strict=True))
            told = f"step %{{customdata[0]}}, seed {number}: %{{y:.3f}} at %{{customdata[1]}}"
            yield 2, go.Scatter(y=head["score"], customdata=data, hovertemplate=told, **look)
            if reading == UNNORMALISED:
                continue
            look["line"] = {**look["line"], "shape": "hv"}
            yield 3, go.Scatter(y=head["heads"], customdata=data, hovertemplate=f"step %{{customdata[0]}}, seed {number}: %{{y}} heads", **look)
