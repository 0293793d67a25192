"""What the retrieval probes share: tests on needles, which of them count, and the head that copies."""

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.captures import Capture
from workbench.needles import NeedleTests, word_recall
from workbench.probes import pattern_of
from workbench.prompts import Prompts
from workbench.reads import NextToken

PREDICTED = NextToken(rows="answer")
QUICK = NeedleTests()
PAPER = NeedleTests(
    lengths_=tuple(int(n) for n in np.linspace(400, 4000, 10)), depths=tuple(np.linspace(0, 1, 10).round(3).tolist()), per_cell=3, teacher_forced=False
)
REQUIRED = 0.5


def answered(capture: Capture) -> Bool[np.ndarray, " B"]:
    """Which tests the model passes: more than half of the needle's words in its response, or of the gold tokens as its own choice.

    The first is ROUGE-1 recall without stemming, for a generated response; the second serves teacher-forced tests.
    """
    prompts = capture.prompts
    if prompts.facts and "response" in prompts.facts[0]:
        return np.array([word_recall(fact["answer"], fact["response"]) > REQUIRED for fact in prompts.facts])
    emitted_BR = emitted(prompts)
    return (capture[PREDICTED].choice == emitted_BR).mean(-1) > REQUIRED


def emitted(prompts: Prompts) -> Int[np.ndarray, "B R"]:
    """The token [B, R] that follows each answer row: what the row produced, or would have to produce."""
    return np.take_along_axis(prompts.ids_BT, prompts.rows["answer"] + 1, axis=1)


def copier(prompts: Prompts, b: int) -> Float[np.ndarray, "Q K"]:
    """The ideal retrieval head: while answering, each row attends to the next place in the needle of the token that it produces."""
    ids, (start, end) = prompts.ids_BT[b], prompts.spans["needle"][b]
    rows = {int(row): int(ids[row + 1]) for row in prompts.rows["answer"][b]}

    def choose(row: int) -> list[int]:
        if row not in rows:
            return []
        places = [place for place in range(start, end) if ids[place] == rows[row]]
        done = sum(1 for other, token in rows.items() if other < row and token == rows[row])
        return [places[done % len(places)]] if places else []

    return pattern_of(prompts, choose)
