"""Which KV heads stay full? The choices behind a policy, each in the address: a part of the page on efficient attention."""

from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st
from chosen import told

from workbench import choosing
from workbench.errors import InputError
from workbench.labels import HeadLabels
from workbench.policies import SEMANTICS, SINKS, WINDOW, HeadPolicy

if TYPE_CHECKING:
    import numpy as np

BY = {
    "labels": "Full where a query head of the group carries one of the labels.",
    "budget": "The best KV heads by their scores, as many as the budget allows.",
    "quantile": "DuoAttention's way: full where the score reaches a quantile of all scores; ties stay full.",
    "random": "As many KV heads as the budget allows, drawn at random: a control.",
    "window": "No head is full: sinks and one window in every head, as StreamingLLM's cache has them.",
    "file": "The policy that the labels file carries.",
}


class Choice(NamedTuple):
    """A policy, the scores that ranked the KV heads (None if none did), and what the way is called in a table of `workbench verify`."""

    policy: HeadPolicy
    score_LG: "np.ndarray | None" = None
    name: str = ""


def choice(found: HeadLabels, tokens: int) -> Choice:
    """The policy that is asked for; a budget of bytes is one at so many `tokens`."""
    ways = [way for way in BY if way != "file" or found.policy]
    by = st.selectbox("Full heads are chosen by", ways, key="by", bind="query-params")
    st.caption(BY[by])
    if by == "file":
        with told():
            return Choice(choosing.policy_of(found))
    own = st.container()
    how = _sizes()
    with own, told():
        return _MADE[by](found, how, tokens)
    raise AssertionError


def _sizes() -> dict[str, Any]:
    """What a streaming head sees."""
    first, last = st.columns(2)
    sinks = first.number_input("Sinks, tokens", 0, 4096, SINKS, key="sinks", bind="query-params", help="First tokens that a streaming head sees.")
    window = last.number_input("Window, tokens", 1, 65536, WINDOW, key="window", bind="query-params", help="Last tokens that it sees, its own among them.")
    words = "; ".join(f"{name}: {meaning}" for name, meaning in SEMANTICS.items())
    semantics = st.selectbox("Semantics", list(SEMANTICS), key="semantics", bind="query-params", help=words)
    words = "One token more for all that was dropped: the mean of its keys and values (RazorAttention)."
    compensation = st.toggle("Compensation token", key="compensation", bind="query-params", help=words)
    return {"sinks": sinks, "window": window, "semantics": semantics, "compensation": compensation}


def _by_labels(found: HeadLabels, how: dict[str, Any], _tokens: int) -> Choice:
    known = list(found.counts())
    names = st.multiselect("Labels that keep a head full", known, [name for name in choosing.NEEDS_CONTEXT if name in known], key="keep", bind="query-params")
    if not names:
        raise InputError("name at least one label that keeps a head full, or choose by something else")
    return Choice(choosing.by_labels(found, names, **how))


def _ranking(found: HeadLabels) -> "tuple[np.ndarray, str]":
    """The scores by which KV heads are ranked, and what they are called in a table of `workbench verify`."""
    known = list(found.scores)
    usual = [name for name in choosing.RANKING.split("+") if name in known] or known[:1]
    names = st.multiselect("Ranked by", known, usual, key="ranking", bind="query-params", help="Each KV head gets the best score of its group.")
    if not names:
        raise InputError("name at least one score that ranks the KV heads")
    combine = st.selectbox("Several scores are added as", list(choosing.COMBINE), key="combine", bind="query-params") if len(names) > 1 else "sum"
    name = "+".join(names)
    return choosing.kv_scores(found, name, combine=combine), f"ranks:{name}" if combine == "ranks" else name


def _budget(tokens: int) -> tuple[float, int | None]:
    budget = st.slider("Budget: the share that may be full", 0.0, 1.0, 0.33, 0.01, key="budget", bind="query-params")
    of = st.selectbox("A share of", ["KV heads", "bytes"], key="of", bind="query-params", help="Bytes: those of keys and values at the context above.")
    return budget, tokens if of == "bytes" else None


def _by_budget(found: HeadLabels, how: dict[str, Any], tokens: int) -> Choice:
    (score_LG, name), (budget, length) = _ranking(found), _budget(tokens)
    return Choice(choosing.by_budget(found.card, score_LG, budget, length=length, origin=name, **how), score_LG, name)


def _by_quantile(found: HeadLabels, how: dict[str, Any], _tokens: int) -> Choice:
    score_LG, name = _ranking(found)
    sparsity = st.slider("Share of streaming heads", 0.0, 1.0, 0.67, 0.01, key="sparsity", bind="query-params")
    return Choice(choosing.by_quantile(found.card, score_LG, sparsity, origin=name, **how), score_LG, name)


def _at_random(found: HeadLabels, how: dict[str, Any], tokens: int) -> Choice:
    budget, length = _budget(tokens)
    seed = st.number_input("Seed", 0, 10**6, 0, key="seed", bind="query-params")
    return Choice(choosing.at_random(found.card, budget, seed, length=length, **how))


def _window(found: HeadLabels, how: dict[str, Any], _tokens: int) -> Choice:
    return Choice(choosing.uniform(found.card, **how))


_MADE = {"labels": _by_labels, "budget": _by_budget, "quantile": _by_quantile, "random": _at_random, "window": _window}
