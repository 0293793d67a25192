"""What does one step of decoding compute? Full heads read all keys of a buffer, streaming heads a ring; the reference definition.

The ring of a KV head has sinks + window slots: slot i < sinks holds the i-th token behind the padding, and slot sinks + (p mod window) the token at
position p, for the last `window` positions. Their order does not matter to a softmax, as keys carry their rotation.
"""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DecodeStep:
    """One query row per prompt; the first KV heads are full, the others stream; query heads follow their KV heads.

    `position` is the row's, the same for all prompts, on the device: what is computed follows it without anybody looking at it, so that a step can be
    replayed as a CUDA graph. The full buffers hold position p at index p, and more room behind; the row's own key is in them and in the ring already.
    There may be no full KV heads, or no streaming ones (sizes of 0). Scores are scaling · q·k, tanh-capped at `softcap`.
    """

    q_BHE: Float[Tensor, "B H E"]
    full_k_BFNE: Float[Tensor, "B F N E"]
    full_v_BFNE: Float[Tensor, "B F N E"]
    ring_k_BSCE: Float[Tensor, "B S C E"]
    ring_v_BSCE: Float[Tensor, "B S C E"]
    sinks: int
    window: int
    position: Int[Tensor, ""]
    start_B: Int[Tensor, " B"]
    scaling: float
    softcap: float | None = None

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q_BHE.shape[1] // (self.full_k_BFNE.shape[1] + self.ring_k_BSCE.shape[1])

    def full_visible(self) -> Bool[Tensor, "B N"]:
        """Which places of the full buffers hold a token that the row sees."""
        index_N = torch.arange(self.full_k_BFNE.shape[2], device=self.q_BHE.device)
        return (index_N >= self.start_B[:, None]) & (index_N <= self.position)

    def ring_visible(self) -> Bool[Tensor, "B C"]:
        """Which slots of the ring hold a token that the row sees."""
        slot_C = torch.arange(self.sinks + self.window, device=self.q_BHE.device)
        held_C = self.position - (self.position - (slot_C - self.sinks)) % self.window  # the newest position that falls on a slot
        recent_BC = held_C >= (self.start_B[:, None] + self.sinks)
        sink_BC = self.start_B[:, None] + slot_C <= self.position
        return torch.where(slot_C < self.sinks, sink_BC, recent_BC)


def reference(step: DecodeStep) -> tuple[Float[Tensor, "B H E"], Float[Tensor, "B H"]]:
    """Outputs in the queries' dtype and log-sum-exp in nats (float32), by definition."""
    cut = step.full_k_BFNE.shape[1] * step.group
    parts = [
        _attend(step, step.q_BHE[:, :cut], step.full_k_BFNE, step.full_v_BFNE, step.full_visible()),
        _attend(step, step.q_BHE[:, cut:], step.ring_k_BSCE, step.ring_v_BSCE, step.ring_visible()),
    ]
    return torch.cat([z for z, _ in parts], dim=1), torch.cat([lse for _, lse in parts], dim=1)


def filled(step: DecodeStep) -> DecodeStep:
    """The same step without the unused room of its buffers; as it is on other devices than the CPU, where looking at the position would stop the queue."""
    if step.q_BHE.device.type != "cpu":
        return step
    end = int(step.position) + 1
    return replace(step, full_k_BFNE=step.full_k_BFNE[:, :, :end], full_v_BFNE=step.full_v_BFNE[:, :, :end])


def _attend(step: DecodeStep, q_BHE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, visible_BK: Tensor) -> tuple[Tensor, Tensor]:
    q = rearrange(q_BHE, "b (g h) e -> b g h e", h=step.group).float()
    score = torch.einsum("bghe,bgke->bghk", q, k_BGKE.float()) * step.scaling
    if step.softcap is not None:
        score = (score / step.softcap).tanh() * step.softcap
    score = score.masked_fill(~visible_BK[:, None, None], -torch.inf)
    lse = score.logsumexp(-1)
    z = torch.einsum("bghk,bgke->bghe", (score - lse[..., None]).exp(), v_BGKE.float().nan_to_num(nan=0.0))
    return rearrange(z, "b g h e -> b (g h) e").to(q_BHE.dtype), rearrange(lse, "b g h -> b (g h)")
