"""Does the head look at the right one of several statements when the answer takes a thought?"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe
from workbench.probes._needle import PAPER, PREDICTED, QUICK, answered, copier
from workbench.reads import TopMass

READ = TopMass(span="needle", rows="answer")


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Reasoning retrieval (R2): attention on the right statement, counted where it is among the row's N strongest keys, N its length.

    Mean over the rows that produce the answer, 0–1, on needles that hold a distractor beside the right statement. HeadKV (2410.19258) divides the
    sum by N, which is the same where the answer is as long as the statement. Read without token equality.
    """
    return capture[READ].mean(-1)


PROBE = Probe(
    name="reasoning_retrieval",
    score=score,
    ideal=copier,
    citation="Fu et al. 2024, HeadKV-R2 (2410.19258)",
    null="control: another needle in its place",
    reads=(READ, PREDICTED),
    recipes={
        "quick": replace(QUICK, needles="reasoning", lengths_=(250,), depths=(0.3, 0.7), per_cell=4),
        "paper": replace(PAPER, needles="reasoning", lengths_=(400, 1200, 2000, 2800, 3600), per_cell=4),
    },
    valid=answered,
    also=("retrieval", "semantic_retrieval"),
)
