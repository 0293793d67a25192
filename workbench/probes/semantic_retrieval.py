"""Does the head look at the needle while the model repeats it, even if not at the very token?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe
from workbench.probes._needle import PAPER, PREDICTED, QUICK, answered, copier, produced
from workbench.reads import Mass

READ = Mass(span="needle", rows="answer")


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Semantic retrieval: attention on the whole needle while its tokens are produced; no strongest-key condition.

    Per produced token that the needle holds, the mass on the needle, weighted by how often the needle holds it, divided by the sum of those weights: 0–1.
    CompressKV (2508.02401) does not divide, so its scores are unbounded; within a test the ranks are the same.
    """
    prompts, mass_BLHR = capture.prompts, capture[READ]
    needle = [ids_T[start:end] for ids_T, (start, end) in zip(prompts.match_BT, prompts.span("needle"), strict=True)]
    weight_BR = np.stack([(tokens[:, None] == row_R).sum(0) for tokens, row_R in zip(needle, produced(prompts), strict=True)])
    total_B = np.maximum(weight_BR.sum(-1), 1)
    return np.einsum("blhr,br->blh", mass_BLHR, weight_BR) / total_B[:, None, None]


PROBE = Probe(
    name="semantic_retrieval",
    score=score,
    ideal=copier,
    citation="Lin et al. 2025, CompressKV (2508.02401)",
    null="control: another needle in its place",
    reads=(READ, PREDICTED),
    recipes={"quick": QUICK, "paper": PAPER},
    valid=answered,
    also=("retrieval", "reasoning_retrieval"),
)
