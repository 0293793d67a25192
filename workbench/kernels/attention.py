"""What do the heads compute under a policy? Full heads everything, streaming heads sinks and window, in the function registered with transformers.

1. Keys and values arrive as the cache has wrapped them (`New`), or, without a cache, as tensors of this pass.
2. Several rows: the full slice by a dense kernel, the streaming slice by one for sinks and window. One row behind others: one kernel for both.
3. The compensation token, if there is one, is merged into the streaming slice by log-sum-exp.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from workbench.errors import InputError
from workbench.kernels.clock import Clock
from workbench.kernels.layer import HybridLayer, New, Stored
from workbench.kernels.permutation import Arrangement
from workbench.models import HYBRID
from workbench.ops.attend import attend, decode
from workbench.ops.decoding import DecodeStep
from workbench.ops.dense import dense
from workbench.ops.sink_window import SinkWindow
from workbench.policies import HeadPolicy


@dataclass(eq=False)
class Running:
    """A policy at work in a model: who computes which part.

    `orders` are those of the layers whose weights could not be permuted: there heads change places in every pass. `dense_used` says which dense kernels ran.
    """

    policy: HeadPolicy
    implementation: str
    decoder: str
    dense: str
    orders: dict[int, Arrangement] = field(default_factory=dict)
    dense_used: set[str] = field(default_factory=set)


def merged(z: Tensor, lse: Tensor, score: Tensor, v: Tensor) -> Tensor:
    """Outputs [.., E] with log-sum-exp [..], and one more key with a score and a value: outputs over both, in float32 arithmetic."""
    total = torch.logaddexp(lse, score)
    kept, added = ((part - total).exp().nan_to_num(nan=0.0)[..., None] for part in (lse, score))
    return (z.float() * kept + v.float() * added).to(z.dtype)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor | New,
    value: Tensor | New,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: outputs [B, Q, H, E], and no weights."""
    if scaling is None or not scaling > 0:
        raise RuntimeError(f"the model scales its attention scores by {scaling}, which the workbench does not know")
    if s_aux is not None:
        raise InputError("attention with learned sink logits is not supported: its rows do not sum to 1")
    number, running = module.workbench_policy
    slides = running.policy.windows[number] is not None
    k, v = (given.tensor if isinstance(given, New) else given for given in (key, value))
    if slides:
        return _sliding(running, query, k, v, attention_mask, scaling, softcap, sliding_window), None
    if not isinstance(key, New) and k.shape[2] != query.shape[2]:
        raise InputError("this cache holds the keys of all heads; let the policy make its own: pass no past_key_values, or an empty DynamicCache")
    layer = key.layer if isinstance(key, New) else HybridLayer(running.policy, number, defaultdict(Clock))  # without a cache: kept for this pass only
    start_B = layer.clocks[query.device].padding(attention_mask, query.shape[0], query.device, layer.length)
    computed = _decode if query.shape[2] == 1 and layer.length else _prefill
    order = running.orders.get(number)
    q, k, v = (query, k, v) if order is None else order.there(query, k, v)
    z_BHQE = computed(running, layer, q, k, v, start_B, scaling, softcap)
    z_BHQE = z_BHQE if order is None else order.back(z_BHQE)
    return z_BHQE.transpose(1, 2).contiguous(), None


def _prefill(running: Running, layer: HybridLayer, q: Tensor, k: Tensor, v: Tensor, start_B: Tensor, scaling: float, softcap: float | None) -> Tensor:
    stored = layer.store(k, v, start_B)
    batch, heads, rows, size = q.shape
    cut = layer.full * (heads // k.shape[1])
    z_BHQE = q.new_empty(batch, rows, heads, size).transpose(1, 2)
    if cut:
        _dense(running, layer, q[:, :cut], (stored.full_k, stored.full_v), scaling, softcap, z_BHQE[:, :cut])
    if cut < heads and layer.unpruned is not None:
        _dense(running, layer, q[:, cut:], layer.everything(), scaling, softcap, z_BHQE[:, cut:])
    elif cut < heads:
        _streaming(running, layer, stored, q[:, cut:], start_B, scaling, softcap, z_BHQE[:, cut:])
    return z_BHQE


def _dense(running: Running, layer: HybridLayer, q: Tensor, kv: tuple[Tensor, Tensor], scaling: float, softcap: float | None, out: Tensor) -> None:
    clock = layer.clocks[q.device]
    start_B = None if clock.seen is None else clock.start_B
    z, backend = dense(q, *kv, scaling, running.dense, start_B, softcap)
    out.copy_(z)
    running.dense_used.add(backend)


def _streaming(running: Running, layer: HybridLayer, stored: Stored, q: Tensor, start_B: Tensor, scaling: float, softcap: float | None, out: Tensor) -> None:
    """Several rows of the streaming heads."""
    policy = running.policy
    sink_at_B = torch.zeros_like(start_B) if stored.recent_from else start_B
    recent_first = stored.first + q.shape[2] - (stored.k.shape[2] - stored.recent_from)
    sizes = {"sinks": policy.sinks, "window": policy.window, "first": stored.first, "recent_from": stored.recent_from, "recent_first": recent_first}
    chunk = policy.semantics == "chunk"
    problem = SinkWindow(q, stored.k, stored.v, **sizes, start_B=start_B, sink_at_B=sink_at_B, scaling=scaling, softcap=softcap, chunk_window=chunk)
    z, lse = attend(problem, running.implementation, out=out)
    if stored.dropped is not None:
        pos_Q = torch.arange(stored.first, stored.first + q.shape[2], device=q.device)
        low_Q = torch.full_like(pos_Q, stored.first) if chunk else pos_Q
        number_BQ = (low_Q - policy.window + 1 - start_B[:, None] - policy.sinks).clamp(min=0)
        sums = [total[:, :, :1].expand_as(total) if chunk else total for total in stored.dropped]
        out.copy_(_compensated(z, lse, q, *sums, number_BQ, scaling, softcap))


def _decode(running: Running, layer: HybridLayer, q: Tensor, k: Tensor, v: Tensor, start_B: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """One row behind others."""
    position = layer.clocks[q.device].set(layer.length, q.device)
    layer.step(k, v, position, start_B)
    policy = running.policy
    buffers = layer.full_k, layer.full_v, layer.ring_k, layer.ring_v
    step = DecodeStep(q[:, :, 0], *buffers, policy.sinks, policy.window, position, start_B, scaling, softcap)
    z_BHE, lse_BH = decode(step, running.decoder)
    if layer.dropped is not None:
        cut = layer.full * step.group
        number_B1 = (position - policy.window + 1 - start_B[:, None] - policy.sinks).clamp(min=0)
        sums = [total[:, :, None] for total in layer.dropped]
        z = _compensated(z_BHE[:, cut:, None], lse_BH[:, cut:, None], q[:, cut:], *sums, number_B1, scaling, softcap)
        z_BHE = torch.cat([z_BHE[:, :cut], z[:, :, 0]], dim=1)
    return z_BHE[:, :, None]


def _compensated(z: Tensor, lse: Tensor, q: Tensor, sum_k: Tensor, sum_v: Tensor, number_BQ: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """The outputs [B, H, Q, E] with RazorAttention's token: the mean [B, S, Q, E] of the dropped keys and values, counted as often as there are."""
    count = number_BQ[:, None, :, None]
    mean_k, mean_v = (repeat(total / count.clamp(min=1), "b s q e -> b (s g) q e", g=q.shape[1] // total.shape[1]) for total in (sum_k, sum_v))
    score = (q.float() * mean_k).sum(-1) * scaling
    score = score if softcap is None else (score / softcap).tanh() * softcap
    return merged(z, lse, score + number_BQ.log()[:, None], mean_v)  # log 0 is −inf: none dropped, none added


def _sliding(running: Running, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None) -> Tensor:
    """A layer that slides by itself, as it is: windows without sinks over what its own cache gave."""
    if window is None:
        raise RuntimeError("a layer with a window did not say which")
    start_B = Clock().padding(mask, q.shape[0], q.device, 0)
    first = k.shape[2] - q.shape[2]
    problem = SinkWindow(q, k, v, 0, window, first, start_B, start_B, 0, 0, scaling, softcap)
    z, _ = attend(problem, running.implementation)
    return rearrange(z, "b h q e -> b q h e").contiguous()


AttentionInterface.register(HYBRID, _attention)
AttentionMaskInterface.register(HYBRID, flash_attention_mask)
