"""Would the head lose anything if it kept only sinks and a window?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Mass
from workbench.recipes import NaturalText

SINKS, WINDOW = 4, 64
READ = Mass(first=SINKS, last=WINDOW)


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention on the first 4 and the last 64 tokens, on 512 tokens of natural text: what a streaming head would keep.

    Mean over the rows that can see more than that, 0–1; 1 minus it is what the head would lose. Sizes after StreamingLLM (2309.17453)
    and the distant-mass classifier of mlx-lm; DuoAttention (2410.10819) learns the same distinction with trained gates.
    """
    return capture.over_rows(READ, skip=SINKS + WINDOW)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends half to the second token, half to the token ten before it."""
    return pattern_of(prompts, lambda row: [1, row - 10] if row >= 11 else [0])


PROBE = Probe(
    name="streaming",
    score=score,
    ideal=ideal,
    citation="Xiao et al. 2023, StreamingLLM (2309.17453)",
    null="uniform attention",
    reads=(READ,),
    skip=SINKS + WINDOW,
    recipes={"quick": NaturalText(length=512, count=4, batch=2), "paper": NaturalText(length=512, count=40, batch=2)},
    also=("local", "later_sink_absolute", "later_sink_alpha_n", "later_sink_uniform"),
)
