"""How are the KV heads that stay full chosen? By labels, by a budget, by a quantile of scores, or by controls that know nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.errors import InputError, unknown
from workbench.heads import ModelCard
from workbench.labels import HeadLabels
from workbench.policies import HeadPolicy

NEEDS_CONTEXT = ("retrieval", "razor_echo", "razor_induction")
"""The labels that keep a KV head full by default: those whose papers say so."""

RANKING = "razor_echo+razor_induction"
"""The scores that choose KV heads for a budget where none are named: RazorAttention's two (arXiv 2407.15891), added."""

COMBINE = {"sum": "scores as they are", "ranks": "ranks over all KV heads, 0–1, equal scores sharing a rank"}
"""What is added where several probes are named."""


def policy_of(labels: HeadLabels) -> HeadPolicy:
    """The policy that a labels file carries; without one, that of its labels."""
    return HeadPolicy.from_json(labels.policy, labels.card) if labels.policy else by_labels(labels)


def by_labels(labels: HeadLabels, names: Sequence[str] = NEEDS_CONTEXT, **how: Any) -> HeadPolicy:
    """Full where a query head of the group carries one of the labels. `how` are further fields of `HeadPolicy`.

    Raises `InputError` if the labels know none of the names; those of rules whose probe was not scored label nothing.
    """
    known = set(labels.rules) | {name for carried in labels.labels.values() for name in carried}
    if not (used := [name for name in names if name in known]):
        raise InputError(f"these labels decide nothing: none of {', '.join(names)} was looked for; they have {', '.join(sorted(known)) or 'no rules'}")
    full_LG = np.zeros((labels.card.shape.n_layers, labels.card.shape.n_kv_heads), bool)
    for name in used:
        for head in labels.heads(name):
            full_LG[head.layer, labels.card.shape.kv_head(head)] = True
    return replace(HeadPolicy(labels.card, full_LG, **how), origin={"by": "labels", "labels": used})


def by_budget(card: ModelCard, score_LG: Float[np.ndarray, "L G"], budget: float, *, length: int | None = None, origin: Any = None, **how: Any) -> HeadPolicy:
    """The best heads full, as many as the budget allows: a share, 0–1, of the KV bytes at `length` tokens (None: of the KV heads).

    Of equal scores the earlier head goes first. Raises `InputError` if not even streaming heads alone keep within the budget.
    """
    if not 0 <= budget <= 1:
        raise InputError(f"a KV budget is a share, 0 to 1, got {budget:g}")
    none = HeadPolicy(card, np.zeros_like(score_LG, bool), **how)
    ranked = _ranked(score_LG, none.layers)
    every = len(ranked)
    if length is None:
        count = math.floor(budget * every + 1e-9)
    else:
        per_head = (replace(none, full_LG=np.ones_like(none.full_LG)).kv_bytes(length) - none.kv_bytes(length)) / max(every, 1)
        allowed = budget * replace(none, full_LG=np.ones_like(none.full_LG)).kv_bytes(length) - none.kv_bytes(length)
        if allowed < 0 and budget < 1:
            raise InputError(
                f"at {length:,} tokens, {none.sinks} sinks and a window of {none.window} take {none.share(length):.0%} of the full cache by themselves; "
                f"a budget of {budget:.0%} needs smaller ones, or a longer context"
            )
        count = every if budget == 1 else min(every, math.floor(allowed / per_head + 1e-9)) if per_head > 0 else every
    return _best(none, ranked[:count], {"by": "budget", "budget": budget, "at_length": length, "scores": origin})


def by_quantile(card: ModelCard, score_LG: Float[np.ndarray, "L G"], sparsity: float, *, origin: Any = None, **how: Any) -> HeadPolicy:
    """DuoAttention's way: full where the score reaches the quantile `sparsity` of all scores, 0–1; ties at the quantile stay full.

    DuoAttention adds noise to break ties, so that its set depends on a random state; here it does not.
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity is the share of streaming heads, 0 to 1, got {sparsity:g}")
    none = HeadPolicy(card, np.zeros_like(score_LG, bool), **how)
    full_LG = np.zeros_like(none.full_LG)
    if none.layers and sparsity < 1:
        full_LG[none.layers] = score_LG[none.layers] >= np.quantile(score_LG[none.layers], sparsity)
    return replace(none, full_LG=full_LG, origin={"by": "quantile", "sparsity": sparsity, "scores": origin})


def uniform(card: ModelCard, **how: Any) -> HeadPolicy:
    """Every head streaming: StreamingLLM's cache, without its re-assigned positions."""
    shape = card.shape
    return replace(HeadPolicy(card, np.zeros((shape.n_layers, shape.n_kv_heads), bool), **how), origin={"by": "uniform"})


def everything(card: ModelCard, **how: Any) -> HeadPolicy:
    """Every head full: the model as it is."""
    return replace(uniform(card, **how), full_LG=np.ones((card.shape.n_layers, card.shape.n_kv_heads), bool), origin={"by": "everything"})


def at_random(card: ModelCard, budget: float, seed: int, *, length: int | None = None, **how: Any) -> HeadPolicy:
    """As many heads full as `by_budget` allows, drawn at random: the control."""
    score_LG = np.random.default_rng(seed).permutation(card.shape.n_layers * card.shape.n_kv_heads).reshape(card.shape.n_layers, -1).astype(float)
    made = by_budget(card, score_LG, budget, length=length, **how)
    return replace(made, origin={"by": "random", "budget": budget, "at_length": length, "seed": seed})


def kv_scores(labels: HeadLabels, by: str | None = None, reduction: str = "max", combine: str = "sum") -> Float[np.ndarray, "L G"]:
    """A score per KV head from one probe, or from several joined by `+`: each reduced over the group, then added as `COMBINE` says. None is `RANKING`.

    Raises `InputError` for a probe that the labels have no scores of, and for an unknown way to combine.
    """
    if combine not in COMBINE:
        raise unknown("way to combine scores", combine, COMBINE)
    names = [name.strip() for name in (by or RANKING).split("+")]
    if missing := [name for name in names if name not in labels.scores]:
        raise unknown("probe among the labels", missing[0], labels.scores)
    parts = [labels.card.shape.to_kv(labels.scores[name], reduction) for name in names]
    return np.sum([_rank(part) for part in parts] if combine == "ranks" else parts, axis=0)


def with_scores(labels: HeadLabels, others: Mapping[str, HeadLabels]) -> HeadLabels:
    """Labels with the scores of other labels beside their own; `others` by where they come from.

    Raises `InputError` for those of another model, and for a score that is there already.
    """
    for name, other in others.items():
        other.check_model(labels.card)
        if twice := sorted(set(other.scores) & set(labels.scores)):
            raise InputError(f"{name}: there are scores {twice[0]} already")
        labels = replace(labels, scores={**labels.scores, **other.scores})
    return labels


def _rank(score_LG: np.ndarray) -> np.ndarray:
    values, place = np.unique(score_LG, return_inverse=True)
    below = np.searchsorted(np.sort(score_LG, axis=None), values)
    return below[place].reshape(score_LG.shape) / max(score_LG.size - 1, 1)


def _ranked(score_LG: np.ndarray, layers: Sequence[int]) -> list[tuple[int, int]]:
    """The KV heads of some layers, best first; the earlier of equals."""
    if not np.isfinite(score_LG).all():
        raise InputError("KV heads are chosen by finite scores")
    heads = [(layer, head) for layer in layers for head in range(score_LG.shape[1])]
    return sorted(heads, key=lambda head: -score_LG[head])


def _best(none: HeadPolicy, heads: Sequence[tuple[int, int]], origin: dict[str, Any]) -> HeadPolicy:
    full_LG = np.zeros_like(none.full_LG)
    for head in heads:
        full_LG[head] = True
    return replace(none, full_LG=full_LG, origin=origin)
