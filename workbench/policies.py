"""Which KV heads keep the whole context? `HeadPolicy`: what labels or scores decide for the attention that runs.

A decision is made per KV head, as the query heads of a group share its keys and values. A full head sees everything; a streaming head sees the first
`sinks` tokens and the last `window`, its own among them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from workbench.errors import InputError, unknown
from workbench.heads import ModelCard
from workbench.labels import HeadLabels

SEMANTICS = {
    "exact": "streaming heads see sinks and window, in prefill and in decoding",
    "decode": "every head sees everything while the prompt is read; streaming heads forget at the first token of the answer",
    "chunk": "while a chunk of the prompt is read, streaming heads see sinks, the window before the chunk, and all of the chunk (DuoAttention)",
}
"""What a streaming head sees when. They differ in accuracy and in speed, so that a result says which it was."""

NEEDS_CONTEXT = ("retrieval", "razor_echo", "razor_induction")
"""The labels that keep a KV head full by default: those whose papers say so."""

SINKS, WINDOW = 64, 256
"""DuoAttention's sizes at run time (arXiv 2410.10819); it trained its gates with 128 and 256."""


@dataclass(frozen=True, eq=False)
class HeadPolicy:
    """For each layer and KV head: full, or streaming with `sinks` and `window`, perhaps with RazorAttention's compensation token.

    `semantics` is one of `SEMANTICS`. With `compensation` a streaming head also sees one token that stands for all that it has dropped: the
    mean of their keys and values, counted as often as there are (RazorAttention, arXiv 2407.15891). `windows` are those that the model's own layers have;
    such layers stay as they are. `origin` says how the heads were chosen. Raises `InputError` for sizes that make no sense.
    """

    card: ModelCard
    full_LG: Bool[np.ndarray, "L G"]
    sinks: int = SINKS
    window: int = WINDOW
    semantics: str = "exact"
    compensation: bool = False
    windows: tuple[int | None, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, full_LG = self.card.shape, np.array(self.full_LG, bool)
        if full_LG.shape != (shape.n_layers, shape.n_kv_heads):
            raise InputError(f"a policy of shape {full_LG.shape} for {shape.n_layers} layers × {shape.n_kv_heads} KV heads of {self.card.name}")
        if self.sinks < 0 or self.window < 1:
            raise InputError(f"a streaming head sees at least its own token: sinks ≥ 0 and window ≥ 1, got {self.sinks} and {self.window}")
        if self.semantics not in SEMANTICS:
            raise unknown("semantics", self.semantics, SEMANTICS)
        if self.windows and len(self.windows) != shape.n_layers:
            raise InputError(f"{len(self.windows)} windows for {shape.n_layers} layers")
        full_LG.setflags(write=False)
        object.__setattr__(self, "full_LG", full_LG)
        object.__setattr__(self, "windows", tuple(self.windows) or (None,) * shape.n_layers)
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    @property
    def layers(self) -> list[int]:
        """The layers that the policy decides about: those without a window of their own."""
        return [layer for layer, window in enumerate(self.windows) if window is None]

    @property
    def full_share(self) -> float:
        """The share of full heads among the KV heads that the policy decides about, 0–1."""
        return float(self.full_LG[self.layers].mean()) if self.layers else 1.0

    def full(self, layer: int) -> list[int]:
        """The full KV heads of a layer."""
        return np.flatnonzero(self.full_LG[layer]).tolist()

    def order(self, layer: int) -> list[int]:
        """The KV heads of a layer, full ones first, otherwise as they were."""
        return np.argsort(~self.full_LG[layer], kind="stable").tolist()

    def kv_bytes(self, length: int, dtype_bytes: int = 2, batch: int = 1) -> int:
        """Bytes of keys and values behind `length` tokens: full heads keep them all, streaming heads have room for sinks and window, whether it is used or not.

        The compensation token is two sums in float32. A layer with a window of its own keeps at most that, less the token to come.
        """
        shape = self.card.shape
        vector = shape.d_head * dtype_bytes
        total = 0
        for layer, own in enumerate(self.windows):
            full = len(self.full(layer)) if own is None else shape.n_kv_heads
            streaming = shape.n_kv_heads - full
            kept = length if own is None else min(length, own - 1)
            total += 2 * vector * (full * kept + streaming * (self.sinks + self.window))
            total += 2 * shape.d_head * 4 * streaming * self.compensation
        return total * batch

    def share(self, length: int) -> float:
        """KV bytes at `length` tokens as a share of those with every head full."""
        return self.kv_bytes(length) / replace(self, full_LG=np.ones_like(self.full_LG)).kv_bytes(length)

    def check_model(self, card: ModelCard) -> None:
        """Raise `InputError` unless the policy was made for this very model."""
        HeadLabels(self.card, {}, {}).check_model(card)

    def with_windows(self, windows: Sequence[int | None]) -> "HeadPolicy":
        """The same for a model whose own layers have these windows. Raises `InputError` if that leaves nothing to decide."""
        if all(window is not None for window in windows):
            raise InputError(f"every layer of {self.card.name} has a window of its own ({windows[0]} tokens); there is nothing for a policy to decide")
        return self if tuple(windows) == self.windows else replace(self, windows=tuple(windows))

    def to_json(self) -> dict[str, Any]:
        """The policy as plain data, as labels files carry it: full KV heads layer by layer, sizes, semantics, origin."""
        return {
            "full": [self.full(layer) for layer in range(len(self.full_LG))],
            "sinks": self.sinks,
            "window": self.window,
            "semantics": self.semantics,
            "compensation": self.compensation,
            "windows": list(self.windows),
            "origin": dict(self.origin),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], card: ModelCard) -> "HeadPolicy":
        """A policy from the plain data of a labels file. Raises `InputError` for heads that the model does not have."""
        shape = card.shape
        full_LG = np.zeros((shape.n_layers, shape.n_kv_heads), bool)
        if len(data["full"]) != shape.n_layers or any(head >= shape.n_kv_heads for heads in data["full"] for head in heads):
            raise InputError(f"the policy's full heads do not fit {shape.n_layers} layers × {shape.n_kv_heads} KV heads")
        for layer, heads in enumerate(data["full"]):
            full_LG[layer, [int(head) for head in heads]] = True
        sizes = int(data["sinks"]), int(data["window"])
        return cls(card, full_LG, *sizes, data["semantics"], data["compensation"], tuple(data["windows"]), data["origin"])

    @classmethod
    def load(cls, labels: HeadLabels) -> "HeadPolicy":
        """The policy that a labels file carries; without one, that of its labels."""
        return cls.from_json(labels.policy, labels.card) if labels.policy else by_labels(labels)


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


def kv_scores(labels: HeadLabels, probes: Iterable[str], reduction: str = "max") -> Float[np.ndarray, "L G"]:
    """A score per KV head from one or several probes: each reduced over the group, ranked over all KV heads (0–1, equal scores share a rank), and summed.

    Raises `InputError` for a probe that the labels have no scores of.
    """
    names = list(probes)
    if missing := [name for name in names if name not in labels.scores]:
        raise unknown("probe among the labels", missing[0], labels.scores)
    if not names:
        raise InputError("name at least one probe")
    return np.sum([_rank(labels.card.shape.to_kv(labels.scores[name], reduction)) for name in names], axis=0)


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
