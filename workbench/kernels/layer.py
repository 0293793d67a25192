"""What does a layer remember? Everything for its full heads, sinks and a window for the others, in a layer of transformers' `Cache`.

`update` hands the new keys and values on as they are, wrapped; the registered attention function gives them back with the padding, and the layer
stores them and tells what the rows of this pass may see. The streaming heads' ring is laid out as `kernels.decoding` says.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin

from workbench.errors import InputError
from workbench.kernels.clock import Clocks
from workbench.policies import HeadPolicy

BLOCK = 256
"""Tokens by which the full heads' buffers grow; kept room costs memory, growing costs a copy."""


@dataclass(frozen=True, eq=False)
class New:
    """Keys and values of the rows of this pass, on their way through the model: they stand where the model expects those that attention sees."""

    layer: "HybridLayer"
    tensor: Tensor

    @property
    def shape(self) -> torch.Size:
        """As if it were the tensor."""
        return self.tensor.shape


@dataclass(frozen=True, eq=False)
class Stored:
    """What a pass sees of a layer: keys and values of full heads up to the last row, and of streaming heads: sinks, the last before the pass, the new ones.

    From `recent_from` on, the streaming heads' positions are consecutive; in a first pass they all are, and the sinks are not repeated in front of them.
    `dropped` are the sums [B, S, Q, E] of the keys and of the values that no longer stand by themselves, for each row, if there is a compensation token.
    """

    first: int
    full_k: Tensor
    full_v: Tensor
    k: Tensor
    v: Tensor
    recent_from: int
    dropped: tuple[Tensor, Tensor] | None


class HybridLayer(CacheLayerMixin):
    """One layer of a cache: full K and V [B, F, N, E] for the first F KV heads, a ring [B, S, sinks + window, E] for the S others.

    With the semantics `decode` the streaming heads keep everything as well until the first token is decoded, or `prune` is called.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, policy: HeadPolicy, number: int, clocks: Clocks, capacity: int = 0) -> None:
        super().__init__()
        self.policy, self.clocks, self.capacity = policy, clocks, capacity
        self.full = len(policy.full(number))
        self.length = 0
        self.unpruned: list[tuple[Tensor, Tensor]] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, for keys and values of this shape."""
        batch, heads, _, size = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.batch_size = batch
        self.full_k, self.full_v = (key_states.new_empty(batch, self.full, self.capacity, size) for _ in range(2))
        slots = self.policy.sinks + self.policy.window
        self.ring_k, self.ring_v = (key_states.new_zeros(batch, heads - self.full, slots, size) for _ in range(2))
        self.dropped = None
        if self.policy.compensation and heads > self.full:
            self.dropped = torch.zeros(2, batch, heads - self.full, size, dtype=torch.float32, device=self.device)
        self.unpruned = [] if self.policy.semantics == "decode" else None
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The new keys and values, wrapped for the registered attention function. Another one would fail on them."""
        return New(self, key_states), New(self, value_states)

    def store(self, k_BGQE: Tensor, v_BGQE: Tensor, start_B: Tensor) -> Stored:
        """Keep the keys and values of a pass over several rows, and say what they see."""
        if not self.is_initialized:
            self.lazy_initialization(k_BGQE, v_BGQE)
        first, new = self.length, k_BGQE.shape[2]
        self._grow(first + new)
        full_k, full_v = (self._append(buffer, tensor, first) for buffer, tensor in ((self.full_k, k_BGQE), (self.full_v, v_BGQE)))
        k, v = k_BGQE[:, self.full :], v_BGQE[:, self.full :]
        recent = self._recent(first) if first else (None, None)
        if self.unpruned is not None:
            self.unpruned.append((k, v))
        sums = self._remember(k, v, first, start_B, recent)
        self.length = first + new
        rings = zip((self.ring_k, self.ring_v), recent, (k, v), strict=True)  # the sinks may be among the new ones
        seen = (tensor if old is None else torch.cat([ring[:, :, : self.policy.sinks], old, tensor], dim=2) for ring, old, tensor in rings)
        return Stored(first, full_k, full_v, *seen, recent_from=self.policy.sinks if first else 0, dropped=sums)

    def step(self, k_BGQE: Tensor, v_BGQE: Tensor, position: Tensor, start_B: Tensor) -> None:
        """Keep the keys and values of one decoded token. All that depends on the position is computed on the device."""
        self.prune()
        self._grow(self.length + 1)
        policy, place = self.policy, position[None].long()
        self.full_k.index_copy_(2, place, k_BGQE[:, : self.full])
        self.full_v.index_copy_(2, place, v_BGQE[:, : self.full])
        number_B = place - start_B.long()
        slot_B = torch.where(number_B < policy.sinks, number_B, policy.sinks + place % policy.window)
        batch_B = torch.arange(len(slot_B), device=self.device)
        if self.dropped is not None:  # the token that the new one pushes out of the ring
            leaves_B = place - policy.window >= start_B + policy.sinks
            for total, ring in zip(self.dropped, (self.ring_k, self.ring_v), strict=True):
                total.add_(torch.where(leaves_B[:, None, None], ring[batch_B, :, slot_B].float(), 0))
        self.ring_k[batch_B, :, slot_B] = k_BGQE[:, self.full :, 0]
        self.ring_v[batch_B, :, slot_B] = v_BGQE[:, self.full :, 0]
        self.length += 1

    def prune(self) -> None:
        """Let the streaming heads forget what lies between sinks and window; for the semantics `decode`, at the end of the prompt."""
        self.unpruned = None

    def everything(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the streaming heads, all of them, before they are pruned."""
        assert self.unpruned is not None
        if len(self.unpruned) > 1:
            k, v = (torch.cat(parts, dim=2) for parts in zip(*self.unpruned, strict=True))
            self.unpruned[:] = [(k, v)]
        return self.unpruned[0]

    def _append(self, buffer: Tensor, new_BGQE: Tensor, first: int) -> Tensor:
        last = first + new_BGQE.shape[2]
        buffer[:, :, first:last] = new_BGQE[:, : self.full]
        return buffer[:, :, :last]

    def _grow(self, length: int) -> None:
        """Room for so many tokens in the full heads' buffers."""
        if length > self.full_k.shape[2]:
            more = -(-length // BLOCK) * BLOCK
            for name in ("full_k", "full_v"):
                old = getattr(self, name)
                made = old.new_empty(*old.shape[:2], more, old.shape[3])
                made[:, :, : self.length] = old[:, :, : self.length]
                setattr(self, name, made)
                del old

    def _recent(self, first: int) -> tuple[Tensor, Tensor]:
        """The last tokens before the row at `first`, in order: window − 1 of them; one more, unseen by any row, if it is about to be dropped."""
        policy = self.policy
        recent = torch.arange(max(0, first - policy.window + (not policy.compensation)), first, device=self.device)
        slots = policy.sinks + recent % policy.window
        return self.ring_k.index_select(2, slots), self.ring_v.index_select(2, slots)

    def _remember(self, k: Tensor, v: Tensor, first: int, start_B: Tensor, recent: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor] | None:
        """Put new sinks and the last tokens into the ring, and add what falls out to the compensation's sums, which are returned row by row."""
        policy, new = self.policy, k.shape[2]
        sums = None
        if self.dropped is not None:
            sums_k, sums_v = (
                total[:, :, None] + self._falling(old, tensor, first, start_B) for total, old, tensor in zip(self.dropped, recent, (k, v), strict=True)
            )
            sums, self.dropped = (sums_k, sums_v), torch.stack([sums_k[:, :, -1], sums_v[:, :, -1]])
        last = torch.arange(max(0, new - policy.window), new, device=self.device)
        slots = policy.sinks + (first + last) % policy.window
        number_BC = start_B.long()[:, None] + torch.arange(policy.sinks, device=self.device) - first  # where in the new tokens the sinks are
        new_BC = ((number_BC >= 0) & (number_BC < new))[:, None, :, None]
        index = number_BC.clamp(0, new - 1)[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        for ring, tensor in ((self.ring_k, k), (self.ring_v, v)):
            ring[:, :, slots] = tensor[:, :, last]
            ring[:, :, : policy.sinks] = torch.where(new_BC, tensor.gather(2, index), ring[:, :, : policy.sinks])
        return sums

    def _falling(self, old: Tensor | None, new_BSQE: Tensor, first: int, start_B: Tensor) -> Tensor:
        """For each new row [B, S, Q, E] the sum, in float32, of the keys (or values) that have fallen out of its window since the rows before."""
        policy, rows = self.policy, new_BSQE.shape[2]
        recent = new_BSQE if old is None else torch.cat([old, new_BSQE], dim=2)
        begin = first + rows - recent.shape[2]  # the position of the first of them
        pos_K = torch.arange(begin, first + rows, device=new_BSQE.device)
        counts_BK = pos_K >= start_B[:, None] + policy.sinks
        sums = pad(torch.where(counts_BK[:, None, :, None], recent.float(), 0).cumsum(2), (0, 0, 1, 0))  # of none, one, two … of them
        left_Q = (torch.arange(first, first + rows, device=new_BSQE.device) - policy.window - begin + 1).clamp(min=0)
        return sums.index_select(2, left_Q)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All positions so far, and the new ones; the mask says where padding ends, and no more."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen so far; streaming heads have forgotten most of them."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that are kept for the tokens so far (not the room for more)."""
        if not self.is_initialized:
            return 0
        full = 2 * self.full_k[:, :, : self.length].numel() * self.full_k.element_size()
        waiting = sum(tensor.nbytes for pair in self.unpruned or () for tensor in pair)
        return full + self.ring_k.nbytes + self.ring_v.nbytes + waiting + (0 if self.dropped is None else self.dropped.nbytes)

    def reset(self) -> None:
        """Forget everything, and the buffers."""
        if self.is_initialized:
            del self.full_k, self.full_v, self.ring_k, self.ring_v, self.dropped
        self.is_initialized, self.length, self.unpruned = False, 0, None
        self.clocks.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Raises `InputError`: beams share no ring."""
        raise InputError("beam search is not supported by a policy's cache; use greedy search or sampling")

    def crop(self, tokens_to_remove: int) -> None:
        """Raises `InputError` if anything is to be removed: what a ring has forgotten cannot come back."""
        if tokens_to_remove:
            raise InputError("a policy's cache cannot go back: streaming heads have forgotten; assisted decoding and the like are not supported")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each prompt `repeats` times."""
        self._select(torch.arange(self.batch_size, device=self.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the prompts."""
        self._select(indices)

    def _select(self, indices: Tensor) -> None:
        if not self.is_initialized:
            return
        self.full_k, self.full_v, self.ring_k, self.ring_v = (tensor[indices] for tensor in (self.full_k, self.full_v, self.ring_k, self.ring_v))
        self.dropped = None if self.dropped is None else self.dropped[:, indices]
        self.unpruned = None if self.unpruned is None else [(k[indices], v[indices]) for k, v in self.unpruned]
        self.batch_size = len(self.full_k)
