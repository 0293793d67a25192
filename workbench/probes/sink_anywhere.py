"""Does the head park its attention on any one token, wherever it stands?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Received
from workbench.recipes import NaturalText

READ = Received()


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """The most that any token receives: the maximum of α_k over positions, on 64 tokens of natural text.

    α_k is the mean over the rows that can see k; the last quarter of the positions is left out, being seen by few rows.
    1/64–1, 0.074 under uniform attention. After Gu et al. 2024, whose sinks are first tokens.
    """
    received_BLHK = capture[READ]
    return received_BLHK[..., : received_BLHK.shape[-1] * 3 // 4].max(-1)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends to the sixth key, the rows before it rest."""
    return pattern_of(prompts, lambda row: [5] if row >= 5 else [])


PROBE = Probe(
    name="sink_anywhere",
    score=score,
    ideal=ideal,
    citation="after Gu et al. 2024, When attention sink emerges (2410.10781)",
    null="uniform attention",
    reads=(READ,),
    recipes={"quick": NaturalText(length=64, count=16), "paper": NaturalText(length=64, count=100)},
    also=("later_sink_absolute", "later_sink_alpha_n", "later_sink_uniform"),
)
