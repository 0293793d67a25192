"""Does the head do nothing, by looking at tokens that say nothing?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe, _sinks
from workbench.reads import Written

WRITTEN = Written()


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """How far a head is a no-op: the smaller of its attention to delimiters and the first token, and of 1 − its update.

    0–1, on 64 tokens of natural text. A reconstruction: Quantizable Transformers tells of such heads, and has no score. Its two numbers: the mass on
    the first token and on delimiters (special tokens, punctuation, line breaks), mean over rows; and the update u, the mean over rows of
    ‖Σ_j A_ij v_j W_O‖ over the mean over keys of ‖v_j W_O‖. The mass alone is not enough, as a delimiter may carry information. That they are joined by the
    minimum is the house's; `no_op_mass` and `no_op_update` are the two by themselves.
    """
    return np.minimum(mass(capture), np.clip(1 - update(capture), 0, 1))


def mass(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """E_i Σ_{j ∈ delimiters ∪ {first}} A_ij, 0–1, from what each key receives."""
    received_BLHK, prompts = capture[_sinks.RECEIVED], capture.prompts
    rows_BK = prompts.length - np.maximum(np.arange(prompts.length)[None], prompts.start_B[:, None])
    quiet_BK = np.zeros(rows_BK.shape, bool)
    for b in range(prompts.count):
        quiet_BK[b, _sinks.quiet_keys(prompts, b)] = True
    return (received_BLHK * (rows_BK * quiet_BK)[:, None, None]).sum(-1) / (prompts.length - prompts.start_B)[:, None, None]


def update(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """u: E_i ‖z_i W_O‖ / E_j ‖v_j W_O‖, from 0; 0 for a head whose values are all 0."""
    written = capture[WRITTEN]
    value_NLH = np.nanmean(written.value, axis=-1)
    return np.nanmean(written.update, axis=-1) / np.where(value_NLH > 0, value_NLH, 1)


PROBE = Probe(
    name="no_op",
    score=score,
    ideal=_sinks.ideal_first,
    citation="reconstructed after Bondarenko et al. 2023, Quantizable Transformers (2306.12929)",
    null="uniform attention, equal values",
    reads=(_sinks.RECEIVED, WRITTEN),
    recipes=_sinks.TEXT,
    also=("attention_sink", "sink_anywhere", "streaming", "no_op_mass", "no_op_update"),
)
