"""When do two tokens, or two texts, say the same?"""

from functools import lru_cache
from typing import Any

import numpy as np


def word_recall(answer: str, response: str, known: str = "") -> float:
    """The share of the answer's words, each as often as it occurs, that the response has (ROUGE-1 recall, 0–1).

    Words that are in `known`, the question say, do not count, unless the answer has no others.
    """
    words, said, given = words_of(answer), words_of(response), words_of(known)
    words = [word for word in words if word not in given] or words
    kept = sum(min(words.count(word), said.count(word)) for word in set(words))
    return kept / len(words)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return "".join(letter.lower() if letter.isalnum() else " " for letter in text).split()


def canonical(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """Each id as that of the same text without a space in front, where that is a token of its own.

    Tokenizers know "The" and " The" as two tokens; a head that looks at one while the model says the other copies all the same.
    """
    distinct, places = np.unique(ids, return_inverse=True)
    return np.array([_unspaced(tokenizer, int(token)) for token in distinct], np.int64)[places].reshape(ids.shape)


@lru_cache(maxsize=200_000)
def _unspaced(tokenizer: Any, token: int) -> int:
    text = tokenizer.decode([token])
    bare = text.lstrip()
    if bare == text or not bare:
        return token
    again = tokenizer(bare, add_special_tokens=False)["input_ids"]
    return int(again[0]) if len(again) == 1 else token
