"""What does a checkpoint show? The scores of its heads with its losses beside them; of sigmoid attention from the weights that it really uses.

A checkpoint with softmax attention is scored by `score`. One with sigmoid attention has no probabilities: its `weights` are scored as they are used
(a row may sum to more than 1 or to nearly nothing), and so are its `shares`, each row divided by its sum, which say where a row looks most, however weakly.
The thresholds of labels are for rows that sum to 1, as do probabilities and shares; no head is labelled by its weights.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.emergence.onset import BOS_SINK
from workbench.emergence.sigmoid import SigmoidModel, opened
from workbench.emergence.training import Growth, losses
from workbench.errors import InputError
from workbench.given import from_patterns, uniform
from workbench.groups import Group, plan
from workbench.measure import score
from workbench.models import HFModel, load
from workbench.options import Options
from workbench.probes import Probe, probe
from workbench.prompts import Prompts
from workbench.reads import NextToken
from workbench.recipes import RandomTokens, Recipe
from workbench.scores import summarise

TINY = 1e-12
"""What a row of weights sums to at least, when it is divided by its sum."""

COLUMNS = ["step", "reading", "probe", "layer", "head", "score", "ci_low", "ci_high", "null", "text", "first", "second"]
"""The columns of a table of checkpoints: the scores of `HeadScores`, and the losses of `Losses` beside each."""


SINK = replace(probe("attention_sink_random"), name=BOS_SINK, recipes={"quick": RandomTokens(count=16, bos=True)}, also=())
"""Attention that BOS receives from random tokens: where an induction head finds nothing, it has to look somewhere."""


def asked(context: int) -> list[tuple[list[str | Probe], Options]]:
    """The probes and their options for a model of so many tokens: natural text of the previous-token probe is no longer than that."""
    return [(["previous_token"], Options(length=context)), (["induction", "attention_sink", SINK], Options())]


def scored(model: HFModel, *, seed: int = 0) -> pd.DataFrame:
    """The scores of every head on the watched probes, with the column `reading`: probabilities, or weights and shares of a model with sigmoid attention."""
    tables = []
    for probes, options in asked(model.max_length):
        if not isinstance(model, SigmoidModel):
            tables.append(score(model, probes, seed=seed, options=options).table.assign(reading="probabilities"))
            continue
        weights = pattern_scores(model, model.patterns, probes, seed=seed, options=options, null=halves)
        tables.append(weights.assign(reading="weights"))
        seen = pattern_scores(model, lambda prompts: shares(model.patterns(prompts)), probes, seed=seed, options=options)
        tables.append(seen.assign(reading="shares"))
    return pd.concat(tables, ignore_index=True)


def shares(weight_BLHQK: Tensor) -> Tensor:
    """Each row divided by its sum."""
    return weight_BLHQK / weight_BLHQK.sum(-1, keepdim=True).clamp_min(TINY)


def halves(prompts: Prompts) -> Tensor:
    """The weights of a sigmoid head whose queries are 0: ½ of every key that a row sees, as one head of one layer."""
    return torch.full((prompts.count, 1, 1, prompts.length, prompts.length), 0.5).tril()


def pattern_scores(
    model: HFModel,
    patterns: Callable[[Prompts], Tensor],
    probes: Sequence[str | Probe],
    *,
    seed: int = 0,
    options: Options | None = None,
    null: Callable[[Prompts], Tensor] | None = None,
) -> pd.DataFrame:
    """Scores of probes from the patterns [B, L, H, Q, K] that a function gives for prompts, summarised as `score` does.

    Prompts, controls and seeds are those of `score`. Where the null is uniform attention, it is a softmax's, unless `null` gives patterns for it.
    Raises `InputError` for a probe that asks for more than patterns.
    """
    rows = []
    for group in plan(probes, options=options):
        if group.recipe is None or any(isinstance(read, NextToken) for read in group.reads):
            raise InputError(f"{group.name}: not a probe of patterns alone")
        samples, nulls = _samples(model, patterns, group, group.recipe, seed), _nulls(model, patterns, null, group, seed)
        for member in group.probes:
            null_LH = np.broadcast_to(nulls[member.name].mean(axis=0), samples[member.name].shape[1:])
            rows.append(summarise(member.name, model.card, samples[member.name], null_LH, seed))
    return pd.concat(rows, ignore_index=True)


def swept(kept: Iterable[tuple[int, Path]], growth: Growth, *, device: str = "auto", say: Callable[[str], None] = lambda _: None) -> pd.DataFrame:
    """One table of all checkpoints: `COLUMNS`, a row for each step, reading, probe and head, the losses of the step in each of its rows."""
    tables = []
    for step, folder in kept:
        model = opened(folder, device) if growth.attention == "sigmoid" else load(str(folder), device=device, dtype="float32")
        table = scored(model)
        tables.append(table.assign(step=step, **losses(model, growth)._asdict()))
        best = table.groupby(["reading", "probe"])["score"].max()
        say(f"step {step}: " + ", ".join(f"{'/'.join(name)} {value:.3f}" for name, value in best.items()))
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def _samples(model: HFModel, patterns: Callable[[Prompts], Tensor], group: Group, recipe: Recipe, seed: int) -> dict[str, np.ndarray]:
    """The scores [N, L, H] of each probe of a group on the prompts of a recipe."""
    reads: list[Any] = list(group.reads)
    seen = [from_patterns(model.card, prompts, patterns(prompts).numpy(), reads) for prompts in recipe.build(model, seed)]
    return {member.name: np.concatenate([member.score(capture).astype(float) for capture in seen]) for member in group.probes}


def _nulls(model: HFModel, patterns: Callable[[Prompts], Tensor], null: Callable[[Prompts], Tensor] | None, group: Group, seed: int) -> dict[str, np.ndarray]:
    """The scores of each probe on the control of a group, or of attention that is alike for all keys."""
    assert group.recipe is not None
    if (control := group.recipe.control()) is not None:
        return _samples(model, patterns, group, control, seed + 1)
    if null is not None:
        return _samples(model, null, group, group.recipe, seed)
    reads: list[Any] = list(group.reads)
    flat = uniform(model.card, group.recipe.build(model, seed)[0].only(0), reads)
    return {member.name: member.score(flat).astype(float) for member in group.probes}
