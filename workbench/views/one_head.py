"""What is a head, and what is lost without it? Its scores with their rules, and next tokens with and without heads."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.rules import rule_text
from workbench.scores import HeadScores
from workbench.views.page import evidence_text

VARIANTS = {"whole": ("with all heads", "#999999"), "without": ("without {}", "#d55e00"), "control": ("without others of the same layers", "#0072b2")}
"""The columns of `looking.Without`: what they are (`{}` is the name of the heads), and their colours."""


def head_table(labels: HeadLabels, head: Head, scores: HeadScores | None = None) -> pd.DataFrame:
    """One row per probe: `probe`, `score`, `rank` of the head among all (1 the strongest), `label` where its rule gives one, `rule`, `source`, `evidence`.

    With the scores behind the labels also the 95% `interval` as text, and the head's `null`. `chance` says what the null is.
    """
    rows = []
    for probe, score_LH in labels.scores.items():
        own = float(score_LH[head.layer, head.index])
        rules = [rule for rule in labels.rules.values() if rule.probe == probe]
        given = [rule.label for rule in rules if rule.label in labels.labels[head]]
        words = {
            "rule": "; ".join(map(rule_text, rules)),
            "source": "; ".join(rule.source for rule in rules),
            "chance": "; ".join(rule.chance for rule in rules),
        }
        known = evidence_text(labels.evidence[probe]) if probe in labels.evidence else "not in the file"
        rows.append(
            {
                "probe": probe,
                "score": own,
                **_behind(scores, probe, head),
                "rank": int((score_LH > own).sum()) + 1,
                "label": ", ".join(given),
                **words,
                "evidence": known,
            }
        )
    return pd.DataFrame(rows).sort_values(["label", "rank"], key=lambda values: values == "" if values.name == "label" else values, ignore_index=True)


def _behind(scores: HeadScores | None, probe: str, head: Head) -> dict[str, object]:
    if scores is None or probe not in scores.probes:
        return {}
    low, high, null = (float(scores.matrix(probe, column)[head.layer, head.index]) for column in ("ci_low", "ci_high", "null"))
    return {"interval": "one sample" if np.isnan(low) else f"{low:.3f} – {high:.3f}", "null": null}


def following_figure(following: pd.DataFrame, name: str, variants: Mapping[str, tuple[str, str]] = MappingProxyType(VARIANTS)) -> go.Figure:
    """The next tokens behind a text as bars, one for each column of `variants` with its probability.

    By default with all heads, without `name`, and without controls, as `looking.Without.following` has them.
    """
    figure = go.Figure()
    places = list(range(len(following)))
    for column, (words, colour) in variants.items():
        told = words.format(name)
        figure.add_bar(y=places, x=following[column], name=told, orientation="h", marker={"color": colour}, hovertemplate="%{x:.4f}<extra>" + told + "</extra>")
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    figure.update_layout(template="plotly_white", height=110 + 34 * len(places), legend=legend, margin={"t": 60, "l": 10, "r": 10, "b": 10})
    figure.update_yaxes(tickvals=places, ticktext=[repr(token) for token in following["token"]], autorange="reversed", automargin=True)
    figure.update_xaxes(title="probability as the next token", rangemode="tozero")
    return figure


def adds_figure(table: pd.DataFrame, name: str) -> go.Figure:
    """Token by token, what a head's own write adds to the logit of the token that follows in the text, and which tokens it raises most there; logits."""
    rows = table[table["logit"].notna()]
    told = [[repr(row["token"]), repr(row["next"]), ", ".join(map(repr, row["raises"]))] for row in rows.to_dict("records")]
    figure = go.Figure(go.Bar(
        x=list(range(len(rows))), y=rows["logit"], customdata=told, marker={"color": np.where(rows["logit"] < 0, "#0b62a4", "#d97706")},
        hovertemplate="token %{x} %{customdata[0]}, followed by %{customdata[1]}<br>%{y:+.3f} logits<br>raises most: "
        "%{customdata[2]}<extra>" + name + "</extra>",
    ))  # fmt: skip
    figure.update_layout(template="plotly_white", height=300, margin={"t": 20, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title="token of the text")
    figure.update_yaxes(title="added to the logit of the next token")
    return figure


def lost_figure(lost: pd.DataFrame, name: str) -> go.Figure:
    """Token by token, how much less likely the text's own tokens become without `name`, and without controls; nats, above 0 is worse."""
    figure = go.Figure()
    places = list(range(1, len(lost) + 1))
    for column in ("without", "control"):
        words, colour = VARIANTS[column]
        told = words.format(name)
        figure.add_bar(x=places, y=lost["whole"] - lost[column], name=told, marker={"color": colour}, customdata=[repr(token) for token in lost["token"]],
                       hovertemplate="token %{x} %{customdata}<br>%{y:+.3f} nats<extra></extra>")  # fmt: skip
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(template="plotly_white", height=320, legend=legend, margin={"t": 60, "l": 10, "r": 10, "b": 10})
    figure.update_xaxes(title="token of the text")
    figure.update_yaxes(title="surprise added, nats")
    return figure
