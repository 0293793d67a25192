"""How much does the method of codes depend on its sizes and its seed? Its AUROC on the known circuit, as a picture. For `circuit_truth.py`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.circuits.code_controls import sensitivity
from workbench.circuits.compiled_ioi import ioi_model
from workbench.circuits.finding import residual_means
from workbench.circuits.tasks import TaskSet

COLOURS = ("#0b62a4", "#1a936f", "#c1121f", "#b5179e", "#5f6c37")
EXAMPLES, LATENTS, PAIRS = (5, 10, 25, 50, 100), (100, 200, 400), (10, 25, 64)
USUAL = {"examples": 10, "latents": 200}


def sensitivity_rows(data: TaskSet, truth_LH: np.ndarray, seeds: Sequence[int] = range(3)) -> pd.DataFrame:
    """AUROC by training examples, or size of the code book, by pairs that are coded, seed of the autoencoder, and seed of the model (β = 5, no leak)."""
    tables = []
    for model_seed in seeds:
        write_NLHD, positive_N = residual_means(ioi_model(seed=model_seed), data)
        pairs = sorted({min(count, len(data)) for count in PAIRS})
        others = [size for size in LATENTS if size != USUAL["latents"]]
        examples = [count for count in EXAMPLES if count <= len(positive_N)]
        for sizes in ({"examples": examples, "latents": [USUAL["latents"]]}, {"examples": [USUAL["examples"]], "latents": others}):
            found = sensitivity(write_NLHD, positive_N, truth_LH, seeds=seeds, pairs=pairs, **sizes)
            tables.append(found.assign(model_seed=model_seed))
    return pd.concat(tables, ignore_index=True)


def sensitivity_figure(rows: pd.DataFrame, causal: float) -> go.Figure:
    """Three panels: by training examples, by size of the code book, by pairs coded; points are seeds, lines their means."""
    most = rows["pairs"].max()
    panels = (
        ("examples", "examples to train on", rows[(rows["latents"] == USUAL["latents"]) & (rows["pairs"] == most)]),
        ("latents", "size of the code book", rows[(rows["examples"] == USUAL["examples"]) & (rows["pairs"] == most)]),
        ("pairs", "pairs of prompts coded", rows[(rows["examples"] == USUAL["examples"]) & (rows["latents"] == USUAL["latents"])]),
    )
    figure = make_subplots(rows=1, cols=3, shared_yaxes=True, subplot_titles=[title for _, title, _ in panels], horizontal_spacing=0.04)
    for column, (name, title, part) in enumerate(panels, 1):
        for colour, (seed, own) in zip(COLOURS, part.groupby("model_seed"), strict=False):
            figure.add_scatter(
                x=own[name], y=own["auroc"], mode="markers", marker={"color": colour, "size": 8, "opacity": 0.7}, name=f"model {seed}; points: autoencoders",
                legendgroup=str(seed), showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
        mean = part.groupby(name)["auroc"].mean()
        figure.add_scatter(x=mean.index, y=mean, mode="lines", line={"color": "#111111"}, name="mean", showlegend=column == 1, row=1, col=column)
        figure.update_xaxes(title=title, type="log", tickvals=sorted(part[name].unique()), row=1, col=column)
    figure.add_hline(y=0.5, line={"color": "#999999", "dash": "dot"}, annotation_text="chance")
    figure.add_hline(y=causal, line={"color": "#c1121f", "dash": "dash"}, annotation_text="activation patching")
    figure.update_yaxes(range=[0, 1.08], title="AUROC over 24 heads", col=1)
    figure.update_layout(
        title="Heads of the compiled IOI circuit by integer codes<br><sub>β = 5, no leak; otherwise 10 examples, 200 latents, all pairs</sub>",
        template="plotly_white", height=480, width=1000, legend={"orientation": "h", "y": -0.22}, margin={"t": 110},
        meta={"model": "compiled-ioi", "facts": {"model seeds": str(rows["model_seed"].nunique()), "autoencoder seeds": str(rows["seed"].nunique())}},
    )  # fmt: skip
    return figure
