"""What do the implementations take, and what do they give? One layer's attention as tensors; statistics per query row and per key."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Name = Hashable
"""What a set of keys is called."""

Range = tuple[Int[Tensor, "B R"], Int[Tensor, "B R"]]
"""Keys [low, high) of each row, visible ones only; empty where high ≤ low."""


@dataclass(frozen=True, eq=False)
class Attention:
    """Queries of chosen rows, all keys and values of one layer, and which keys a row may see.

    `pos_BR` are the rows' positions, ascending in each prompt (the same position may come twice). A row sees the keys from `start_B` (behind the
    padding on the left) up to its own position, or the last `window` of those. Scores are scaling · q·k, tanh-capped at `softcap`; scaling > 0.
    """

    q_BHRE: Float[Tensor, "B H R E"]
    k_BGKE: Float[Tensor, "B G K E"]
    v_BGKE: Float[Tensor, "B G K E"]
    pos_BR: Int[Tensor, "B R"]
    start_B: Int[Tensor, " B"]
    scaling: float
    softcap: float | None = None
    window: int | None = None
    padded: bool = False
    memo: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """A value that depends on nothing but positions, window, padding and its name; layers that have these in common may share the `memo`."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q_BHRE.shape[1] // self.k_BGKE.shape[1]

    @property
    def keys(self) -> int:
        """The number of keys, K."""
        return self.k_BGKE.shape[2]

    @cached_property
    def low_BR(self) -> Int[Tensor, "B R"]:
        """The first key that a row sees; beyond its own position for a row of padding, which sees nothing."""
        low_BR = self.start_B[:, None].expand_as(self.pos_BR)
        return low_BR if self.window is None else torch.maximum(low_BR, self.pos_BR - self.window + 1)

    @property
    def span(self) -> tuple[int, int]:
        """The smallest and the largest position of a row."""
        return self.once("span", lambda: (int(self.pos_BR[:, 0].min()), int(self.pos_BR[:, -1].max())))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Single keys: key `key_P` for row `row_P` of prompt `batch_P`, visible to it. A row may have none or many."""

    batch_P: Int[Tensor, " P"]
    row_P: Int[Tensor, " P"]
    key_P: Int[Tensor, " P"]


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which statistics to compute. `received` holds `sum` and `max`; `maps` pairs of block size and reducer; `ranges` and `singles` named sets of keys."""

    output: bool = False
    lse: bool = False
    entropy: bool = False
    peak: bool = False
    received: frozenset[str] = frozenset()
    maps: frozenset[tuple[int, str]] = frozenset()
    ranges: Mapping[Name, Range] = field(default_factory=dict)
    singles: Mapping[Name, Pairs] = field(default_factory=dict)

    def __or__(self, other: "Wanted") -> "Wanted":
        """Everything that either wants."""
        flags = {name: getattr(self, name) or getattr(other, name) for name in ("output", "lse", "entropy", "peak")}
        named = {name: {**getattr(self, name), **getattr(other, name)} for name in ("ranges", "singles")}
        return Wanted(**flags, received=self.received | other.received, maps=self.maps | other.maps, **named)

    def __bool__(self) -> bool:
        """Whether anything beside the output is wanted."""
        return self.lse or self.entropy or self.peak or bool(self.received or self.maps or self.ranges or self.singles)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was computed, in float32 (the output in the model's dtype); what was not wanted may be None.

    `lse_BHR` and `entropy_BHR` in nats, +inf and 0 for rows that see nothing. `received` by reducer and
    `maps` by block and reducer, over all rows; `masses` by the name of the set of keys.
    """

    lse_BHR: Float[Tensor, "B H R"]
    z_BHRE: Float[Tensor, "B H R E"] | None = None
    entropy_BHR: Float[Tensor, "B H R"] | None = None
    peak_key_BHR: Int[Tensor, "B H R"] | None = None
    peak_prob_BHR: Float[Tensor, "B H R"] | None = None
    received: Mapping[str, Float[Tensor, "B H K"]] = field(default_factory=dict)
    maps: Mapping[tuple[int, str], Float[Tensor, "B H U V"]] = field(default_factory=dict)
    masses: Mapping[Name, Float[Tensor, "B H R"]] = field(default_factory=dict)
