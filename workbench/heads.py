"""Which head? `Head` and `Shape`, the dimension key of the whole package.

One letter per dimension, used as a suffix of array names everywhere:
B batch, L layer, H query head, G KV head, Q query position, K key position, E head size, D model size, V vocabulary,
N sample, R chosen query row.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from workbench.errors import InputError

REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {"max": np.max, "mean": np.mean, "min": np.min}
"""How the scores of the query heads of one KV head become one score. `max`: a KV head is needed if any query head needs it."""

_NAMES = (
    r"L(\d+)H(\d+)",  # L10H7, HeadVis and this package
    r"(\d+)[-.](\d+)",  # 10-7 (Retrieval_Head, HeadKV, QRHead), 10.7 (papers)
    r"A(\d+)\.(\d+)",  # A10.7 (auto-circuit, CircuitKIT)
    r"a(\d+)\.h(\d+)(?:<[qkv]>)?",  # a10.h7<q> (EAP-IG)
    r"[\[(]\s*(\d+)\s*,\s*(\d+)\s*[\])]",  # [10, 7] or (10, 7)
    r"blocks\.(\d+)\.attn\.hook_\w+\[:, :, (\d+)\]",  # ACDC
)


@dataclass(frozen=True, order=True)
class Head:
    """A query head: `layer` and `index` within the layer, both from 0. Prints as `L18H7`; sorts layer by layer."""

    layer: int
    index: int

    def __post_init__(self) -> None:
        if self.layer < 0 or self.index < 0:
            raise InputError(f"a head's layer and index start at 0, got layer {self.layer}, index {self.index}")

    def __str__(self) -> str:
        return f"L{self.layer}H{self.index}"

    @classmethod
    def parse(cls, text: object) -> "Head":
        """Read any head name of the field: `L10H7`, `10-7`, `10.7`, `A10.7`, `a10.h7<q>`, `[10, 7]`, `(10, 7)`, ACDC's.

        A `Head` or a pair of integers is taken as it is. Raises `ValueError` naming the accepted forms.
        """
        if isinstance(text, Head):
            return text
        for pattern in _NAMES:
            if match := re.fullmatch(pattern, str(text).strip()):
                return cls(int(match[1]), int(match[2]))
        raise InputError(f"{text!r} names no head; write L10H7, 10-7, 10.7, A10.7, a10.h7 or [10, 7]")


@dataclass(frozen=True)
class Shape:
    """The sizes of a model's attention: layers, query heads and KV heads per layer, head size, residual size.

    Query head h reads KV head `h // (n_heads / n_kv_heads)`, the order of transformers' `repeat_kv`.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int

    def __post_init__(self) -> None:
        sizes = (self.n_layers, self.n_heads, self.n_kv_heads, self.d_head, self.d_model)
        if min(sizes) < 1 or self.n_heads % self.n_kv_heads:
            raise InputError(f"not the shape of an attention model: {self}")

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.n_heads // self.n_kv_heads

    def heads(self) -> Iterator[Head]:
        """Every query head, layer by layer."""
        return (Head(layer, index) for layer in range(self.n_layers) for index in range(self.n_heads))

    def kv_head(self, head: Head) -> int:
        """The KV head that a query head reads. Raises `ValueError` for a head that the model does not have."""
        self.check(head)
        return head.index // self.group

    def check(self, head: Head) -> None:
        """Raise `ValueError` unless the model has this head."""
        if head.layer >= self.n_layers or head.index >= self.n_heads:
            raise InputError(f"no head {head} in a model of {self.n_layers} layers × {self.n_heads} query heads")

    def to_kv(self, score_LH: Float[np.ndarray, "L H"], reduction: str = "max") -> Float[np.ndarray, "L G"]:
        """One number per KV head from one per query head, by a named reduction (`max`, `mean`, `min`)."""
        if reduction not in REDUCTIONS:
            raise InputError(f"unknown reduction {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
        return REDUCTIONS[reduction](score_LH.reshape(self.n_layers, self.n_kv_heads, self.group), axis=2)

    def to_query(self, score_LG: Shaped[np.ndarray, "L G"]) -> Shaped[np.ndarray, "L H"]:
        """Every query head gets its KV head's number."""
        return np.repeat(score_LG, self.group, axis=1)


@dataclass(frozen=True)
class ModelCard:
    """What identifies a model in a result: its name, where it came from, its fingerprint and its shape.

    `fingerprint` is empty where it is not known, as in files of other tools.
    """

    name: str
    origin: str
    fingerprint: str
    shape: Shape
    revision: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelCard":
        """A card from plain data that keeps to the JSON Schema of head labels; there, 4.0 counts as a whole number too."""
        shape = Shape(**{name: int(size) for name, size in data["shape"].items()})
        return cls(data["name"], data["origin"], data["fingerprint"], shape, data["revision"])
