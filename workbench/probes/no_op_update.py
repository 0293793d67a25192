"""How little does the head write, for what it could?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks, no_op


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """1 − u: u is how long a head's update is beside the values that it could write, on 64 tokens of natural text.

    At most 1, and negative where updates are longer than the mean value. u = E_i ‖Σ_j A_ij v_j W_O‖ / E_j ‖v_j W_O‖: the first number of `no_op`,
    a reconstruction. Values that point in many directions make it small as well, where attention is spread: then the mass tells them apart.
    """
    return 1 - no_op.update(capture)


PROBE = Probe(
    name="no_op_update",
    score=score,
    ideal=_sinks.ideal_first,
    citation="reconstructed after Bondarenko et al. 2023, Quantizable Transformers (2306.12929)",
    null="uniform attention, equal values",
    reads=(no_op.WRITTEN,),
    recipes=_sinks.TEXT,
    also=("attention_sink", "sink_anywhere", "streaming", "no_op", "no_op_mass"),
)
