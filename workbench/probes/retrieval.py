"""Does the head copy from far away what the model is about to say?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.probes import Probe
from workbench.probes._needle import PAPER, PREDICTED, QUICK, answered, copier, produced
from workbench.reads import Peak

READ = Peak(rows="answer")


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Retrieval score: the share of the needle's tokens that the head copies, on needle-in-a-haystack tests.

    A head copies a token where its strongest key lies in the needle and holds the very token that is produced. Tokens count once
    (set semantics), 0–1. Wu et al. 2024; of the pitfalls of their code, spans are found by characters, tests in which no head copies
    anything are dropped and counted, and tests that the model fails do not count. `paper`: the model answers greedily;
    `quick`: the gold answer is teacher-forced and read in one forward.
    """
    prompts, key_BLHR, produced_BR = capture.prompts, capture[READ].key, produced(capture.prompts)
    scores = []
    for ids_T, key_LHR, produced_R, (start, end) in zip(prompts.match_BT, key_BLHR, produced_BR, prompts.span("needle"), strict=True):
        hit_LHR = (key_LHR >= start) & (key_LHR < end) & (ids_T[key_LHR] == produced_R)
        wanted = np.unique(ids_T[start:end])
        copied_LH = sum(hit_LHR[..., produced_R == token].any(-1) for token in wanted)
        scores.append(copied_LH / len(wanted))
    return np.stack(scores).astype(float)


PROBE = Probe(
    name="retrieval",
    score=score,
    ideal=copier,
    citation="Wu et al. 2024, Retrieval head mechanistically explains long-context factuality (2404.15574)",
    null="control: another needle in its place",
    reads=(READ, PREDICTED),
    recipes={"quick": QUICK, "paper": PAPER},
    valid=answered,
    drop_dead=True,
    also=("semantic_retrieval", "reasoning_retrieval"),
)
