"""What does one head do within each class of words? Shares by class, the whole vocabulary, the controls, and the in-class matrix."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.heads import Head
from workbench.probes.successor import by_item, scored, shuffled, successes
from workbench.sequences import CLASSES, TokenClass, tokens_of
from workbench.token_circuits import RAW, Norms, of_head, on, readout, sources
from workbench.weights import Weights

SEED = 1


@dataclass(frozen=True, eq=False)
class InClass:
    """Logits [T, C] from each token of a class to each token of it through one head, tokens in the order of their words; `right` [T]: as the score counts."""

    head: Head
    words: TokenClass
    texts: tuple[str, ...]
    item: Int[np.ndarray, " T"]
    logits_TC: Float[np.ndarray, "T C"]

    @property
    def best(self) -> tuple[str, ...]:
        """The token of the class that each token raises most."""
        return tuple(self.texts[column] for column in self.logits_TC.argmax(1))

    @property
    def right(self) -> tuple[bool | None, ...]:
        """Whether that is a successor; None for a token without one."""
        best, follows = self.item[self.logits_TC.argmax(1)], self.words.follows[self.item]
        return tuple(None if wanted < 0 else bool(found == wanted) for found, wanted in zip(best, follows, strict=True))


def strongest(weights: Weights, norms: Norms | None = None) -> Head:
    """The head with the highest successor score; the earlier one on ties. Raises `InputError` if no class has a pair of tokens."""
    return Head(*divmod(int(every_head(weights, norms).argmax()), weights.shape.n_heads))


def every_head(weights: Weights, norms: Norms | None = None) -> Float[np.ndarray, "L H"]:
    """The successor score of all heads, 0–1. Raises `InputError` as `strongest` does."""
    score_NLH = successes(weights, scored(weights), norms=norms)
    if not len(score_NLH):
        raise InputError("no class of words has two successive words that are one token each for this model's tokenizer")
    return score_NLH.mean(0)


def in_class(weights: Weights, head: Head, name: str, *, source: str = "mlp0", norms: Norms | None = None) -> InClass:
    """The matrix of one head in one class of `CLASSES`. A successor head shows a bright line above the diagonal. Raises `InputError` for an unknown class."""
    weights.shape.check(head)
    words = tokens_of(weights.tokenizer, name)
    order = np.argsort(words.item, kind="stable")
    ids_T = on(weights, words.ids[order])
    logits_TC = of_head(weights, head, sources(weights.heads, ids_T, source, norms), readout(weights.heads, ids_T, norms), norms)
    return InClass(head, words, tuple(words.texts[place] for place in order), words.item[order], logits_TC.cpu().numpy())


def head_table(weights: Weights, head: Head, norms: Norms | None = None) -> pd.DataFrame:
    """One row per class with a pair of tokens, held-out classes at the end, and one for all that make the score.

    Columns, all shares 0–1 of the tokens that have a successor: `score`; `itself` and `predecessor` put first in the class; `whole_vocabulary`, the
    successor put first among all tokens; `without_mlp0`, the score of W_U·OV·W_E (a negative control); `raw`, without any norm; `shuffled`, successors
    shuffled; and `chance`, what a random choice within the class gets. Raises `InputError` if no class has a pair of tokens, and for a head that is not there.
    """
    weights.shape.check(head)
    found = [one for name in CLASSES if (one := tokens_of(weights.tokenizer, name)).counted.any()]
    columns_DV = readout(weights.heads, None, norms)
    if not found:
        raise InputError("no class of words has two successive words that are one token each for this model's tokenizer")
    rows = [_of_class(weights, head, words, norms, columns_DV) for words in sorted(found, key=lambda one: one.words.held_out)]
    table = pd.DataFrame(rows, columns=["class", "tokens", *MEASURES, "held_out"])
    counted = table[~table["held_out"]]
    if len(counted):
        pooled = {name: float(np.average(counted[name], weights=counted["tokens"])) for name in MEASURES}
        whole = {"class": "all but *", "tokens": int(counted["tokens"].sum()), **pooled, "held_out": False}
        table = pd.concat([counted, pd.DataFrame([whole]), table[table["held_out"]]], ignore_index=True)
    return table


MEASURES = ("score", "itself", "predecessor", "whole_vocabulary", "without_mlp0", "raw", "shuffled", "chance")


def _of_class(weights: Weights, head: Head, words: TokenClass, norms: Norms | None, columns_DV: Tensor) -> dict[str, object]:
    ids_T, counted = on(weights, words.ids), words.counted
    every_TV = of_head(weights, head, sources(weights.heads, ids_T, "mlp0", norms), columns_DV, norms)
    bare_TC = of_head(weights, head, sources(weights.heads, ids_T, "embedding", norms), columns_DV[:, ids_T], norms)
    raw_TC = of_head(weights, head, sources(weights.heads, ids_T, "mlp0", RAW), readout(weights.heads, ids_T, RAW), RAW)
    inside_TC, items = every_TV[:, ids_T], np.arange(len(words.words.members))
    before = np.full(len(items), -1)
    before[words.follows[words.follows >= 0]] = items[words.follows >= 0]

    def share(logits_TC: Tensor, follows: np.ndarray) -> float:
        return float(by_item(logits_TC[None], words, follows)[counted].mean())

    best_T = every_TV.amax(1).cpu().numpy() <= inside_TC.amax(1).cpu().numpy()
    hit_T = by_item(inside_TC[None], words, words.follows)[:, 0] * best_T
    targets = [(words.item == words.follows[item]).sum() / len(words.item) for item in words.item[counted]]
    return {
        "class": words.name,
        "tokens": int(counted.sum()),
        "score": share(inside_TC, words.follows),
        "itself": share(inside_TC, items),
        "predecessor": share(inside_TC, before),
        "whole_vocabulary": float(hit_T[counted].mean()),
        "without_mlp0": share(bare_TC, words.follows),
        "raw": share(raw_TC, words.follows),
        "shuffled": share(inside_TC, shuffled(words, SEED)),
        "chance": float(np.mean(targets)),
        "held_out": words.words.held_out,
    }
