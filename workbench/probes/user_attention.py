"""Does the head look at what the user said while the model answers?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.conversations import RESPONSE, USER, Conversations
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Mass

READ = Mass(span=USER, rows=RESPONSE)


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention of the answer's tokens to what the user said, under the model's chat template: mean over the answer's rows.

    0–1. Wang et al. 2024 take the largest head of one layer at each token and call a turn context-dependent above 0.6 (`workbench sinks --conversation`);
    here each head has its mean. Tokens of the template, special tokens and line breaks are not the user's; where they are is read off the template.
    """
    return capture.over_rows(READ)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """Every row attends to the user's tokens up to its own."""
    begin, end = prompts.spans[USER][b]
    return pattern_of(prompts, lambda row: [key for key in range(begin, end) if key <= row])


PROBE = Probe(
    name="user_attention",
    score=score,
    ideal=ideal,
    citation="Wang et al. 2024, Loss of context awareness (2411.02688)",
    null="uniform attention",
    reads=(READ,),
    recipes={"quick": Conversations()},
)
