"""Is a step of decoding what prefilling all tokens would give its row? Every implementation against loops over single tokens, in float64."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_ops import mend_bfloat16, poisoned
from torch.nn.functional import scaled_dot_product_attention

from workbench.errors import InputError
from workbench.ops.attend import DECODE, decode
from workbench.ops.decoding import DecodeStep

DEVICE = "cuda" if torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] != "1" else "cpu"
BF16, FP32 = torch.bfloat16, torch.float32
TOLERANCE = 2e-5
S, W = 4, 9


def tokens(count, *, full=1, streaming=1, group=1, size=16, batch=1, dtype=FP32, start=None, seed=0):
    """All tokens' keys and values [B, G, T, E] and the last one's query."""
    noise = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, batch, full + streaming, count, size, generator=noise).to(dtype).to(DEVICE)
    q = torch.randn(batch, (full + streaming) * group, size, generator=noise).to(dtype).to(DEVICE)
    return q, k, v, torch.tensor(start or [0] * batch, dtype=torch.int32, device=DEVICE)


def step_of(seen, full, *, sinks=S, window=W, room=7, softcap=None):
    """The step of the last token, with the buffers that a cache would have filled; NaN where it has filled nothing."""
    q, k, v, start_B = seen
    batch, heads, count, size = k.shape

    def buffers(tensor):
        whole = torch.full((batch, count + room, full, size), torch.nan, dtype=tensor.dtype, device=DEVICE).transpose(1, 2)
        whole[:, :, :count] = tensor[:, :full]
        ring = torch.full((batch, heads - full, sinks + window, size), torch.nan, dtype=tensor.dtype, device=DEVICE)
        for b in range(batch):
            for token in range(count):
                number = token - int(start_B[b])
                if 0 <= number < sinks:
                    ring[b, :, number] = tensor[b, full:, token]
                elif number >= sinks:
                    ring[b, :, sinks + token % window] = tensor[b, full:, token]
        return whole, ring

    (full_k, ring_k), (full_v, ring_v) = buffers(k), buffers(v)
    position = torch.tensor(count - 1, device=DEVICE)
    return DecodeStep(q, full_k, full_v, ring_k, ring_v, sinks, window, position, start_B, 2 * size**-0.5, softcap)


def oracle(seen, full, sinks=S, window=W, softcap=None):
    """[B, H, E] and [B, H] in float64, from the tokens, not from the ring."""
    q, k, v, start_B = seen
    q, k, v = (tensor.double().cpu() for tensor in (q, k, v))
    batch, heads, count, size = k.shape
    z, lse = torch.zeros(q.shape, dtype=torch.float64), torch.zeros(q.shape[:2], dtype=torch.float64)
    for b in range(batch):
        for h in range(q.shape[1]):
            kv_head = h // (q.shape[1] // heads)
            index = [t for t in range(int(start_B[b]), count) if kv_head < full or t - int(start_B[b]) < sinks or t > count - 1 - window]
            score = k[b, kv_head, index] @ q[b, h] * 2 * size**-0.5
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            lse[b, h], z[b, h] = score.logsumexp(0), score.softmax(0) @ v[b, kv_head, index]
    return z, lse


def usual(seen, full, sinks=S, window=W):
    """PyTorch's fused attention in the same precision, under the mask."""
    q, k, v, start_B = seen
    token_T, start_B1 = torch.arange(k.shape[2], device=DEVICE), start_B[:, None]
    near_BT = (token_T >= start_B1) & ((token_T < start_B1 + sinks) | (token_T >= k.shape[2] - window))
    mask = torch.stack([token_T >= start_B1 if head < full else near_BT for head in range(k.shape[1])], dim=1)
    mask = mask.repeat_interleave(q.shape[1] // k.shape[1], dim=1)[:, :, None]
    return scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, scale=2 * q.shape[2] ** -0.5, enable_gqa=q.shape[1] > k.shape[1])[:, :, 0]


def misses(have, seen, full, **how):
    z, lse = oracle(seen, full, **how)
    limit = TOLERANCE
    if seen[0].dtype == BF16:
        limit = max(2 * float((usual(seen, full, **{name: how[name] for name in how if name != "softcap"}).double().cpu() - z).abs().max()), 2.0**-8)
    close = {
        "z": torch.allclose(have[0].double().cpu(), z, atol=limit, rtol=TOLERANCE),
        "lse": torch.allclose(have[1].double().cpu(), lse, atol=TOLERANCE, rtol=TOLERANCE),
    }
    return {name for name in close if not close[name]}


@pytest.fixture(params=list(DECODE))
def implementation(request, monkeypatch):
    """The name of one, with NaN where it is going to write."""
    if request.param == "triton":
        pytest.importorskip("triton")
        from workbench.ops import decoding_triton

        monkeypatch.setattr(decoding_triton, "empty", poisoned)
        monkeypatch.setattr(decoding_triton, "KEYS_PER_PART", 16)
        decoding_triton.scratch.cache_clear()
        if DEVICE == "cpu":
            mend_bfloat16(monkeypatch)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        yield request.param


LENGTHS = (1, S, S + 1, S + W - 1, S + W, S + W + 1, 127, 128, 129)
SHAPES = {
    "none full": ({"full": 0, "streaming": 2}, {}),
    "one of four full": ({"full": 1, "streaming": 3, "group": 2}, {}),
    "three of four full": ({"full": 3, "streaming": 1, "group": 2, "size": 64}, {}),
    "all full": ({"full": 2, "streaming": 0, "group": 4}, {}),
    "group of 7, heads of 80": ({"group": 7, "size": 80}, {}),
    "group of 8, heads of 96": ({"group": 8, "size": 96}, {}),
    "heads of 128": ({"group": 2, "size": 128}, {"window": 20}),
    "heads of 256": ({"size": 256}, {}),
    "padding": ({"batch": 3, "start": [0, 30, 46], "group": 2}, {}),
    "padding beyond the window": ({"batch": 3, "start": [3, 30, 36]}, {"sinks": 6}),
    "cap": ({"group": 3, "batch": 2}, {"softcap": 2.0}),
    "no sinks": ({}, {"sinks": 0}),
    "window of 1": ({}, {"window": 1}),
    "window beyond the context": ({}, {"window": 400}),
    "sinks beyond the context": ({"batch": 2, "start": [0, 40]}, {"sinks": 60}),
    "bf16": ({"dtype": BF16, "group": 4, "size": 64}, {"window": 17}),
    "bf16, padding": ({"dtype": BF16, "batch": 2, "start": [9, 0], "group": 3, "size": 80}, {}),
}


@pytest.mark.parametrize("count", LENGTHS)
def test_lengths_around_the_ring(implementation, count):
    seen = tokens(count, full=1, streaming=1, group=2)
    assert not misses(decode(step_of(seen, 1), implementation), seen, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_definition(implementation, name):
    shape, how = SHAPES[name]
    seen, full = tokens(47, **shape), shape.get("full", 1)
    assert not misses(decode(step_of(seen, full, **how), implementation), seen, full, **how)


def test_many_splits_and_other_positions_with_the_same_buffers(implementation):
    """What is computed follows the position on the device."""
    seen = tokens(300, full=1, streaming=1, group=2)
    whole = step_of(seen, 1, window=400)
    for count in (300, 1, 17, 129):
        step = replace(whole, position=torch.tensor(count - 1, device=DEVICE))
        q, k, v, start_B = seen
        assert not misses(decode(step, implementation), (q, k[:, :, :count], v[:, :, :count], start_B), 1, window=400)


FAULTS = {
    "window + 1": {"window": W + 1},
    "window - 1": {"window": W - 1},
    "sinks + 1": {"sinks": S + 1},
    "sinks - 1": {"sinks": S - 1},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches(implementation, fault):
    seen = tokens(40)
    assert misses(decode(step_of(seen, 1, **FAULTS[fault]), implementation), seen, 1) == {"z", "lse"}


@pytest.mark.parametrize("off", [-1, 1])
def test_the_comparison_catches_a_wrong_position_and_padding(implementation, off):
    seen = tokens(40, batch=1, start=[5])
    step = step_of(seen, 1, room=0)
    if off < 0:
        assert misses(decode(replace(step, position=step.position - 1), implementation), seen, 1)
    assert misses(decode(replace(step, start_B=step.start_B + off), implementation), seen, 1)


def test_unknown_names_and_what_does_not_apply(monkeypatch):
    step = step_of(tokens(5), 1)
    with pytest.raises(InputError, match="unknown implementation 'flash'; there are: reference, torch, triton"):
        decode(step, "flash")
    monkeypatch.setattr("workbench.ops.attend.missing_for", lambda device: "it needs CUDA")
    with pytest.raises(InputError, match="implementation triton: it needs CUDA; torch runs on any device"):
        decode(step, "triton")
