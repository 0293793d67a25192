"""Does the head have a sink behind the first token, by the rule of ACT?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """The share of passages in which a later token receives more than α/N, with α = 5 and N = 64 tokens: α_k > 0.078.

    0 or 1 for each sample, the mean is a share. α_k is the mean over the rows that can see k, on 64 tokens of natural text. The last quarter of the
    positions does not count, being seen by so few rows that one decides; the papers count them. α/N is the rule of ACT's text, known from
    secondary sources only; a uniform head has sinks by it from N = 221 on. Variants: α = 3 or 7 (`workbench sinks --sink-rule alpha_n=3`).
    """
    return _sinks.later(capture, "alpha_n")


PROBE = Probe(
    name="later_sink_alpha_n",
    score=score,
    ideal=_sinks.ideal_later,
    citation="after Yu et al. 2024, ACT (2406.15765)",
    null="uniform attention",
    reads=(_sinks.RECEIVED,),
    recipes=_sinks.TEXT,
    summary=_sinks.later_rate,
    also=("sink_anywhere", "later_sink_absolute", "later_sink_uniform"),
)
