"""Does the head park its attention on the first token even where it is the same as all others?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention that the first token receives where one token is repeated 64 times: α₁, the mean over all rows.

    1/64–1, 0.074 under uniform attention. Gu et al. 2024: with rotated or relative positions all hidden states are equal, and only a head of
    position can score; with learned positions (GPT-2) sinks stay. No BOS, which alone would differ. The evidence gives the sink rate, α₁ > 0.3.
    """
    return _sinks.first(capture)


PROBE = Probe(
    name="attention_sink_repeated",
    score=score,
    ideal=_sinks.ideal_first,
    citation="Gu et al. 2024, When attention sink emerges (2410.10781)",
    null="uniform attention",
    reads=(_sinks.RECEIVED,),
    recipes=_sinks.tokens(repeated=True),
    summary=_sinks.sink_rate,
    also=("attention_sink_random",),
)
