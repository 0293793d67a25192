"""Does the head have a sink behind the first token, more than the length explains?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """The share of passages in which a later token receives more than five times what a uniform head would give it.

    0 or 1 for each sample, the mean is a share. α_k is the mean over the rows that can see k, on 64 tokens of natural text. The last quarter of the
    positions does not count, being seen by so few rows that one decides; the papers count them. What a uniform causal head gives the k-th of N
    tokens, (H_N − H_k)/(N − k) with harmonic numbers and k from 0, takes the length out. Five is a house default, after the α of ACT.
    """
    return _sinks.later(capture, "uniform")


PROBE = Probe(
    name="later_sink_uniform",
    score=score,
    ideal=_sinks.ideal_later,
    citation="house rule, after Yu et al. 2024, ACT (2406.15765)",
    null="uniform attention",
    reads=(_sinks.RECEIVED,),
    recipes=_sinks.TEXT,
    summary=_sinks.later_rate,
    also=("sink_anywhere", "later_sink_alpha_n", "later_sink_absolute"),
)
