"""Does the head look only at its neighbourhood?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Mass
from workbench.recipes import NaturalText

WINDOW = 64
READ = Mass(last=WINDOW)


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention within the last 64 tokens, the row's own included, on 512 tokens of natural text.

    Mean over the rows that can see more than that, 0–1. A head at 1 needs no context beyond its window.
    """
    return capture.over_rows(READ, skip=WINDOW)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends equally to itself and the 31 tokens before it."""
    return pattern_of(prompts, lambda row: list(range(max(0, row - 31), row + 1)))


PROBE = Probe(
    name="local",
    score=score,
    ideal=ideal,
    citation="sliding-window mass, as in LM-Infinite (2308.16137) and StreamingLLM (2309.17453)",
    null="uniform attention",
    reads=(READ,),
    skip=WINDOW,
    recipes={"quick": NaturalText(length=512, count=4, batch=2), "paper": NaturalText(length=512, count=40, batch=2)},
    also=("streaming", "entropy"),
)
