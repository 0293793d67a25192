"""Does the head look at the token before?"""

from workbench.probes import Probe, pattern_of
from workbench.reads import Mass
from workbench.recipes import NaturalText

READ = Mass(at="previous")


def score(capture):
    """Attention to the token just before, on natural text: mean over all rows but the first.

    0–1. Olsson et al. 2022 use natural text; the null is uniform attention over the same text.
    """
    return capture[READ][..., 1:].mean(-1)


def ideal(prompts, b):
    """Every row attends to the key before it."""
    return pattern_of(prompts, lambda row: [row - 1] if row else [0])


PROBE = Probe(
    name="previous_token",
    score=score,
    ideal=ideal,
    citation="Olsson et al. 2022, In-context learning and induction heads",
    null="uniform attention",
    reads=(READ,),
    recipes={"quick": NaturalText(length=512, count=8, batch=2), "paper": NaturalText(length=512, count=40, batch=2)},
    also=("local", "streaming"),
)
