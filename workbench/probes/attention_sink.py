"""Does the head park its attention on the first token?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Received
from workbench.recipes import NaturalText

READ = Received()


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention that the first token receives: α₁, the mean over all rows, on 64 tokens of natural text.

    1/64–1, 0.074 under uniform attention. Gu et al. 2024 call a head a sink where α₁ > 0.3; their sink rate is the share of samples
    and heads above it. BOS stands first where the tokenizer puts it by itself; the evidence says so, and gives the sink rate.
    """
    return capture[READ][..., 0]


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends to the first key."""
    return pattern_of(prompts, lambda row: [0])


PROBE = Probe(
    name="attention_sink",
    score=score,
    ideal=ideal,
    citation="Gu et al. 2024, When attention sink emerges (2410.10781)",
    null="uniform attention",
    reads=(READ,),
    recipes={"quick": NaturalText(length=64, count=16), "paper": NaturalText(length=64, count=100)},
    summary=lambda score_NLH: {"sink_rate": float((score_NLH > 0.3).mean())},
    also=("sink_anywhere", "streaming"),
)
