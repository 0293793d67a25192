"""What is a map of attention? A rectangle of one head's probabilities, pooled into blocks or exact."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.heads import Head


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """A rectangle of one head's attention: `value_UV` is the `reducer` over squares of `block` tokens, exact probabilities where `block` is 1.

    `queries` and `keys` are the tokens [begin, end) shown, `tokens` how many the prompt has, and `provenance` is the capture's.
    """

    head: Head
    value_UV: Float[np.ndarray, "U V"]
    block: int
    reducer: str
    queries: tuple[int, int]
    keys: tuple[int, int]
    tokens: int
    provenance: Any

    @property
    def exact(self) -> bool:
        """Whether every cell is one query and one key."""
        return self.block == 1
