"""Does the head park its attention on the first token even where tokens are random?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention that the first token receives on 64 random tokens: α₁, the mean over all rows.

    1/64–1, 0.074 under uniform attention. Gu et al. 2024's variant without meaning: a sink that stays does not depend on what the text says. No BOS;
    whether the paper had one here could not be recovered (`RandomTokens(bos=True)` puts it first). The evidence gives the sink rate, α₁ > 0.3.
    """
    return _sinks.first(capture)


PROBE = Probe(
    name="attention_sink_random",
    score=score,
    ideal=_sinks.ideal_first,
    citation="Gu et al. 2024, When attention sink emerges (2410.10781)",
    null="uniform attention",
    reads=(_sinks.RECEIVED,),
    recipes=_sinks.tokens(repeated=False),
    summary=_sinks.sink_rate,
    also=("attention_sink_repeated",),
)
