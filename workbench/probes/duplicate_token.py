"""Does the head look at earlier copies of the present token?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Mass
from workbench.recipes import RepeatedTokens

READ = Mass(at="duplicate", rows="repeat")


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention to the same token in an earlier place, on a repeated block of random tokens: mean over the second block.

    0–1. Wang et al. 2022 (IOI, 2211.00593). The control puts fresh tokens in the second block and looks at the same distance.
    """
    return capture[READ].mean(-1)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends to the earlier keys with its own token."""
    ids = prompts.ids_BT[b]
    return pattern_of(prompts, lambda row: [key for key in range(row) if ids[key] == ids[row]])


PROBE = Probe(
    name="duplicate_token",
    score=score,
    ideal=ideal,
    citation="Wang et al. 2022, Interpretability in the wild (2211.00593)",
    null="control: the second block not repeated",
    reads=(READ,),
    recipes={"quick": RepeatedTokens(length=50, repeats=2, count=8), "paper": RepeatedTokens(length=50, repeats=2, count=100)},
    also=("razor_echo",),
)
