"""How far are head labels and scores to be believed? Their evidence, intervals and nulls, and how they were made."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from workbench.labels import HeadLabels
from workbench.results.caveats import Caveat, listed, sentence
from workbench.results.standing import backed, same_model, standing
from workbench.rules import rule_text
from workbench.scores import HeadScores

FEW = 10
"""With fewer samples than this an interval says little."""

BY_COUNT = ("top_share", "top_per_layer")
LOW_PRECISION = ("bfloat16", "float16")


def caveats_of_labels(labels: HeadLabels, scores: HeadScores | None, about: str, beside: str = "the file scores.parquet") -> list[Caveat]:
    """What the labels called `about` call for, with the table of scores beside them, called `beside`, if there is one."""
    every = [*_belonging(labels, scores, beside), *_evidence(labels.evidence), *_firmness(labels, scores), *_rules(labels), *_made(labels.provenance)]
    if not labels.card.fingerprint:
        every.append(("care", f"the fingerprint of {labels.card.name} is not known, so that nothing tells whether another model of this name has these heads"))
    return [Caveat(level, about, sentence(text)) for level, text in every]


def caveats_of_scores(scores: HeadScores, about: str) -> list[Caveat]:
    """What a table of scores calls for, by itself."""
    every = [*_evidence(scores.evidence), *_samples(scores, scores.probes), *_nulls(scores, scores.probes), *_made(scores.provenance)]
    return [Caveat(level, about, sentence(text)) for level, text in every]


Said = Iterator[tuple[str, str]]


def _belonging(labels: HeadLabels, scores: HeadScores | None, beside: str) -> Said:
    """Whether intervals and nulls are there, and of these very labels."""
    if not labels.scores:
        return
    if scores is None:
        yield "care", f"there is no table of scores beside {labels.card.name}'s labels, so that neither intervals nor nulls are known"
        return
    ours, theirs = labels.card, scores.card
    if not same_model(labels, scores):
        prints = f"fingerprint {theirs.fingerprint or 'unknown'}, the labels are of {ours.fingerprint or 'unknown'}"
        yield "stop", f"{beside} is of another model ({prints}): its intervals and nulls are not used"
        return
    good = set(backed(labels, scores))
    wrong = [name for name in labels.scores if name in scores.probes and name not in good]
    if wrong:
        yield (
            "stop",
            f"{beside} has other numbers than the labels for {listed(wrong)}: it is of another run, and its intervals and nulls are not used there",
        )
    if missing := [name for name in labels.scores if name not in scores.probes]:
        yield "care", f"{beside} has no intervals and nulls of {listed(missing)}"


def _evidence(evidence: Mapping[str, Mapping[str, Any]]) -> Said:
    """Tests that failed, and prompts that share what they are made from."""
    lacking = {name: facts for name, facts in evidence.items() if str(facts.get("status", "ok")) != "ok"}
    for name, facts in lacking.items():
        if "valid" in facts:
            tests = f"the model passed {facts['valid']} of {facts['tests']} tests"
            yield "stop", f"no scores of {name} ({facts['status']}: {tests}); that no head is labelled by it says nothing about the heads"
        else:
            yield "know", f"no scores of {name}: {facts['status']}"
    failed = {name: facts for name, facts in evidence.items() if name not in lacking and facts.get("counted", 0) < facts.get("tests", 0)}
    for name, facts in failed.items():
        dead = f", and in {facts['dead']} of those it passed no head found anything" if facts.get("dead") else ""
        yield "care", f"only {facts['counted']} of {facts['tests']} tests count for {name}: the model failed {facts['tests'] - facts['valid']}{dead}"
    shared = {name: len(set(facts.get("made_from", {}).get("needle", ()))) for name, facts in evidence.items()}
    alike = [f"{name} ({evidence[name]['counted']} tests, {count} needles)" for name, count in shared.items() if 0 < count < evidence[name].get("counted", 0)]
    if alike:
        yield "know", f"tests that share a needle are not independent, so that their intervals are too narrow: {listed(alike)}"
    for name, facts in evidence.items():
        if facts.get("restricted"):
            yield "know", f"restricted, {name}: {facts['restricted']}"
        if rows := facts.get("rows"):
            error = f"a head's mean has a standard error of up to {rows['largest_standard_error']:.3g}"
            yield "care", f"only {rows['sampled']} of {rows['of']} rows were read for {name}; {error}"


def _firmness(labels: HeadLabels, scores: HeadScores | None) -> Said:
    """Heads that the same rule may well judge otherwise on other prompts."""
    good = backed(labels, scores)
    if scores is None or not good:
        return
    stands = standing(labels, scores)
    near = stands[stands["near"]]
    losing = [f"{name} {count} of {len(labels.heads(str(name)))}" for name, count in near[near["labelled"]].groupby("label", sort=False).size().items()]
    if losing:
        yield "care", f"other prompts may well take the label from heads whose 95% interval reaches below the threshold: {', '.join(losing)}"
    gaining = [f"{name} {count}" for name, count in near[~near["labelled"]].groupby("label", sort=False).size().items()]
    if gaining:
        yield "know", f"heads without the label whose 95% interval reaches above the threshold: {', '.join(gaining)}"
    at_null = stands[stands["at_null"]]
    if len(at_null):
        told = [f"{name} {len(part)} of {len(labels.heads(str(name)))}" for name, part in at_null.groupby("label", sort=False)]
        yield "care", f"labelled heads whose interval reaches down to their own null: {', '.join(told)}"
    yield from _samples(scores, good)
    yield from _nulls(scores, good)


def _samples(scores: HeadScores, probes: tuple[str, ...]) -> Said:
    """How many samples, and how wide that leaves the intervals."""
    samples = {name: int(np.nanmax(scores.matrix(name, "n"))) for name in probes}
    if one := [name for name, count in samples.items() if count < 2]:
        yield "know", f"one sample has no interval: {listed(one)}"
    few = {name: count for name, count in samples.items() if 2 <= count < FEW}
    if few:
        told = [f"{name} {count} (±{_widest(scores, name):.2f})" for name, count in few.items()]
        yield "care", f"fewer than {FEW} samples, so that intervals are wide, at most so: {', '.join(told)}"
    if any(count > 1 for count in samples.values()):
        heads = scores.card.shape.n_layers * scores.card.shape.n_heads
        yield "know", f"intervals are of one head at a time: of {heads:,} heads about {0.05 * heads:.0f} lie outside of theirs by chance, for each probe"


def _widest(scores: HeadScores, probe: str) -> float:
    return float(np.nanmax(scores.matrix(probe, "ci_high") - scores.matrix(probe, "ci_low"))) / 2


def _nulls(scores: HeadScores, probes: tuple[str, ...]) -> Said:
    """Which nulls are missing, calculated, or measured on next to nothing."""
    null = {name: scores.matrix(name, "null") for name in probes}
    if missing := [name for name, null_LH in null.items() if not np.isfinite(null_LH).any()]:
        yield "care", f"no null: {listed(missing)}; nothing tells what a head without the behaviour scores"
    facts = {name: scores.evidence.get(name, {}) for name in probes if name not in missing}
    controls = {name: known for name, known in facts.items() if str(known.get("null", "")).startswith("control")}
    if calculated := [name for name in facts if name not in controls and "null" in facts[name]]:
        yield "know", f"the null is a calculated bound, the same for every head, and not measured on control prompts: {listed(calculated)}"
    if few := [f"{name} ({known['null_samples']})" for name, known in controls.items() if 1 < known.get("null_samples", FEW) < FEW]:
        yield "know", f"nulls of fewer than {FEW} control samples: {listed(few)}"
    if one := [name for name, known in controls.items() if known.get("null_samples") == 1]:
        yield "know", f"nulls of one control sample: {listed(one)}"


def _rules(labels: HeadLabels) -> Said:
    """Rules that label so many heads whatever these do, and thresholds that no paper gives."""
    used = {name: rule for name, rule in labels.rules.items() if labels.heads(name)}
    if ranked := [f"{name} ({rule_text(rule)})" for name, rule in used.items() if rule.kind in BY_COUNT]:
        yield "know", f"these rules label so many heads in any model, also in one without the behaviour: {', '.join(ranked)}"
    if house := [name for name, rule in used.items() if rule.source.startswith(("house default", "reconstruction"))]:
        yield "know", f"thresholds that no paper gives: {', '.join(house)}"
    if changed := [f"{name} ({rule_text(rule)})" for name, rule in labels.rules.items() if rule.source.startswith("set by the user")]:
        yield "know", f"thresholds set by the user: {', '.join(changed)}"


def _made(provenance: Mapping[str, Any]) -> Said:
    """Settings that change what the numbers mean."""
    if provenance.get("warning"):
        yield "care", str(provenance["warning"]).rstrip(".")
    if provenance.get("preset") == "quick":
        yield "know", "the quick preset: fewer and shorter prompts than in the papers, whose sizes `--preset paper` takes"
    if provenance.get("dtype") in LOW_PRECISION:
        yield "know", f"computed in {provenance['dtype']}: scores near a threshold may fall otherwise in float32"
    if provenance.get("edits"):
        yield "care", f"the model was changed while it was measured: {provenance['edits']}"
    for line in provenance.get("clamped", ()):
        yield "know", str(line).rstrip(".")
