"""Does the head look behind any earlier copy of the present token, over several repeats?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe
from workbench.probes.induction import ideal
from workbench.reads import Mass
from workbench.recipes import RepeatedTokens

READ = Mass(at="induction", rows="repeat")


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """RazorAttention's induction score: attention to the tokens behind all earlier copies of the present one, block repeated four times.

    Mean over the second and later blocks, 0–1. The paper repeats 2,500 tokens (as many as the context holds here); quick repeats 64.
    """
    return capture[READ].mean(-1)


PROBE = Probe(
    name="razor_induction",
    score=score,
    ideal=ideal,
    citation="Tang et al. 2024, RazorAttention (2407.15891)",
    null="control: the later blocks not repeated",
    reads=(READ,),
    recipes={"quick": RepeatedTokens(length=64, repeats=4, count=4, batch=4), "paper": RepeatedTokens(length=2500, repeats=4, count=4, batch=1)},
    also=("induction",),
)
