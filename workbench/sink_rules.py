"""Which keys are sinks? Rules on what each key receives, and which tokens say little. Thresholds of heads stand in `rules`, those of keys here."""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.errors import InputError, unknown

FIRST_TOKEN = 0.3
"""ε: a head has a first-token sink in a sequence if it gives the first token more than this (Gu et al. 2024, 2410.10781; their code has >, their text ≥)."""

TAIL = 0.25
"""The share of last positions that probes leave out: so few rows see them that one row decides."""

MASSIVE, MASSIVE_RATIO = 100.0, 1000.0
"""An activation is massive if |a| is above the one and at least the other times the median |a| of its layer (2402.17762; both numbers from memory)."""

KINDS = ("over_length", "absolute", "over_uniform")


@dataclass(frozen=True)
class SinkRule:
    """When a key is a sink of a head: by α_k, the mean attention that it receives from the rows that see it.

    `kind`: α_k > value / N for N tokens (`over_length`), α_k > value (`absolute`), or α_k > value × what it would receive from a head that
    attends equally to all it sees (`over_uniform`). The first two are biased by length: a uniform head has sinks by them where N is large, or small.
    """

    name: str
    kind: str
    value: float
    source: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of sink rule", self.kind, KINDS)
        if not self.value > 0:
            raise InputError(f"the sink rule {self.name} needs a value above 0, got {self.value:g}")

    def threshold(self, length: int) -> Float[np.ndarray, " N"]:
        """What each of N keys must exceed."""
        if self.kind == "over_uniform":
            return self.value * uniform_received(length)
        return np.full(length, self.value / length if self.kind == "over_length" else self.value)

    def later(self, received_BLHK: Float[np.ndarray, "B L H K"], start_B: Int[np.ndarray, " B"], tail: float = TAIL) -> Bool[np.ndarray, "B L H K"]:
        """True at the sinks behind the first token; padding, the first token and the last `tail` of the positions are none."""
        keys = received_BLHK.shape[-1]
        found_BLHK = np.zeros(received_BLHK.shape, bool)
        for prompt, start in enumerate(np.asarray(start_B).tolist()):
            length = keys - start
            begin, end = start + 1, start + counted(length, tail)
            found_BLHK[prompt, :, :, begin:end] = received_BLHK[prompt, :, :, begin:end] > self.threshold(length)[1 : end - start]
        return found_BLHK


def counted(length: int, tail: float) -> int:
    """How many of the positions count if the last `tail` of them (0–1) do not. Raises `InputError` for a share that leaves none."""
    if not 0 <= tail < 1:
        raise InputError(f"the tail is a share of the positions from 0 up to 1, got {tail:g}")
    return int(length * (1 - tail))


def uniform_received(length: int) -> Float[np.ndarray, " N"]:
    """α_k of a causal head that attends equally to all it sees: (H_N − H_k) / (N − k), with harmonic numbers and k from 0."""
    shares = 1 / np.arange(1, length + 1)
    return np.cumsum(shares[::-1])[::-1] / np.arange(length, 0, -1)


SINK_RULES: Mapping[str, SinkRule] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            SinkRule("alpha_n", "over_length", 5, "ACT (2406.15765): α/N with α = 5, from secondary sources"),
            SinkRule("absolute", "absolute", 0.1, "released code of ACT: 0.1, or 0.15 for MT-Bench"),
            SinkRule("uniform", "over_uniform", 5, "house default: five times a uniform head's, the one rule that length does not bias"),
        )
    }
)
"""Every rule for later sinks, with its source."""


def sink_rules_with(changes: Iterable[str]) -> dict[str, SinkRule]:
    """`SINK_RULES` with some values changed, from texts such as `alpha_n=3`. Raises `InputError` for an unknown rule or no number."""
    rules = dict(SINK_RULES)
    for change in changes:
        name, _, value = change.partition("=")
        if name not in rules:
            raise unknown("sink rule", name, rules)
        try:
            number = float(value)
        except ValueError as error:
            raise InputError(f"a sink rule is changed as in {name}=3, not {change!r}") from error
        rules[name] = replace(rules[name], value=number, source=f"set by the user (default {rules[name].value:g})")
    return rules


def says_little(tokenizer: Any, ids: np.ndarray) -> Bool[np.ndarray, "..."]:
    """True at special tokens, punctuation and line breaks: the delimiters of Quantizable Transformers (2306.12929) and their like.

    A token counts if its text, spaces left out, is punctuation only, or if it is nothing but line breaks.
    """
    distinct, places = np.unique(ids, return_inverse=True)
    special = set(tokenizer.all_special_ids)
    return np.array([int(token) in special or _delimits(tokenizer.decode([int(token)])) for token in distinct], bool)[places].reshape(np.shape(ids))


def _delimits(text: str) -> bool:
    bare = text.strip()
    return set(bare) <= set(string.punctuation) if bare else "\n" in text
