"""Does the head spread its attention over everything?"""

from workbench.probes import Probe, pattern_of
from workbench.reads import Entropy
from workbench.recipes import NaturalText

READ = Entropy(relative=True)


def score(capture):
    """Entropy of the attention as a share of its maximum, log of the visible tokens, on 512 tokens of natural text.

    Mean over all rows but the first, 0 (one token gets all) to 1 (uniform attention).
    """
    return capture[READ][..., 1:].mean(-1)


def ideal(prompts, b):
    """Every row attends equally to everything it sees."""
    return pattern_of(prompts, lambda row: list(range(row + 1)))


PROBE = Probe(
    name="entropy",
    score=score,
    ideal=ideal,
    citation="Shannon entropy of the attention row; HeadVis and TransformerLens report it in nats",
    null="0: attention to one token, as no head can be more diffuse than uniform",
    reads=(READ,),
    recipes={"quick": NaturalText(length=512, count=8, batch=2), "paper": NaturalText(length=512, count=40, batch=2)},
)
