"""Is it one or several? The verb that agrees with its subject."""

from collections.abc import Iterator

import numpy as np

from workbench.circuits.tasks.item import Item, Task
from workbench.circuits.tasks.words import listed, one

SUBJECTS = listed(
    "author doctor teacher farmer pilot student actor artist writer singer driver customer manager officer player lawyer worker guard child_children "
    "man_men woman_women king queen girl boy picture letter book key house car tree ship train movie song door window machine"
)
NEAR = listed("table cabinet garden building river bridge station school hospital library_libraries market tower field road mountain lake")
FORMS = ("The {}", "The {} near the {}", "The {} behind the {}", "The {} next to the {}", "I know that the {}", "The {} from the {}")
SINGULAR, PLURAL = (" is", " was", " has"), (" are", " were", " have")


def items(rng: np.random.Generator) -> Iterator[Item]:
    """A subject in the singular or plural, mostly with another noun of the other number behind it; the verb comes next.

    "The keys near the cabinet" → " are", " were", " have" and not " is", " was", " has"; corrupted, the subject has the other number. Singular and plural
    take turns.
    """
    turn = 0
    while True:
        number = int(rng.integers(len(FORMS)))
        subject, near = _numbers(one(rng, SUBJECTS)), _numbers(one(rng, NEAR))
        is_plural = turn % 2
        turn += 1
        other = near[1 - is_plural]
        clean, corrupted = FORMS[number].format(subject[is_plural], other), FORMS[number].format(subject[1 - is_plural], other)
        right, wrong = (PLURAL, SINGULAR) if is_plural else (SINGULAR, PLURAL)
        yield Item(clean, corrupted, right, wrong, FORMS[number].format("…", "…"), {"number": "plural" if is_plural else "singular"})


def _numbers(word: str) -> tuple[str, str]:
    single, _, several = word.partition("_")
    return single, several or f"{single}s"


TASK = Task(
    name="subject_verb_agreement",
    metric="logit_difference",
    items=items,
    source="after Linzen et al. 2016, arXiv 1611.01368, and Ferrando and Costa-jussà 2024, arXiv 2410.06496",
)
