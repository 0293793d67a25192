"""How are the prompts of a probe made? Recipes: frozen settings that build the same batches from the same seed.

Probes that name the same recipe share one pass. `build(model, seed)` returns independent batches; `control()` is the recipe of
the null, on which the behaviour cannot show, or None where the null is uniform attention.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from workbench.errors import InputError
from workbench.models import Model
from workbench.prompts import Prompts, bos, special_ids
from workbench.sink_rules import says_little

DELIMITERS = "delimiters"
"""The fact of a prompt that says where its delimiters stand."""


@runtime_checkable
class Recipe(Protocol):
    """Settings from which prompts are built."""

    def build(self, model: Model, seed: int) -> list[Prompts]: ...
    def control(self) -> "Recipe | None": ...
    def lengths(self, model: Model) -> Sequence[int]: ...


@dataclass(frozen=True)
class RepeatedTokens:
    """Blocks of `length` distinct random tokens, each repeated `repeats` times, behind a BOS token where the tokenizer has one.

    Tokens come from the middle 80% of the vocabulary without special tokens. Rows `repeat` are those of the second and later blocks. The control
    puts fresh tokens in place of the later blocks, while the reads still look where the repeats would have been. Blocks are shortened to what the model
    was trained for, with a `total` they are as long as that many tokens allow, the BOS token included.
    """

    length: int = 50
    repeats: int = 2
    count: int = 16
    batch: int = 8
    repeated: bool = True
    total: int | None = None

    def build(self, model: Model, seed: int) -> list[Prompts]:
        """Batches of `batch` prompts. Raises `InputError` if the vocabulary or the context is too small."""
        length = self._length(model)
        pool = _middle_of_vocabulary(model)
        if len(pool) < length:
            raise InputError(f"{length} distinct tokens are needed, {model.card.name} has {len(pool)} ordinary ones; give a shorter --length")
        rng, start = np.random.default_rng(seed), bos(model)
        batches = []
        for size in _batches(self.count, self.batch):
            block = np.stack([self._tokens(pool, length, rng) for _ in range(size)])
            match = np.tile(block[:, :length], (1, self.repeats))
            head = np.tile(np.array(start, np.int64), (size, 1))
            ids = np.concatenate([head, match if self.repeated else block], axis=1)
            rows = np.tile(np.arange(len(start) + length, ids.shape[1]), (size, 1))
            facts = ({"bos": bool(start), "block": length, "repeats": self.repeats, "repeated": self.repeated},) * size
            batches.append(Prompts(ids, {}, {"repeat": rows}, np.concatenate([head, match], axis=1), facts=facts))
        return batches

    def control(self) -> "RepeatedTokens":
        """The same without the repetition."""
        return replace(self, repeated=False)

    def lengths(self, model: Model) -> list[int]:
        """Tokens of each prompt."""
        return [self._length(model) * self.repeats + len(bos(model))] * self.count

    def _length(self, model: Model) -> int:
        room = (model.max_length - len(bos(model))) // self.repeats
        if room < 2:
            raise InputError(f"{self.repeats} blocks do not fit the context of {model.card.name}, {model.max_length} tokens")
        return min(self.length, room) if self.total is None else (self.total - len(bos(model))) // self.repeats

    def _tokens(self, pool: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
        """The distinct tokens of all blocks; where the vocabulary has too few for the control, those of each block."""
        blocks = 1 if self.repeated else self.repeats
        if len(pool) >= length * blocks:
            return rng.permutation(pool)[: length * blocks]
        return np.concatenate([rng.permutation(pool)[:length] for _ in range(blocks)])

    def at_length(self, tokens: int) -> "RepeatedTokens":
        """The same in prompts of `tokens` tokens, as many of them as have the same number of tokens in all, but two at least."""
        count = max(2, self.count * self.length * self.repeats // tokens)
        return replace(self, total=tokens, count=min(self.count, count), batch=_batch(self.batch, self.length * self.repeats, tokens))


@dataclass(frozen=True)
class NaturalText:
    """Passages of English text (see `haystack_text`), each cut to `length` tokens, BOS first where the tokenizer puts it by itself."""

    length: int = 64
    count: int = 32
    batch: int = 16
    text: Path | None = None

    def build(self, model: Model, seed: int) -> list[Prompts]:
        """Batches of passages that start at random sentences. Raises `InputError` if the text is too short."""
        text, digest = haystack_text(self.text)
        ids, _, starts = offsets(model, text)
        start = default_front(model)
        body = self.length - len(start)
        places = starts[starts + body <= len(ids)]
        if len(places) < self.count:
            raise InputError(f"the text has {len(ids)} tokens; {self.count} passages of {self.length} tokens need a longer one")
        chosen = np.random.default_rng(seed).choice(places, self.count, replace=False)
        passages = np.stack([np.concatenate([start, ids[place : place + body]]) for place in chosen]).astype(np.int64)
        parts = np.split(passages, range(self.batch, self.count, self.batch))
        return [Prompts(part, facts=tuple(self._facts(model, passage, bool(start), digest) for passage in part)) for part in parts]

    @staticmethod
    def _facts(model: Model, passage: np.ndarray, bos_first: bool, digest: str) -> dict[str, Any]:
        return {"bos": bos_first, "haystack": digest, DELIMITERS: tuple(np.flatnonzero(says_little(model.tokenizer, passage)).tolist())}

    def control(self) -> None:
        """The null is uniform attention over the same text."""
        return

    def lengths(self, model: Model) -> list[int]:
        """Tokens of each passage."""
        return [self.length] * self.count

    def at_length(self, tokens: int) -> "NaturalText":
        """The same in passages of `tokens` tokens, as many of them as have the same number of tokens in all, but two at least."""
        count = max(2, self.count * self.length // tokens)
        return replace(self, length=tokens, count=min(self.count, count), batch=_batch(self.batch, self.length, tokens))


@dataclass(frozen=True)
class RandomTokens:
    """`length` ids drawn independently from the middle 80% of the vocabulary without special tokens; or, if `repeated`, one such id all along.

    With `bos`, a BOS token stands first where the tokenizer has one. Of repeated tokens it would be the only one that differs, and so it is left out
    by default: which of the two Gu et al. 2024 have for random tokens could not be recovered.
    """

    length: int = 64
    count: int = 16
    batch: int = 16
    repeated: bool = False
    bos: bool = False

    def build(self, model: Model, seed: int) -> list[Prompts]:
        """Batches of `batch` prompts. Raises `InputError` for a vocabulary of special tokens alone."""
        pool, start = _middle_of_vocabulary(model), bos(model) if self.bos else []
        if not len(pool):
            raise InputError(f"{model.card.name} has no ordinary tokens")
        rng, body = np.random.default_rng(seed), self.length - len(start)
        ids = np.repeat(rng.choice(pool, (self.count, 1)), body, axis=1) if self.repeated else rng.choice(pool, (self.count, body))
        ids = np.concatenate([np.tile(np.array(start, np.int64), (self.count, 1)), ids], axis=1)
        parts = np.split(ids, range(self.batch, self.count, self.batch))
        return [Prompts(part, facts=({"bos": bool(start), "repeated": self.repeated},) * len(part)) for part in parts]

    def control(self) -> None:
        """The null is uniform attention over the same tokens."""
        return

    def lengths(self, model: Model) -> list[int]:
        """Tokens of each prompt."""
        return [self.length] * self.count

    def at_length(self, tokens: int) -> "RandomTokens":
        """The same in prompts of `tokens` tokens, as many of them as have the same number of tokens in all, but two at least."""
        count = max(2, self.count * self.length // tokens)
        return replace(self, length=tokens, count=min(self.count, count), batch=_batch(self.batch, self.length, tokens))


def default_front(model: Model) -> list[int]:
    """The BOS token as a list of one id if the tokenizer puts it in front of a text by itself, else nothing."""
    return bos(model) if model.tokenizer is not None and list(model.tokenizer("a")["input_ids"])[:1] == bos(model) else []


def _batch(batch: int, length: int, tokens: int) -> int:
    """So many prompts at once that a batch has no more tokens than it had."""
    return max(1, min(batch, batch * length // tokens))


def _batches(count: int, batch: int) -> list[int]:
    return [min(batch, count - done) for done in range(0, count, batch)]


def _middle_of_vocabulary(model: Model) -> np.ndarray:
    size = model.vocabulary
    pool = np.arange(size // 10, size - size // 10)
    return pool[~np.isin(pool, list(special_ids(model)))]


MAX_CHARACTERS = 2_000_000
"""How much of a text is tokenised."""


def haystack_text(path: Path | None) -> tuple[str, str]:
    """A long text and the first 16 digits of its SHA-256: the user's file, or the language reference that every Python carries.

    The latter differs between Python versions, hence the hash in every result. Raises `InputError` for a file that is missing, not UTF-8, or empty.
    """
    try:
        text = _shipped_text() if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the text {path}: {error}") from error
    if not text.strip():
        raise InputError(f"the text {path} is empty")
    return text, hashlib.sha256(text.encode()).hexdigest()[:16]


def text_pieces(model: Model, count: int, length: int, path: Path | None = None, seed: int = 0) -> tuple[Prompts, str]:
    """Pieces of a text (see `haystack_text`) of `length` tokens, the BOS token included, drawn from `seed`; and the name of the text.

    Raises `InputError` for a text that cannot be read or is too short for a piece.
    """
    text, name = haystack_text(path)
    ids_T, _, _ = offsets(model, text)
    front = bos(model)
    size = length - len(front)
    if size < 1 or len(ids_T) < size:
        raise InputError(f"a piece has {size} tokens of text, at least 1; the text has {len(ids_T)}")
    begins = np.random.default_rng(seed).integers(0, len(ids_T) - size + 1, count)
    return Prompts(np.array([[*front, *ids_T[begin : begin + size]] for begin in begins])), name


@cache
def _shipped_text() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def offsets(model: Model, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A text's token ids [T], their character ranges [T, 2], and which tokens begin a sentence [S]; kept for the next call."""
    if model.tokenizer is None or not getattr(model.tokenizer, "is_fast", False):
        raise InputError(f"{model.card.name} has no fast tokenizer, which is needed to find text in tokens by character")
    return _offsets(model.tokenizer, text[:MAX_CHARACTERS])


@lru_cache(maxsize=4)
def _offsets(tokenizer: Any, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, ranges = np.array(coded["input_ids"], np.int64), np.array(coded["offset_mapping"], np.int64).reshape(-1, 2)
    ends = [place + 1 for place in range(len(text) - 1) if text[place] == "." and text[place + 1].isspace()]
    return ids, ranges, np.unique(np.searchsorted(ranges[:, 0], [0, *ends]))
