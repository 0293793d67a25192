"""What the retrieval probes share: tests on needles, which of them count, and the head that copies."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.captures import Capture
from workbench.matching import word_recall, words_of
from workbench.needles import NeedleTests
from workbench.probes import pattern_of
from workbench.prompts import Prompts
from workbench.reads import NextToken

PREDICTED = NextToken(rows="answer")
QUICK = NeedleTests()
PAPER = NeedleTests(lengths_=(), depths=tuple(np.linspace(0, 1, 10).round(3).tolist()), per_cell=3, teacher_forced=False)
REQUIRED = 0.5


def answered(capture: Capture) -> Bool[np.ndarray, " B"]:
    """Which tests the model passes: more than half of the needle's words in its response, or of the gold tokens as its own choice.

    The first is ROUGE-1 recall without stemming, for a generated response; the second serves teacher-forced tests. Where the answer is a part of
    the needle, the words that tell it from the rest (`Needle.decisive`) must be right as well.
    """
    prompts = capture.prompts
    if prompts.facts and "response" in prompts.facts[0]:
        return np.array([_right(fact) for fact in prompts.facts])
    hit_BR = capture[PREDICTED].choice == emitted(prompts)
    decisive = [list(fact.get("decisive_tokens", ())) for fact in prompts.facts or ({},) * prompts.count]
    return np.array([hit_R.mean() > REQUIRED and hit_R[places].all() for hit_R, places in zip(hit_BR, decisive, strict=True)])


def _right(fact: Mapping[str, Any]) -> bool:
    said = words_of(fact["response"])
    return word_recall(fact["answer"], fact["response"]) > REQUIRED and all(word in said for word in fact.get("decisive", ()))


def produced(prompts: Prompts) -> Int[np.ndarray, "B R"]:
    """The same token by its matching id, which does not tell "The" from " The" (`needles.canonical`)."""
    return np.take_along_axis(prompts.match_BT, prompts.rows["answer"] + 1, axis=1)


def emitted(prompts: Prompts) -> Int[np.ndarray, "B R"]:
    """The token [B, R] that follows each answer row: what the row produced, or would have to produce."""
    return np.take_along_axis(prompts.ids_BT, prompts.rows["answer"] + 1, axis=1)


def copier(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """The ideal retrieval head: while answering, each row attends to the next place in the needle of the token that it produces."""
    ids, (start, end) = prompts.match_BT[b], prompts.spans["needle"][b]
    rows = {int(row): int(ids[row + 1]) for row in prompts.rows["answer"][b]}

    def choose(row: int) -> list[int]:
        if row not in rows:
            return []
        places = [place for place in range(start, end) if ids[place] == rows[row]]
        done = sum(1 for other, token in rows.items() if other < row and token == rows[row])
        return [places[done % len(places)]] if places else []

    return pattern_of(prompts, choose)
