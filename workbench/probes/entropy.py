"""Does the head spread its attention over everything?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Entropy
from workbench.recipes import NaturalText

READ = Entropy(relative=True)


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Entropy of the attention as a share of its maximum, log of the visible tokens, on 512 tokens of natural text.

    Mean over all rows but the first, 0 (one token gets all) to 1 (uniform attention).
    """
    return capture.over_rows(READ, skip=1)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends equally to everything it sees."""
    return pattern_of(prompts, lambda row: list(range(row + 1)))


PROBE = Probe(
    name="entropy",
    score=score,
    ideal=ideal,
    citation="Shannon entropy of the attention row; HeadVis and TransformerLens report it in nats",
    null="0: attention to one token, as no head can be more diffuse than uniform",
    null_score=0.0,
    reads=(READ,),
    skip=1,
    recipes={"quick": NaturalText(length=512, count=4, batch=2), "paper": NaturalText(length=512, count=40, batch=2)},
)
