"""What are the heads shown? Rectangular batches of token ids, with the places that reads refer to by name."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int

from workbench.errors import InputError, unknown
from workbench.models import Model


@dataclass(frozen=True, eq=False)
class Prompts:
    """Token ids of B prompts of equal length, and where in them a read should look.

    `spans[name]` are key ranges [start, end) per prompt, `rows[name]` query positions per prompt. `match` are the ids by
    which equal tokens are found (the ids themselves unless a control says otherwise). Rows behind the first `prefilled` (default: all) count
    as decoding: they produce an answer, as in a teacher-forced test. `facts` say per prompt what it is (needle, length, depth, …).
    All arrays are read-only.
    """

    ids_BT: Int[np.ndarray, "B T"]
    spans: Mapping[str, Int[np.ndarray, "B 2"]] = field(default_factory=dict)
    rows: Mapping[str, Int[np.ndarray, "B R"]] = field(default_factory=dict)
    match: Int[np.ndarray, "B T"] | None = None
    prefilled: int | None = None
    facts: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.ids_BT.ndim != 2 or 0 in self.ids_BT.shape:
            raise InputError(f"prompts need at least one token each, got ids of shape {self.ids_BT.shape}")
        object.__setattr__(self, "ids_BT", _frozen(self.ids_BT))
        object.__setattr__(self, "match", None if self.match is None else _frozen(self.match))
        object.__setattr__(self, "spans", _frozen_map(self.spans))
        object.__setattr__(self, "rows", _frozen_map(self.rows))
        for name, span_B2 in self.spans.items():
            if (span_B2 < 0).any() or (span_B2 > self.length).any() or (span_B2[:, 0] >= span_B2[:, 1]).any():
                raise InputError(f"span {name!r} is empty or leaves the {self.length} tokens of the prompt: {span_B2.tolist()}")
        for name, row_BR in self.rows.items():
            if (row_BR < 0).any() or (row_BR >= self.length).any():
                raise InputError(f"rows {name!r} leave the {self.length} tokens of the prompt")

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
    def decode_from(self) -> int:
        """The first row that counts as decoding; T if none does."""
        return self.length if self.prefilled is None else self.prefilled

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over the ids and every named place."""
        digest = hashlib.sha256(repr((self.ids_BT.shape, self.decode_from, sorted(self.spans), sorted(self.rows))).encode())
        for array in (self.ids_BT, self.match_BT, *(self.spans[n] for n in sorted(self.spans)), *(self.rows[n] for n in sorted(self.rows))):
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
        )

    @classmethod
    def from_text(cls, model: Model, texts: str | Iterable[str]) -> "Prompts":
        """Tokenise texts as the model's tokenizer does by default. Raises `InputError` if their lengths differ."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = [list(model.tokenizer(text)["input_ids"]) for text in texts]
        if len({len(i) for i in ids}) > 1:
            raise InputError(f"prompts of one batch must have equally many tokens, got {[len(i) for i in ids]}; capture them one by one")
        return cls(np.array(ids, np.int64).reshape(len(ids), len(ids[0]) if ids else 0), facts=tuple({"text": text} for text in texts))


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
