"""What does a streaming head compute? Attention to the sinks and to a window, and its reference definition.

A row sees the first `sinks` keys behind the padding and the last `window` keys up to its own. Keys come as one tensor in which the sinks stand at
`sink_at_B` and everything from `recent_from` on has consecutive positions: all keys of a prompt that is prefilled at once, or what a cache has
kept (sinks, then the last window − 1) with a chunk behind it. Either way a sink is counted once: as a sink.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SinkWindow:
    """Queries of consecutive rows from position `first` on, the keys and values that streaming heads may see, and which of them each row does.

    `start_B` is the position of the first token behind the padding on the left; its key, the first sink, has the index `sink_at_B` in k, and the others
    follow it. The key at index `recent_from` has position `recent_first`, and those behind it follow, up to the last row's; it has at least one key.
    A sink that lies beyond a row is not seen by it. `chunk_window` gives every row the keys that the first row sees, and those in between
    (DuoAttention's chunked prefill). Rows before `start_B` are padding, and see nothing. Scores are scaling · q·k, tanh-capped at `softcap`.
    """

    q_BHQE: Float[Tensor, "B H Q E"]
    k_BGKE: Float[Tensor, "B G K E"]
    v_BGKE: Float[Tensor, "B G K E"]
    sinks: int
    window: int
    first: int
    start_B: Int[Tensor, " B"]
    sink_at_B: Int[Tensor, " B"]
    recent_from: int
    recent_first: int
    scaling: float
    softcap: float | None = None
    chunk_window: bool = False

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q_BHQE.shape[1] // self.k_BGKE.shape[1]

    @property
    def low_Q(self) -> Int[Tensor, " Q"]:
        """The first position in each row's window."""
        pos_Q = torch.arange(self.q_BHQE.shape[2], device=self.q_BHQE.device) + self.first
        return (torch.full_like(pos_Q, self.first) if self.chunk_window else pos_Q) - self.window + 1

    def visible(self) -> Bool[Tensor, "B Q K"]:
        """Which keys each row sees."""
        device, keys = self.q_BHQE.device, self.k_BGKE.shape[2]
        index_K = torch.arange(keys, device=device)
        pos_Q = torch.arange(self.q_BHQE.shape[2], device=device) + self.first
        number_BK = index_K - self.sink_at_B[:, None]
        sink_BK = (number_BK >= 0) & (number_BK < self.sinks)
        as_sink_BQK = sink_BK[:, None] & ((self.start_B[:, None] + number_BK)[:, None] <= pos_Q[:, None])
        pos_K = index_K - self.recent_from + self.recent_first
        recent_BK = (index_K >= self.recent_from) & (pos_K >= self.start_B[:, None] + self.sinks)
        near_QK = (pos_K >= self.low_Q[:, None]) & (pos_K <= pos_Q[:, None])
        return as_sink_BQK | (recent_BK[:, None] & near_QK)


def reference(problem: SinkWindow) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H Q"]]:
    """Outputs in the queries' dtype and log-sum-exp in nats (float32), by definition; 0 and −inf for rows of padding. Holds Q × K scores."""
    q = rearrange(problem.q_BHQE, "b (g h) q e -> b g h q e", h=problem.group).float()
    score = torch.einsum("bghqe,bgke->bghqk", q, problem.k_BGKE.float()) * problem.scaling
    if problem.softcap is not None:
        score = (score / problem.softcap).tanh() * problem.softcap
    score = score.masked_fill(~problem.visible()[:, None, None], -torch.inf)
    lse = score.logsumexp(-1)
    prob = (score - lse[..., None]).exp().nan_to_num(nan=0.0)
    z = torch.einsum("bghqk,bgke->bghqe", prob, problem.v_BGKE.float())
    return rearrange(z, "b g h q e -> b (g h) q e").to(problem.q_BHQE.dtype), rearrange(lse, "b g h q -> b (g h) q")
