"""When does a head win, and what is it then doing? Winning cases on text, told apart as successor, acronym, copying and greater-than."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel
from workbench.prompts import Prompts, bos
from workbench.recipes import default_front
from workbench.sequences import CLASSES, single_token, tokens_of
from workbench.successor.effects import direct_effects
from workbench.successor.features import NUMERIC

KINDS = ("successor", "acronym", "copying", "greater_than", "other")
CONTEXT = 400
"""Characters before an acronym in which its words are sought."""

ITEMS = ("apple", "chair", "river", "stone", "paper", "light", "horse", "bread", "cloud", "music", "garden", "window", "silver", "market", "bridge", "winter")


class Kinds:
    """What a case is, by rules: a reconstruction, as how the paper told cases apart is not known. The first that holds counts.

    `successor`: the right token is the successor, in some class of words, of the row's own token or of the head's strongest key. `acronym`: it goes on
    with capitals that are the initials of capitalised words shortly before. `copying`: it is the token of the strongest key, spaces aside.
    `greater_than`: it is a later word of the same class as one of these two tokens, but not the successor. `other`: none of these.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._places: dict[int, list[tuple[str, int]]] = defaultdict(list)
        self._words = {words.name: words for words in (*(one for one in CLASSES.values() if one.name != "numbers"), NUMERIC)}
        for words in self._words.values():
            found = tokens_of(tokenizer, words)
            for token, item in zip(found.ids.tolist(), found.item.tolist(), strict=True):
                self._places[token].append((words.name, item))

    def of(self, ids: Sequence[int] | np.ndarray, row: int, key: int) -> str:
        """The kind of one case: the token behind `row` is right, and the head looks most at `key`."""
        answer, looked = int(ids[row + 1]), [int(ids[row]), int(ids[key])]
        pairs = [(name, before, after) for token in looked for name, before in self._places[token] for other, after in self._places[answer] if other == name]
        if any(self._words[name].successor(before) == after for name, before, after in pairs):
            return "successor"
        if self._is_acronym(ids, row):
            return "acronym"
        text = [self._tokenizer.decode([token]).strip() for token in (answer, int(ids[key]))]
        if answer == int(ids[key]) or text[0] == text[1] != "":
            return "copying"
        return "greater_than" if any(after > before for _, before, after in pairs) else "other"

    def _is_acronym(self, ids: Sequence[int] | np.ndarray, row: int) -> bool:
        answer = self._tokenizer.decode([int(ids[row + 1])])
        if not re.fullmatch(r" ?[A-Z]+", answer):
            return False
        text = self._tokenizer.decode([int(token) for token in ids[: row + 1]])[-CONTEXT:]
        begun = "" if answer.startswith(" ") else text[len(text.rstrip(ascii_uppercase)) :]
        acronym = begun + answer.strip()
        initials = "".join(word[0] for word in re.findall(r"\b[A-Z][a-z]+", text))
        return len(acronym) > 1 and acronym in initials


def winning_cases(model: HFModel, batches: Iterable[Prompts], head: Head | None = None, *, rows: str | None = None, ablation: str = "mean") -> pd.DataFrame:
    """Every row of the prompts (or every one of the named `rows`) at which a head (any, or the given one) has the largest direct effect on the right token.

    Columns: `prompt`, `row`, `head`, `effect` (logits), `kind`, `token` (the row's), `key` (the token of the strongest key), `answer`, all as text.
    """
    kinds, cases, number = Kinds(model.tokenizer), [], 0
    decode = model.tokenizer.decode
    for prompts in batches:
        found = direct_effects(model, prompts, rows, ablation)
        winner_BR, n_heads = found.winner_BR, found.effect_BLHR.shape[2]
        wins = np.argwhere(winner_BR >= 0) if head is None else found.wins(head)
        for b, place in wins.tolist():
            layer, index = divmod(int(winner_BR[b, place]), n_heads)
            ids, row, key = prompts.ids_BT[b], int(found.row_BR[b, place]), int(found.key_BLHR[b, layer, index, place])
            text = [decode([int(ids[at])]) for at in (row, key, row + 1)]
            cases.append((number + b, row, str(Head(layer, index)), float(found.effect_BLHR[b, layer, index, place]), kinds.of(ids, row, key), *text))
        number += prompts.count
    return pd.DataFrame(cases, columns=["prompt", "row", "head", "effect", "kind", "token", "key", "answer"])


def kinds_by_head(cases: pd.DataFrame) -> pd.DataFrame:
    """How many cases each head wins, and the share of each kind among them (0–1); most wins first."""
    counts = pd.crosstab(cases["head"], cases["kind"]).reindex(columns=list(KINDS), fill_value=0)
    wins = counts.sum(axis=1)
    return counts.div(wins, axis=0).assign(wins=wins).sort_values("wins", ascending=False).reset_index()[["head", "wins", *KINDS]]


def numbered_listings(model: HFModel, count: int = 64, seed: int = 0) -> Prompts:
    """Lists of numbered lines up to the next number, with that number as last token; row `before` stands in front of it. 64 in the paper.

    Lists have three to eight lines, so that numbers stay single digits, and the next number is one token for tokenizers that split digits as well.
    Raises `InputError` where a digit is no token.
    """
    rng = np.random.default_rng(seed)
    front = default_front(model) and bos(model)
    listed = []
    for _ in range(count):
        lines = rng.integers(3, 9)
        text = "".join(f"{line + 1}. {word}\n" for line, word in enumerate(rng.choice(ITEMS, lines)))
        body = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = single_token(model.tokenizer, str(lines + 1))
        if answer is None:
            raise InputError(f"{lines + 1} is no token of {model.card.name}")
        listed.append([*front, *body, answer])
    length = max(map(len, listed))
    padding = np.array([length - len(ids) for ids in listed])
    ids_BT = np.array([[0] * (length - len(ids)) + ids for ids in listed], np.int64)
    return Prompts(ids_BT, rows={"before": np.full((count, 1), length - 2)}, padding=padding if padding.any() else None)
