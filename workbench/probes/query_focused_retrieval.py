"""Does the head look from a question to the document that answers it?"""

import numpy as np
from jaxtyping import Float

from workbench.captures import Capture
from workbench.documents import DocumentSearch
from workbench.probes import Probe, pattern_of
from workbench.prompts import Prompts
from workbench.reads import Received

READ = Received(rows="query")
ROUNDING = 1e-12
"""By so much the mean of equal numbers may exceed them; a head that attends equally to the document loses no token."""


def score(capture: Capture) -> Float[np.ndarray, "N L H"]:
    """Query-focused retrieval: attention from the query to the document that answers it, less what an empty query gives it.

    Mean over the query rows of the mass on the gold document. The same mass under the empty query is subtracted token by token,
    and tokens of the document more than two standard deviations below its mean are left out, as QRHead (2506.09944) does. −1 to 1.
    """
    mean_BLHK, prompts = capture[READ], capture.prompts
    scores = []
    for pair in range(0, prompts.count, 2):
        start, end = prompts.span("gold")[pair]
        gain_LHK = (mean_BLHK[pair] - mean_BLHK[pair + 1])[..., start:end].astype(float)
        cut_LH = gain_LHK.mean(-1) - 2 * gain_LHK.std(-1, ddof=1) - ROUNDING
        scores.append(np.where(gain_LHK >= cut_LH[..., None], gain_LHK, 0).sum(-1))
    return np.stack(scores)


def ideal(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """With the query, its rows attend to the gold document; with the empty one to the first key. Other rows rest."""
    rows, found = set(prompts.rows["query"][b].tolist()), list(range(*prompts.spans["gold"][b]))
    return pattern_of(prompts, lambda row: [] if row not in rows else found if b % 2 == 0 else [0])


PROBE = Probe(
    name="query_focused_retrieval",
    score=score,
    ideal=ideal,
    citation="Zhang et al. 2025, Query-focused retrieval heads (2506.09944)",
    null="control: the answering document absent",
    reads=(READ,),
    recipes={"quick": DocumentSearch(), "paper": DocumentSearch(documents=10, tokens=150, count=48)},
)
