"""Does the head look at the token before?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Mass
from workbench.recipes import NaturalText

READ = Mass(at="previous")


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention to the token just before, on natural text: mean over all rows but the first.

    0–1. Olsson et al. 2022 use natural text; the null is uniform attention over the same text.
    """
    return capture.over_rows(READ, skip=1)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends to the key before it."""
    return pattern_of(prompts, lambda row: [row - 1] if row else [0])


PROBE = Probe(
    name="previous_token",
    score=score,
    ideal=ideal,
    citation="Olsson et al. 2022, In-context learning and induction heads",
    null="uniform attention",
    reads=(READ,),
    skip=1,
    recipes={"quick": NaturalText(length=512, count=4, batch=2), "paper": NaturalText(length=512, count=40, batch=2)},
    also=("local", "streaming"),
)
