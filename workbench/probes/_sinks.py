"""What do the probes of sinks have in common?"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import pattern_of
from workbench.prompts import Prompts
from workbench.reads import Received
from workbench.recipes import DELIMITERS, NaturalText, RandomTokens, Recipe
from workbench.sink_rules import FIRST_TOKEN, SINK_RULES

RECEIVED = Received()
TEXT: Mapping[str, Recipe] = {"quick": NaturalText(length=64, count=16), "paper": NaturalText(length=64, count=100)}


def tokens(repeated: bool) -> dict[str, Recipe]:
    """Random tokens, or one repeated, by preset."""
    return {"quick": RandomTokens(count=8, repeated=repeated), "paper": RandomTokens(count=100, repeated=repeated)}


def first(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """α₁, what the first token receives: the mean over all rows."""
    return capture[RECEIVED][..., 0]


def sink_rate(score_NLH: Float[np.ndarray, "N L H"]) -> dict[str, float]:
    """The share of samples and heads with α₁ > ε: decided in each sample, then averaged (Gu et al. 2024)."""
    return {"sink_rate": float((score_NLH > FIRST_TOKEN).mean())}


def ideal_first(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends to the first key."""
    return pattern_of(prompts, lambda row: [0])


def ideal_later(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends to the eighth key, the rows before it rest."""
    return pattern_of(prompts, lambda row: [7] if row >= 7 else [])


def later(capture: Capture, rule: str) -> Float[np.ndarray, "N L H"]:
    """1 where a sample has a sink behind its first token, by a rule of `SINK_RULES`; the last quarter of the positions does not count."""
    return SINK_RULES[rule].later(capture[RECEIVED], capture.prompts.start_B).any(-1).astype(float)


def later_rate(score_NLH: Float[np.ndarray, "N L H"]) -> dict[str, float]:
    """The share of samples and heads with a later sink."""
    return {"later_sink_rate": float(score_NLH.mean())}


def quiet_keys(prompts: Prompts, b: int) -> list[int]:
    """The first token, and the delimiters that the recipe has found."""
    known = prompts.facts[b].get(DELIMITERS, ()) if prompts.facts else ()
    return sorted({int(prompts.start_B[b]), *known})
