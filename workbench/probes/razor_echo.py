"""Does the head look at any earlier copy of the present token, over several repeats?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe
from workbench.probes.duplicate_token import ideal
from workbench.reads import Mass
from workbench.recipes import RepeatedTokens

READ = Mass(at="duplicate", rows="repeat")


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """RazorAttention's echo score: attention to all earlier copies of the present token in a block repeated four times.

    Mean over the second and later blocks, 0–1. The paper repeats 2,500 tokens (as many as the context holds here); quick repeats 64.
    """
    return capture[READ].mean(-1)


PROBE = Probe(
    name="razor_echo",
    score=score,
    ideal=ideal,
    citation="Tang et al. 2024, RazorAttention (2407.15891)",
    null="control: the later blocks not repeated",
    reads=(READ,),
    recipes={"quick": RepeatedTokens(length=64, repeats=4, count=4, batch=4), "paper": RepeatedTokens(length=2500, repeats=4, count=4, batch=1)},
    also=("duplicate_token",),
)
