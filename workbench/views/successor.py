"""What does a head write within a class of words, and do models keep a number's last digit? The matrix of a class, and features modulo ten."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.rules import RULES, rule_text
from workbench.views.heads import Panel
from workbench.views.scores import LABELLED

if TYPE_CHECKING:
    from workbench.successor import InClass

PROBE = "successor"
MARKS = {True: "yes", False: "no", None: "it has none"}


class Standing(NamedTuple):
    """How the heads of a model stand by the successor score: the map of it, the strongest head, and whether any passes the rule, as a sentence."""

    panel: Panel
    strongest: Head
    verdict: str

    def score(self, head: Head) -> float:
        """The head's score, 0–1."""
        return float(self.panel.score_LH[head.layer, head.index])

    def rank(self, head: Head) -> int:
        """The head's place, 1 the strongest; equal scores share it."""
        return int((self.panel.score_LH > self.score(head)).sum()) + 1


def standing(labels: HeadLabels, score_LH: Float[np.ndarray, "L H"], null_LH: Float[np.ndarray, "L H"] | None = None) -> Standing:
    """Where heads stand by `score_LH`, the successor score of the labels or of the weights; with nulls, the strongest head's is told.

    The heads that pass are those that the labels call so; where no rule of the labels asks, those that reach the value of `rules.RULES`.
    """
    rule = labels.rules.get(PROBE, RULES[PROBE])
    named = PROBE in labels.rules
    passing = labels.heads(PROBE) if named else tuple(head for head in labels.labels if score_LH[head.layer, head.index] >= rule.value)
    strongest = Head(*divmod(int(score_LH.argmax()), score_LH.shape[1]))
    null = "" if null_LH is None else f" (its null, with successors shuffled, {null_LH[strongest.layer, strongest.index]:.3f})"
    best = f"the strongest is {strongest} with {score_LH[strongest.layer, strongest.index]:.3f}{null}"
    by = f"by the rule ({rule_text(rule)}{', above its null' if named else ''})"
    count = "No head" if not passing else "1 head" if len(passing) == 1 else f"{len(passing)} heads"
    are = "are successor heads" if len(passing) > 1 else "is a successor head"
    which = f": {', '.join(map(str, passing))}" if passing else ""
    said = f"**{count} of {labels.card.name} {are}** {by}{which}; {best}."
    return Standing(Panel(PROBE, np.asarray(score_LH), passing, PROBE if passing else ""), strongest, said)


def class_table(seen: "InClass") -> pd.DataFrame:
    """Token by token of a class: what the head writes most within it, and whether that is the successor."""
    return pd.DataFrame({"looks at": seen.texts, "writes most": seen.best, "the successor": [MARKS[right] for right in seen.right]})


def class_figure(logits_TC: Float[np.ndarray, "T C"], texts: Sequence[str], title: str = "") -> go.Figure:
    """Tokens that the head looks at downwards, tokens that it writes to the right; shades are logits in standard deviations of their row.

    Both in the order of the words: a successor head has a blue line to the right of the diagonal, a copying head on it; a head that suppresses what it
    looks at has a red one on it.
    """
    shade_TC = (logits_TC - logits_TC.mean(1, keepdims=True)) / np.maximum(logits_TC.std(1, keepdims=True), 1e-12)
    labels = [repr(text)[1:-1] for text in texts]
    heat = go.Heatmap(
        z=shade_TC.astype(np.float32),
        x=labels,
        y=labels,
        colorscale="RdBu",
        zmid=0,
        colorbar={"title": {"text": "logit, sd"}, "thickness": 12, "outlinewidth": 0},
        customdata=np.asarray(logits_TC, np.float32),
        hovertemplate="looks at “%{y}”<br>writes “%{x}”<br>%{z:+.2f} sd, logit %{customdata:.3g}<extra></extra>",
    )
    figure = go.Figure(heat)
    margin = {"t": 60 if title else 10, "l": 10, "r": 10, "b": 10}
    figure.update_layout(title=title or None, template="plotly_white", height=max(380, min(760, 150 + 16 * len(labels))), margin=margin, meta={"model": title})
    figure.update_xaxes(title="written", type="category", tickangle=-60, showgrid=False, automargin=True)
    figure.update_yaxes(title="looked at", type="category", autorange="reversed", showgrid=False, automargin=True)
    return figure


def residue_figure(active_RF: Float[np.ndarray, "10 10"], features: Sequence[int]) -> go.Figure:
    """`successor.ModTen.active_RF`: residues of numbers downwards, their modal features to the right; blue above the feature's mean, red below.

    Features are chosen by the same tokens, so that some diagonal is always there. A feature that is modal of several residues stands several times.
    """
    names = [f"{residue} (no. {feature})" if feature >= 0 else f"{residue} (none)" for residue, feature in enumerate(features)]
    heat = go.Heatmap(
        z=active_RF, x=names, y=[str(residue) for residue in range(len(active_RF))], colorscale="RdBu", zmid=0, xgap=1, ygap=1,
        colorbar={"title": {"text": "activity, sd"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="numbers that end in %{y}<br>modal feature of %{x}<br>%{z:+.2f} sd from its mean<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heat)
    figure.update_layout(template="plotly_white", height=420, margin={"t": 10, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title="modal feature of the residue (its number)", type="category", tickangle=-60, showgrid=False, automargin=True)
    figure.update_yaxes(title="number modulo ten", type="category", autorange="reversed", showgrid=False, automargin=True)
    return figure


def transfer_figure(moved: pd.DataFrame) -> go.Figure:
    """How well a linear probe tells the residue in each class (bars, 0–1), and what the commonest residue would get (lines): `ModTen.transfer`, `left_out`.

    In brackets stands of how many tokens: one token more or less is much in a class of few.
    """
    figure = go.Figure()
    name = [f"{name} ({tokens})" for name, tokens in zip(moved["class"], moved["tokens"], strict=True)]
    figure.add_bar(
        y=name, x=moved["accuracy"], orientation="h", marker={"color": LABELLED}, name="linear probe", customdata=moved["tokens"],
        hovertemplate="%{y}: %{x:.1%} of %{customdata} tokens<extra></extra>",
    )  # fmt: skip
    mark = {"symbol": "line-ns", "size": 18, "line": {"width": 3, "color": "#888888"}}
    figure.add_scatter(y=name, x=moved["majority"], mode="markers", marker=mark, name="always the commonest", hovertemplate="%{y}: %{x:.1%}<extra></extra>")
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    figure.update_layout(template="plotly_white", height=110 + 34 * len(moved), legend=legend, margin={"t": 50, "l": 10, "r": 10, "b": 10})
    figure.update_yaxes(title="class (tokens)", autorange="reversed", automargin=True)
    figure.update_xaxes(title="accuracy", tickformat=".0%", range=[0, 1.02])
    return figure
