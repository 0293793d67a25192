"""Does the head look at tokens that say nothing?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks, no_op


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention to delimiters and the first token: the mean over rows, on 64 tokens of natural text.

    0–1. Delimiters are special tokens, punctuation and line breaks. The second number of `no_op`, whose reconstruction asks for more than 0.9.
    """
    return no_op.mass(capture)


PROBE = Probe(
    name="no_op_mass",
    score=score,
    ideal=_sinks.ideal_first,
    citation="reconstructed after Bondarenko et al. 2023, Quantizable Transformers (2306.12929)",
    null="uniform attention",
    reads=(_sinks.RECEIVED,),
    recipes=_sinks.TEXT,
    also=("attention_sink", "sink_anywhere", "streaming", "no_op", "no_op_update"),
)
