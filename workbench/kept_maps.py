"""Where does one head look on a long prompt, at any zoom? What one pass of the model showed of the head, kept on disk: no part of its map needs another.

The T × T probabilities are never made at once. Kept are the queries and keys that the model multiplied, and the log-sum-exp of every row: from these any
rectangle is computed again, pooled into blocks or cell by cell.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.errors import InputError
from workbench.files import write_file
from workbench.heads import Head
from workbench.maps import AttentionMap
from workbench.sink_rules import FIRST_TOKEN, SinkRule

CELLS = 1024
"""The most cells along a side that are shown at once."""

STRIP = 2**22
"""Probabilities that are held at once."""


@dataclass(frozen=True)
class Asked:
    """Which map is asked for: one head of a model (its fingerprint) on one prompt of about `length` tokens.

    The prompt is a needle test: a needle at a `depth` (0 start, 1 end) of a text, both drawn by `seed`; or the first `length` tokens of a text of one's own,
    named by the first 16 digits of its SHA-256, where depth and seed do not count. Raises `InputError` for what is no length or depth.
    """

    model: str
    head: Head
    length: int = 8192
    depth: float = 0.5
    seed: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.depth <= 1 or self.seed < 0:
            raise InputError(f"a prompt has at least one token, its depth lies in 0–1 and its seed is no less than 0; got {self}")
        if self.text:
            object.__setattr__(self, "depth", 0.0)
            object.__setattr__(self, "seed", 0)

    @property
    def question(self) -> dict[str, Any]:
        """The same as plain data, as it is kept."""
        return {**asdict(self), "head": str(self.head)}


@dataclass(frozen=True, eq=False)
class KeptMap:
    """One head on one long prompt: the whole map as the max over blocks of `block` tokens, and what makes any part of it larger.

    `tokens` as text; `received_K` is the mean attention (0–1) of the rows that see a key. `marks` are ranges [begin, end) of tokens: `needle` among the keys,
    `answer` among the rows. `scaling`, `softcap` and `window` are the layer's, `first` tokens of padding there are none. Without `query_TE`, `key_TE` and
    `lse_T` only the whole map can be shown. `facts` say what was asked and what made it.
    """

    head: Head
    value_UV: Float[np.ndarray, "U V"]
    block: int
    received_K: Float[np.ndarray, " T"]
    tokens: tuple[str, ...]
    marks: Mapping[str, Sequence[tuple[int, int]]]
    facts: Mapping[str, Any]
    window: int | None = None
    softcap: float | None = None
    scaling: float = 1.0
    query_TE: Float[np.ndarray, "T E"] | None = field(default=None, repr=False)
    key_TE: Float[np.ndarray, "T E"] | None = field(default=None, repr=False)
    lse_T: Float[np.ndarray, " T"] | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        """The tokens of the prompt, T."""
        return len(self.tokens)

    @property
    def zooms(self) -> bool:
        """Whether parts can be shown larger than the blocks of the whole."""
        return self.query_TE is not None

    def part(self, queries: tuple[int, int] | None = None, keys: tuple[int, int] | None = None, cells: int = CELLS) -> AttentionMap:
        """A rectangle of tokens [begin, end), in the smallest blocks that need at most `cells` along a side: exact cells where it has no more tokens.

        A map that does not zoom gives the blocks of the whole that the rectangle touches. Raises `InputError` for a rectangle that leaves the prompt.
        """
        whole = 0, self.length
        queries, keys = queries or whole, keys or whole
        for begin, end in (queries, keys):
            if not 0 <= begin < end <= self.length:
                raise InputError(f"the tokens {begin} to {end} are no part of the prompt of {self.length}")
        if (queries == keys == whole and cells == CELLS) or not self.zooms:
            return self._blocks(queries, keys)
        block = -(-max(queries[1] - queries[0], keys[1] - keys[0]) // cells)
        return AttentionMap(self.head, self._pooled(queries, keys, block), block, "max", queries, keys, self.length, self.facts)

    def _blocks(self, queries: tuple[int, int], keys: tuple[int, int]) -> AttentionMap:
        (top, bottom), (left, right) = ((begin // self.block, -(-end // self.block)) for begin, end in (queries, keys))
        shown = [(low * self.block, min(high * self.block, self.length)) for low, high in ((top, bottom), (left, right))]
        value_UV = self.value_UV[top:bottom, left:right].astype(np.float32)
        return AttentionMap(self.head, value_UV, self.block, "max", *shown, self.length, self.facts)

    def _pooled(self, queries: tuple[int, int], keys: tuple[int, int], block: int) -> Float[np.ndarray, "U V"]:
        """The max over blocks, a strip of rows at a time; keys behind a strip's last row are not looked at."""
        (top, bottom), (left, right) = queries, keys
        value_UV = np.zeros([-(-(end - begin) // block) for begin, end in (queries, keys)], np.float32)
        step = block * max(1, STRIP // (block * (right - left)))
        for first in range(top, bottom, step):
            last = min(first + step, bottom)
            if (seen := min(right, last)) > left:
                p_RK = self.probabilities((first, last), (left, seen))
                most_UK = np.maximum.reduceat(p_RK, range(0, last - first, block), axis=0)
                part_UV = np.maximum.reduceat(most_UK, range(0, seen - left, block), axis=1)
                begin = (first - top) // block
                value_UV[begin : begin + part_UV.shape[0], : part_UV.shape[1]] = part_UV
        return value_UV

    def probabilities(self, queries: tuple[int, int], keys: tuple[int, int]) -> Float[np.ndarray, "R K"]:
        """The attention of some rows to some keys, each a range [begin, end): exp(score − log-sum-exp), 0 at keys that a row does not see."""
        if self.query_TE is None or self.key_TE is None or self.lse_T is None:
            raise InputError("this map was kept without queries and keys: only its blocks are known")
        score_RK = (self.query_TE[slice(*queries)] * np.float32(self.scaling)) @ self.key_TE[slice(*keys)].T
        if self.softcap is not None:
            score_RK = np.tanh(score_RK / np.float32(self.softcap)) * np.float32(self.softcap)
        score_RK -= self.lse_T[slice(*queries), None]
        np.exp(score_RK, out=score_RK)
        row_R1, key_K = np.arange(*queries)[:, None], np.arange(*keys)
        ahead = slice(max(queries[0] + 1 - keys[0], 0), None)  # the only keys that are ahead of a row
        score_RK[:, ahead][key_K[ahead] > row_R1] = 0
        if self.window is not None:
            behind = slice(0, max(queries[1] - self.window - keys[0], 0))
            score_RK[:, behind][key_K[behind] <= row_R1 - self.window] = 0
        return score_RK

    def sinks(self, rule: SinkRule) -> list[int]:
        """The keys that are sinks of the head by a rule for later ones; the first token is one if it receives more than `FIRST_TOKEN`."""
        first = [0] if self.received_K[0] > FIRST_TOKEN else []
        return first + np.flatnonzero(rule.later(self.received_K[None, None, None], np.zeros(1, int))[0, 0, 0]).tolist()

    def bare(self, cells: int = 512) -> "KeptMap":
        """The same without what makes parts larger, in at most `cells` along a side, rounded to half precision: a small file."""
        by = -(-self.value_UV.shape[0] // cells)
        value_UV = self.value_UV.astype(np.float16)
        for axis in (0, 1):
            value_UV = np.maximum.reduceat(value_UV, range(0, value_UV.shape[axis], by), axis=axis)
        facts = {**self.facts, "kept": "blocks in half precision, without queries and keys"}
        return replace(self, value_UV=value_UV, block=self.block * by, query_TE=None, key_TE=None, lse_T=None, facts=facts)

    def save(self, path: str | Path) -> Path:
        """Write one file; `load` reads it again. Raises `InputError` where it cannot be written."""
        names = ("head", "block", "tokens", "marks", "facts", "window", "softcap", "scaling")
        told = json.dumps({name: getattr(self, name) for name in names}, default=str, ensure_ascii=False).encode()
        arrays: dict[str, Any] = {"told": np.frombuffer(told, np.uint8), "received_K": self.received_K, "value_UV": self.value_UV}
        if self.query_TE is not None and self.key_TE is not None and self.lse_T is not None:
            arrays |= {"query_TE": self.query_TE, "key_TE": self.key_TE, "lse_T": self.lse_T}

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.savez_compressed(file, **arrays)

        return write_file(path, write)

    @classmethod
    def load(cls, path: str | Path) -> "KeptMap | None":
        """A map that was kept, or None where there is none. A file that cannot be read counts as none, and will be made again."""
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            told = json.loads(arrays.pop("told").tobytes())
            told |= {"head": Head.parse(told["head"]), "tokens": tuple(told["tokens"])}
            told["marks"] = {name: [(begin, end) for begin, end in ranges] for name, ranges in told["marks"].items()}
            return cls(**told, **arrays)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error):
            return None


def found(asked: Asked, paths: Iterable[Path], load: Callable[[Path], KeptMap | None] = KeptMap.load) -> KeptMap | None:
    """The first of some files that is the map asked for; None if none is."""
    return next((kept for path in paths if (kept := load(path)) is not None and kept.facts.get("asked") == asked.question), None)


def text_of(content: bytes, name: str) -> str:
    """A text of one's own from its bytes. Raises `InputError` naming the file if it is not UTF-8, or blank."""
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no text in UTF-8: {error}") from error
    if not text.strip():
        raise InputError(f"{name} is blank")
    return text


def text_name(text: str) -> str:
    """How a text of one's own is named in what is asked: the first 16 digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def view_of(text: str, length: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Rows and keys from a text such as 4000:5000,0:1000; None for what is no rectangle of a prompt of `length` tokens."""
    if (match := re.fullmatch(r"(\d{1,9}):(\d{1,9}),(\d{1,9}):(\d{1,9})", text, re.ASCII)) is None:
        return None
    top, bottom, left, right = map(int, match.groups())
    return ((top, bottom), (left, right)) if top < bottom <= length and left < right <= length else None


def strongest(kept: KeptMap, shown: AttentionMap, count: int = 10) -> pd.DataFrame:
    """The cells of a part with the most attention, strongest first: `row` and `key` as tokens [begin, end − 1] with their text, and `attention` (0–1)."""
    flat = shown.value_UV.ravel()
    places = np.argsort(-flat, kind="stable")[:count] if flat.size <= count else np.argpartition(-flat, count)[:count]
    rows = []
    for place in places[np.argsort(-flat[places], kind="stable")]:
        cell = divmod(int(place), shown.value_UV.shape[1])
        begins = [side[0] + at * shown.block for side, at in zip((shown.queries, shown.keys), cell, strict=True)]
        rows.append({"row": _told(kept, begins[0], shown), "key": _told(kept, begins[1], shown), "attention": float(flat[place])})
    return pd.DataFrame(rows, columns=["row", "key", "attention"])


def _told(kept: KeptMap, begin: int, shown: AttentionMap) -> str:
    text = "".join(kept.tokens[begin : begin + min(shown.block, 12)])
    return f"{begin} “{text}”" if shown.exact else f"{begin}–{min(begin + shown.block, kept.length) - 1} “{text}…”"
