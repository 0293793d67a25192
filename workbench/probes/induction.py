"""Does the head look at the token that followed the present one before?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Mass
from workbench.recipes import RepeatedTokens

READ = Mass(at="induction", rows="repeat")


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Prefix matching: attention to the token after the present one's earlier occurrence, on a repeated block of random tokens.

    Mean over the second block, 0–1. Olsson et al. 2022; block of 50 tokens as in Yin & Steinhardt 2025 (2502.14010).
    The control puts fresh tokens in the second block and looks at the same distance.
    """
    return capture[READ].mean(-1)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends to the keys behind earlier occurrences of its own token."""
    ids = prompts.ids_BT[b]
    return pattern_of(prompts, lambda row: [key for key in range(1, row) if ids[key - 1] == ids[row]])


PROBE = Probe(
    name="induction",
    score=score,
    ideal=ideal,
    citation="Olsson et al. 2022, In-context learning and induction heads",
    null="control: the second block not repeated",
    reads=(READ,),
    recipes={"quick": RepeatedTokens(length=50, repeats=2, count=8), "paper": RepeatedTokens(length=50, repeats=2, count=100)},
    also=("razor_induction",),
)
