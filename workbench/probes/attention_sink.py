"""Does the head park its attention on the first token?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Attention that the first token receives: α₁, the mean over all rows, on 64 tokens of natural text.

    1/64–1, 0.074 under uniform attention. Gu et al. 2024 call a head a sink where α₁ > 0.3; their sink rate is the share of samples
    and heads above it. BOS stands first where the tokenizer puts it by itself; the evidence says so, and gives the sink rate.
    """
    return _sinks.first(capture)


PROBE = Probe(
    name="attention_sink",
    score=score,
    ideal=_sinks.ideal_first,
    citation="Gu et al. 2024, When attention sink emerges (2410.10781)",
    null="uniform attention",
    reads=(_sinks.RECEIVED,),
    recipes=_sinks.TEXT,
    summary=_sinks.sink_rate,
    also=("sink_anywhere", "streaming", "no_op", "no_op_mass", "no_op_update"),
)
