"""Does the head have a sink behind the first token, by the rule of ACT's code?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """The share of passages in which a later token receives more than a tenth of the attention: α_k > 0.1.

    0 or 1 for each sample, the mean is a share. α_k is the mean over the rows that can see k, on 64 tokens of natural text. The last quarter of the
    positions does not count, being seen by so few rows that one decides; the papers count them. The rule of ACT's released code; a uniform
    head has sinks by it below N = 32. Variant: 0.15, for MT-Bench (`workbench sinks --sink-rule absolute=0.15`).
    """
    return _sinks.later(capture, "absolute")


PROBE = Probe(
    name="later_sink_absolute",
    score=score,
    ideal=_sinks.ideal_later,
    citation="after Yu et al. 2024, ACT (2406.15765), released code",
    null="uniform attention",
    reads=(_sinks.RECEIVED,),
    recipes=_sinks.TEXT,
    summary=_sinks.later_rate,
    also=("sink_anywhere", "later_sink_alpha_n", "later_sink_uniform"),
)
