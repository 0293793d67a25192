"""What are the heads shown? Rectangular batches of token ids, with the places that reads refer to by name."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int

from workbench.errors import InputError, unknown
from workbench.models import Model

SAMPLED = "sampled"
"""The name of rows that stand for all."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Token ids of B prompts of equal length, and where in them a read should look.

    `spans[name]` are key ranges [start, end) per prompt, `rows[name]` query positions per prompt. `match` are the ids by
    which equal tokens are found (the ids themselves unless a control says otherwise). Rows behind the first `prefilled` (default: all) count
    as decoding: they produce an answer, as in a teacher-forced test. `facts` say per prompt what it is (needle, length, depth, …).
    Shorter prompts stand behind `padding` tokens [B] that no token sees; spans and rows count these. All arrays are read-only.
    """

    ids_BT: Int[np.ndarray, "B T"]
    spans: Mapping[str, Int[np.ndarray, "B 2"]] = field(default_factory=dict)
    rows: Mapping[str, Int[np.ndarray, "B R"]] = field(default_factory=dict)
    match: Int[np.ndarray, "B T"] | None = None
    prefilled: int | None = None
    facts: tuple[Mapping[str, Any], ...] = ()
    padding: Int[np.ndarray, " B"] | None = None

    def __post_init__(self) -> None:
        if self.ids_BT.ndim != 2 or 0 in self.ids_BT.shape:
            raise InputError(f"prompts need at least one token each, got ids of shape {self.ids_BT.shape}")
        object.__setattr__(self, "ids_BT", _frozen(self.ids_BT))
        object.__setattr__(self, "match", None if self.match is None else _frozen(self.match))
        object.__setattr__(self, "padding", None if self.padding is None else _frozen(self.padding))
        if ((self.start_B < 0) | (self.start_B >= self.length)).any():
            raise InputError(f"padding of {self.start_B.tolist()} tokens leaves nothing of a prompt of {self.length}")
        object.__setattr__(self, "spans", _frozen_map(self.spans))
        object.__setattr__(self, "rows", _frozen_map(self.rows))
        for name, span_B2 in self.spans.items():
            if (span_B2 < 0).any() or (span_B2 > self.length).any() or (span_B2[:, 0] >= span_B2[:, 1]).any():
                raise InputError(f"span {name!r} is empty or leaves the {self.length} tokens of the prompt: {span_B2.tolist()}")
        for name, row_BR in self.rows.items():
            if (row_BR < 0).any() or (row_BR >= self.length).any():
                raise InputError(f"rows {name!r} leave the {self.length} tokens of the prompt")

    def __reduce__(self) -> tuple[Any, ...]:
        """How they travel to a worker: made anew from their parts, read-only again."""
        return type(self), (self.ids_BT, dict(self.spans), dict(self.rows), self.match, self.prefilled, self.facts, self.padding)

    @property
    def count(self) -> int:
        """The number of prompts, B."""
        return self.ids_BT.shape[0]

    @property
    def length(self) -> int:
        """The number of tokens of each prompt, T."""
        return self.ids_BT.shape[1]

    @property
    def match_BT(self) -> Int[np.ndarray, "B T"]:
        """The ids by which equal tokens are found."""
        return self.ids_BT if self.match is None else self.match

    @property
    def start_B(self) -> Int[np.ndarray, " B"]:
        """The first token of each prompt, behind its padding."""
        return np.zeros(self.count, np.int64) if self.padding is None else self.padding

    @property
    def decode_from(self) -> int:
        """The first row that counts as decoding; T if none does."""
        return self.length if self.prefilled is None else self.prefilled

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over the ids and every named place."""
        digest = hashlib.sha256(repr((self.ids_BT.shape, self.decode_from, sorted(self.spans), sorted(self.rows))).encode())
        padding = () if self.padding is None else (self.padding,)
        for array in (self.ids_BT, self.match_BT, *padding, *(self.spans[n] for n in sorted(self.spans)), *(self.rows[n] for n in sorted(self.rows))):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
        return digest.hexdigest()[:16]

    def row_positions(self, name: str | None) -> Int[np.ndarray, "B R"]:
        """The query positions of a named set of rows; of all rows for None. Raises `InputError` for an unknown name."""
        if name is None:
            return np.broadcast_to(np.arange(self.length), self.ids_BT.shape)
        if name not in self.rows:
            raise unknown("rows", name, self.rows)
        return self.rows[name]

    def span(self, name: str) -> Int[np.ndarray, "B 2"]:
        """The key ranges of a named span. Raises `InputError` for an unknown name."""
        if name not in self.spans:
            raise unknown("span", name, self.spans)
        return self.spans[name]

    def only(self, index: int) -> "Prompts":
        """One prompt of the batch, as a batch of one."""
        cut = slice(index, index + 1)
        return Prompts(
            self.ids_BT[cut],
            {name: span[cut] for name, span in self.spans.items()},
            {name: row[cut] for name, row in self.rows.items()},
            self.match_BT[cut],
            self.prefilled,
            self.facts[cut],
            None if self.padding is None else self.padding[cut],
        )

    def with_sampled_rows(self, count: int) -> "Prompts":
        """The same with rows `sampled`: the middle one of each of `count` equal stretches. Raises `InputError` for fewer than two or more than all."""
        if not 2 <= count <= self.length - int(self.start_B.max()):
            raise InputError(f"{count} rows cannot be sampled from {self.length - int(self.start_B.max())}; take 2 or more, up to all")
        rows = np.stack([start + (2 * np.arange(count) + 1) * (self.length - start) // (2 * count) for start in self.start_B])
        return replace(self, rows={**self.rows, SAMPLED: rows})

    @classmethod
    def from_text(cls, model: Model, texts: str | Iterable[str]) -> "Prompts":
        """Tokenise texts as the model's tokenizer does by default; shorter ones are padded on the left. Raises `InputError` for a text without tokens."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = [list(model.tokenizer(text)["input_ids"]) for text in texts]
        if not all(ids):
            raise InputError("a prompt needs at least one token; one of the texts has none")
        length = max(map(len, ids), default=0)
        missing = np.array([length - len(one) for one in ids])
        filled = np.array([[0] * (length - len(one)) + one for one in ids], np.int64).reshape(len(ids), length)
        return cls(filled, facts=tuple({"text": text} for text in texts), padding=missing if missing.any() else None)


def _frozen(array: np.ndarray) -> np.ndarray:
    copy = np.array(array, np.int64)
    copy.setflags(write=False)
    return copy


def _frozen_map(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return MappingProxyType({name: _frozen(array) for name, array in arrays.items()})


def special_ids(model: Model) -> set[int]:
    """Ids of the tokenizer's special tokens; none without a tokenizer."""
    return set(model.tokenizer.all_special_ids) if model.tokenizer is not None else set()


def bos(model: Model) -> list[int]:
    """The beginning-of-sequence token as a list of one id, empty where the tokenizer has none (results record which)."""
    token = getattr(model.tokenizer, "bos_token_id", None)
    return [] if token is None else [int(token)]
