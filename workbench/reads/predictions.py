"""What does the model predict?"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from workbench.reads.rows import Array


class NextTokenValue(NamedTuple):
    """The id that the model would choose after each row, and the log-probability of the token that does follow (nats)."""

    choice: Array
    logprob: Array


@dataclass(frozen=True)
class NextToken:
    """What the model predicts at the rows: `.choice` [B, R] and `.logprob` [B, R] of the prompt's own next token (NaN after the last)."""

    rows: str | None = None
    per_row: ClassVar[bool] = False
