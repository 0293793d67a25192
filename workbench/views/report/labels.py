"""How do head labels stand in a report? How many heads of each kind, and for every probe its map, its distribution and its strongest heads."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.probes import PROBES
from workbench.results.caveats import listed
from workbench.results.of_scores import caveats_of_labels, caveats_of_scores
from workbench.results.standing import backed, standing, standing_in_short
from workbench.rules import rule_text
from workbench.scores import HeadScores
from workbench.views.canvas import head_canvas
from workbench.views.heads import Panel, panel_picture, panels, text_map
from workbench.views.page import evidence_text
from workbench.views.report.parts import Block, Card, Picture, Section, Table
from workbench.views.svg import Dot, distribution_picture, intervals_picture

STRONGEST = 10
MOST_CARDS = 40


def labels_section(labels: HeadLabels, scores: HeadScores | None, name: str, prefix: str = "") -> Section:
    """A section about the labels in the file `name`; the names of its pictures and tables begin with `prefix`."""
    shape, counts = labels.card.shape, labels.counts()
    none = sum(not names for names in labels.labels.values())
    words = [
        f"{shape.n_layers} layers × {shape.n_heads} query heads, {shape.n_kv_heads} KV heads in each layer. {none} of {len(labels.labels)} heads have no label."
    ]
    blocks: list[Block] = [_kinds(labels, counts, prefix)] if counts else []
    stands = standing(labels, scores)
    if stands["near"].any() or stands["at_null"].any():
        caption = "How firmly labels stand: heads whose 95% interval has the threshold inside, or reaches down to the head's own null. Files name the heads."
        blocks.append(Table(f"{prefix}standing", stands, caption, standing_in_short(stands)))
    known = set(backed(labels, scores))
    made = sorted(panels(labels), key=lambda shown: (not shown.meaning, shown.title != "retrieval"))
    blocks += [_card(labels, shown, scores if shown.title in known else None, prefix) for shown in made[:MOST_CARDS]]
    if len(made) > MOST_CARDS:
        words.append(f"{len(made) - MOST_CARDS} more maps are not drawn here; `workbench show` draws them.")
    text = text_map(made[0].score_LH, title=made[0].title, marked=made[0].marked, meaning=made[0].meaning).plain if made else ""
    return Section(f"Heads: {name}", tuple(words), tuple(blocks), tuple(caveats_of_labels(labels, scores, name)), _in_short(labels), text, (name,))


def scores_section(scores: HeadScores, name: str) -> Section:
    """A section about a table of scores that no labels stand beside."""
    bare = HeadLabels(scores.card, {}, {probe: scores.matrix(probe) for probe in scores.probes}, {}, scores.evidence, scores.provenance)
    section = labels_section(bare, scores, name)
    words = ("These are scores without labels; `workbench label` makes both.",)
    return replace(section, title=f"Scores: {name}", words=words, caveats=tuple(caveats_of_scores(scores, name)))


def scores_table(scores: HeadScores) -> Table:
    """The whole tidy table; the page shows the strongest of each probe."""
    best = pd.concat([scores.top(1, probe) for probe in scores.probes], ignore_index=True) if scores.probes else scores.table
    shown = best[[column for column in ("probe", "name", "score", "ci_low", "ci_high", "null", "n") if column in best]]
    table = scores.table
    table.attrs = {**scores.facts}
    caption = "Every head's score on every probe, with n, spread, 95% interval and null; shown is the strongest head of each probe."
    return Table("scores", table, caption, shown)


def _in_short(labels: HeadLabels) -> str:
    counts = {name: count for name, count in labels.counts().items() if count}
    if not counts:
        probe, score_LH = next(iter(labels.scores.items()), ("", None))
        best = [] if score_LH is None else [str(list(labels.labels)[place]) for place in np.argsort(-score_LH, axis=None, kind="stable")[:3]]
        return f"Scores of every head, no labels; the strongest by {probe}: {', '.join(best)}." if best else "No scores and no labels."
    return f"Heads by label: {listed(f'{name} {count}' for name, count in counts.items())}."


def _kinds(labels: HeadLabels, counts: dict[str, int], prefix: str) -> Table:
    rows = [
        {
            "label": name,
            "heads": count,
            "share": f"{count / len(labels.labels):.1%}",
            "rule": rule_text(labels.rules[name]) if name in labels.rules else "",
            "a random head gets": labels.rules[name].chance if name in labels.rules else "",
            "source": labels.rules[name].source if name in labels.rules else "the file has no rule",
        }
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    table = pd.DataFrame(rows)
    return Table(f"{prefix}labels", table, "How many heads have each label, by which rule; a label also asks for a score above the head's own null.")


def _card(labels: HeadLabels, shown: Panel, scores: HeadScores | None, prefix: str) -> Card:
    probe = shown.title
    question = PROBES[probe].question if probe in PROBES else ""
    facts = labels.evidence.get(probe)
    words = [question, _evidence(facts)]
    rules = [rule for rule in labels.rules.values() if rule.probe == probe]
    words += [f"{rule.label}: {rule_text(rule)} ({rule.source})." for rule in rules]
    pictures = [_map(labels, shown, prefix), _distribution(labels, shown, scores, prefix), _strongest(labels, shown, scores, prefix)]
    return Card(probe, tuple(filter(None, words)), tuple(picture for picture in pictures if picture is not None))


def _evidence(facts: Mapping[str, Any] | None) -> str:
    if not facts or "counted" not in facts:
        return "Evidence: the file tells none."
    said = evidence_text(facts)
    whole = f"all of {facts['tests']:,} samples count"
    return f"Evidence: {said.replace('ok', whole, 1) if said.startswith('ok') else said}."


def _map(labels: HeadLabels, shown: Panel, prefix: str) -> Picture:
    caption = "Score of every head" + ("; ringed are the labelled ones." if shown.meaning else ".")
    return Picture(f"{prefix}map_{shown.title}", panel_picture(labels, shown), caption, partial(head_canvas, labels, shown))


def _distribution(labels: HeadLabels, shown: Panel, scores: HeadScores | None, prefix: str) -> Picture | None:
    if shown.title not in labels.scores:
        return None
    marked = set(shown.marked)
    mine, others = ([float(shown.score_LH[head.layer, head.index]) for head in labels.labels if (head in marked) is belongs] for belongs in (True, False))
    null_LH = None if scores is None else scores.matrix(shown.title, "null")
    null = [] if null_LH is None else null_LH[np.isfinite(null_LH)].tolist()
    lines = [rule.value for rule in labels.rules.values() if rule.probe == shown.title and rule.kind == "at_least"]
    svg = distribution_picture(mine, others, null, lines, f"Histogram of the {shown.title} scores of all heads")
    caption = "How many heads have which score" + ("; dashed, the rule's threshold." if lines else ".") + ("" if null else " The nulls are not known.")
    return Picture(f"{prefix}distribution_{shown.title}", svg, caption)


def _strongest(labels: HeadLabels, shown: Panel, scores: HeadScores | None, prefix: str) -> Picture | None:
    if shown.title not in labels.scores:
        return None
    dots = list(_dots(shown, scores))
    lines = [rule.value for rule in labels.rules.values() if rule.probe == shown.title and rule.kind == "at_least"]
    svg = intervals_picture(dots, f"{shown.title} score", f"The {len(dots)} strongest heads by {shown.title} with intervals and nulls", lines)
    told = "with 95% intervals; grey, each head's null" if scores is not None else "; intervals and nulls are not known"
    return Picture(f"{prefix}strongest_{shown.title}", svg, f"The strongest heads {told}; filled dots have the label.".replace(" ;", ";"))


def _dots(shown: Panel, scores: HeadScores | None) -> Iterator[Dot]:
    order = np.argsort(-shown.score_LH, axis=None, kind="stable")[:STRONGEST]
    for layer, index in zip(*np.unravel_index(order, shown.score_LH.shape), strict=True):
        head = Head(int(layer), int(index))
        bounds = (None, None, None) if scores is None else (float(scores.matrix(shown.title, name)[layer, index]) for name in ("ci_low", "ci_high", "null"))
        yield Dot(str(head), float(shown.score_LH[layer, index]), *bounds, filled=head in shown.marked)
