"""Is attention to sinks and a window what its definition says? Every implementation against loops over single keys, in float64."""

import math
import os
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from einops import rearrange
from test_ops import mend_bfloat16, poisoned
from torch.nn.functional import scaled_dot_product_attention

from workbench.errors import InputError
from workbench.ops import dense, sink_window_torch
from workbench.ops.attend import PREFILL, attend
from workbench.ops.sink_window import SinkWindow

DEVICE = "cuda" if torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] != "1" else "cpu"
BF16, FP32 = torch.bfloat16, torch.float32
TOLERANCE = 2e-5


@cache
def case(name):
    """A prompt of the tables below; the same one for all implementations, whose oracle runs once."""
    arguments = (LENGTHS | SHAPES | {name: arguments for name, (arguments, _) in CHUNKS.items()})[name]
    return prompt(**arguments)


def vectors(noise, batch, length, heads, size, dtype):
    """As models lay them out, with NaN in the memory around them."""
    around = torch.full((batch, length + 1, heads, size + 16), torch.nan, dtype=dtype)
    around[:, :length, :, :size] = torch.randn(batch, length, heads, size, generator=noise)
    return around.to(DEVICE)[:, :length, :, :size].transpose(1, 2)


def prompt(length, *, heads=(1, 1), size=16, batch=1, dtype=FP32, start=None, sinks=4, window=9, seed=0, **more):
    """All rows of a prompt; `heads` are KV heads and their group."""
    noise = torch.Generator().manual_seed(seed)
    q, k, v = (vectors(noise, batch, length, count, size, dtype) for count in (heads[0] * heads[1], heads[0], heads[0]))
    start_B = torch.tensor(start or [0] * batch, dtype=torch.int32, device=DEVICE)
    return SinkWindow(q, k, v, sinks, window, 0, start_B, start_B, 0, 0, 2 * size**-0.5, **more)


def chunk(whole, first, stop):
    """Rows of a prompt as a cache hands them over: the sinks that it holds, the last window − 1 keys before the chunk, the chunk."""
    batch, sinks = len(whole.start_B), whole.sinks
    low = max(0, first - whole.window + 1)
    index_BS = (whole.start_B[:, None].cpu() + torch.arange(sinks)).clamp(max=whole.k_BGKE.shape[2] - 1)

    def kept(tensor):
        held = torch.stack([tensor[b, :, index_BS[b].to(DEVICE)] for b in range(batch)])
        there_BS = index_BS < first
        ahead = torch.stack([torch.where(there_BS[b].to(DEVICE)[None, :, None], held[b], torch.nan) for b in range(batch)])
        return torch.cat([ahead, tensor[:, :, low:stop]], dim=2)

    started = all(start + sinks <= first for start in whole.start_B.tolist())
    if not started:  # the sinks are not complete yet: the cache still has everything
        return replace(whole, q_BHQE=whole.q_BHQE[:, :, first:stop], k_BGKE=whole.k_BGKE[:, :, :stop], v_BGKE=whole.v_BGKE[:, :, :stop], first=first)
    zero_B = torch.zeros_like(whole.start_B)
    parts = {"q_BHQE": whole.q_BHQE[:, :, first:stop], "k_BGKE": kept(whole.k_BGKE), "v_BGKE": kept(whole.v_BGKE)}
    return replace(whole, **parts, first=first, sink_at_B=zero_B, recent_from=sinks, recent_first=low)


@cache
def oracle(p):
    """[B, H, Q, E] and [B, H, Q] in float64: one row and one key at a time, by token rather than by mask."""
    batch, heads, rows, size = p.q_BHQE.shape
    q, k, v = (tensor.double().cpu() for tensor in (p.q_BHQE, p.k_BGKE, p.v_BGKE))
    z, lse = torch.zeros(batch, heads, rows, size, dtype=torch.float64), torch.full((batch, heads, rows), -torch.inf, dtype=torch.float64)
    for b in range(batch):
        start, sink_at = int(p.start_B[b]), int(p.sink_at_B[b])
        for row in range(rows):
            position = p.first + row
            oldest = (p.first if p.chunk_window else position) - (p.window - 1)
            index = []
            for token in range(start, position + 1):
                if token - start < p.sinks:
                    index.append(sink_at + token - start)
                elif token >= oldest:
                    index.append(p.recent_from + token - p.recent_first)
            if not index:
                continue
            for h in range(heads):
                key, value = (tensor[b, h // (heads // k.shape[1]), index] for tensor in (k, v))
                score = (key @ q[b, h, row]) * p.scaling
                if p.softcap is not None:
                    score = p.softcap * torch.tanh(score / p.softcap)
                lse[b, h, row] = score.logsumexp(0)
                z[b, h, row] = score.softmax(0) @ value
    return z, lse


def usual(p):
    """What PyTorch's fused attention makes of the same inputs in the same precision, under the mask."""
    visible_BQK = p.visible()
    k, v = (torch.where(visible_BQK.any(1)[:, None, :, None], tensor, 0) for tensor in (p.k_BGKE, p.v_BGKE))
    mask = visible_BQK[:, None] | ~visible_BQK.any(-1)[:, None, :, None]
    return scaled_dot_product_attention(p.q_BHQE, k, v, attn_mask=mask, scale=p.scaling, enable_gqa=p.group > 1)


def misses(have, p):
    """What differs from the oracle: in float32 by more than the tolerance, in bfloat16 by more than twice what is usual."""
    z, lse = oracle(p)
    limit = TOLERANCE
    if p.q_BHQE.dtype == BF16:
        seen = (lse > -torch.inf)[..., None]
        limit = max(2 * float(((usual(p).double().cpu() - z) * seen).abs().max()), 2.0**-8)
    wrong = {}
    if not torch.allclose(have[0].double().cpu(), z, atol=limit, rtol=TOLERANCE):
        wrong["z"] = float((have[0].double().cpu() - z).abs().max())
    if not torch.allclose(have[1].double().cpu(), lse, atol=TOLERANCE, rtol=TOLERANCE):
        wrong["lse"] = float((have[1].double().cpu() - lse).nan_to_num(posinf=9, neginf=9).abs().max())
    return wrong


def masked_flash(q_BQHE, k_BKGE, v_BKGE, causal, scaling, window):
    """What the flash kernel computes, for machines without one."""
    group, rows, keys = q_BQHE.shape[2] // k_BKGE.shape[2], q_BQHE.shape[1], k_BKGE.shape[1]
    k, v = (rearrange(tensor, "b k g e -> b g k e").repeat_interleave(group, dim=1) for tensor in (k_BKGE, v_BKGE))
    score = rearrange(q_BQHE, "b q h e -> b h q e") @ k.mT * scaling
    distance_QK = (torch.arange(rows)[:, None] + keys - rows - torch.arange(keys)).to(score.device)
    seen_QK = (distance_QK >= 0) & (distance_QK < (window or keys)) if causal else torch.ones_like(distance_QK, dtype=torch.bool)
    assert window is None or causal
    score = score.masked_fill(~seen_QK, -torch.inf)
    return rearrange(score.softmax(-1) @ v, "b h q e -> b q h e"), score.logsumexp(-1)


@pytest.fixture(params=[name for name in PREFILL if name != "reference"])
def implementation(request, monkeypatch):
    """The name of one, with NaN where it is going to write."""
    name = request.param
    if name == "merged" and DEVICE == "cpu":
        monkeypatch.setattr(sink_window_torch, "flash_forward", masked_flash)
        monkeypatch.setattr(sink_window_torch, "_unfit", lambda q_BHQE, softcap: "where scores are capped" if softcap else "")
    if name == "triton":
        pytest.importorskip("triton")
        from workbench.ops import sink_window_triton

        monkeypatch.setattr(sink_window_triton, "empty", poisoned)
        if DEVICE == "cpu":
            mend_bfloat16(monkeypatch)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        yield name


def skip_what_it_refuses(name, p):
    if name == "merged" and p.softcap is not None:
        pytest.skip("flash attention, which this way merges, has no soft cap; the package refuses it")
    if name == "merged" and p.q_BHQE.dtype == BF16 and DEVICE == "cpu":
        pytest.skip("on a CPU `masked_flash` stands in for the kernel of CUDA, and rounds bfloat16 differently")


def run(p, name):
    out = poisoned(*p.q_BHQE.transpose(1, 2).shape[:2], p.q_BHQE.shape[1] + 3, p.q_BHQE.shape[3], dtype=p.q_BHQE.dtype, device=DEVICE)
    view = out[:, :, 1 : 1 + p.q_BHQE.shape[1]].transpose(1, 2)
    z, lse = attend(p, name, view)
    assert z.data_ptr() == view.data_ptr()
    assert out[:, :, 0].isnan().all()
    assert out[:, :, 1 + p.q_BHQE.shape[1] :].isnan().all()
    return z, lse


S, W = 4, 9
LENGTHS = {str(n): {"length": n} for n in (1, S, S + 1, S + W - 1, S + W, S + W + 1, 127, 128, 129)}
SHAPES = {
    "group of 2": {"length": 40, "heads": (2, 2), "size": 64},
    "group of 4, heads of 80": {"length": 33, "heads": (1, 4), "size": 80},
    "group of 7": {"length": 30, "heads": (2, 7)},
    "group of 8, heads of 96": {"length": 30, "heads": (1, 8), "size": 96},
    "heads of 128": {"length": 40, "size": 128, "window": 20},
    "heads of 256": {"length": 25, "size": 256},
    "padding": {"length": 60, "batch": 3, "start": [0, 13, 59], "heads": (1, 2)},
    "cap": {"length": 40, "heads": (1, 3), "softcap": 2.0, "batch": 2, "start": [5, 0]},
    "no sinks": {"length": 40, "sinks": 0},
    "many sinks": {"length": 90, "sinks": 70, "window": 3},
    "window of 1": {"length": 40, "window": 1},
    "window beyond the context": {"length": 40, "window": 400},
    "right": {"length": 40, "batch": 2, "start": [0, 3], "heads": (1, 2)},
    "sinks beyond the context": {"length": 20, "sinks": 50},
    "bf16": {"length": 70, "heads": (2, 2), "size": 64, "dtype": BF16, "window": 30},
    "bf16, padding, cap": {"length": 50, "heads": (1, 3), "size": 80, "dtype": BF16, "batch": 2, "start": [20, 3], "softcap": 4.0},
}


@pytest.mark.parametrize("name", [*LENGTHS, *SHAPES])
def test_it_is_the_definition(implementation, name):
    p = case(name)
    skip_what_it_refuses(implementation, p)
    assert not misses(run(p, implementation), p)


@pytest.mark.parametrize("name", [*LENGTHS, *SHAPES])
def test_the_reference_is_the_definition(name):
    p = case(name)
    assert not misses(attend(p, "reference"), p)


CHUNKS = {
    "from the middle": ({"length": 60, "heads": (1, 2)}, (0, 20, 41, 60)),
    "single rows": ({"length": 18, "heads": (2, 1)}, (0, 1, 2, S, S + 1, S + W - 1, S + W, S + W + 1, 18)),
    "chunks, padding": ({"length": 50, "batch": 3, "start": [0, 7, 16]}, (0, 10, 20, 21, 50)),
    "chunks, bf16": ({"length": 70, "dtype": BF16, "size": 64, "window": 17}, (0, 30, 70)),
    "few sinks": ({"length": 40, "sinks": 1, "window": 2}, (0, 2, 3, 40)),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_are_one_shot(implementation, name):
    p, cuts = case(name), CHUNKS[name][1]
    skip_what_it_refuses(implementation, p)
    parts = [attend(chunk(p, first, stop), implementation) for first, stop in pairwise(cuts)]
    assert not misses((torch.cat([z for z, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)), p)


@pytest.mark.parametrize("first", [0, 3, 20])
def test_the_window_of_a_chunk(implementation, first):
    p = prompt(45, heads=(1, 2), batch=2, start=[0, 6], chunk_window=True)
    part = chunk(p, first, 45)
    assert not misses(attend(part, implementation), part)
    assert misses(attend(replace(part, chunk_window=False), implementation), part)


FAULTS = {
    "window + 1": {"window": W + 1},
    "window - 1": {"window": W - 1},
    "sinks + 1": {"sinks": S + 1},
    "sinks - 1": {"sinks": S - 1},
    "row + 1": {"recent_first": 1},
    "padding + 1": {"start_B": torch.tensor([1, 4], dtype=torch.int32, device=DEVICE)},
    "sink + 1": {"sink_at_B": torch.tensor([1, 4], dtype=torch.int32, device=DEVICE)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches(implementation, fault):
    right = case("right")
    wrong = replace(right, **FAULTS[fault])
    if fault == "row + 1":
        wrong = replace(wrong, recent_first=0, recent_from=1, k_BGKE=right.k_BGKE[:, :, [0, *range(40)]], v_BGKE=right.v_BGKE[:, :, [0, *range(39), 39]])
        wrong = replace(wrong, recent_from=0)
    assert misses(attend(wrong, implementation), right).keys() == {"z", "lse"}


def test_keys_of_all_heads_are_read_where_they_lie(implementation):
    p = prompt(30, heads=(4, 2))
    part = replace(p, q_BHQE=p.q_BHQE[:, 4:], k_BGKE=p.k_BGKE[:, 2:], v_BGKE=p.v_BGKE[:, 2:])
    assert not misses(attend(part, implementation), part)


def test_long_integers(implementation):
    p = prompt(30, batch=2, start=[4, 0])
    assert not misses(attend(replace(p, start_B=p.start_B.long(), sink_at_B=p.sink_at_B.long()), implementation), p)


@pytest.mark.parametrize("elements", [1, 2**12])
def test_blocks_of_any_size(monkeypatch, elements):
    monkeypatch.setitem(sink_window_torch.ELEMENTS, DEVICE, elements)
    p = prompt(70, heads=(1, 2), batch=2, start=[0, 40])
    assert not misses(attend(p, "torch"), p)
    part = chunk(p, 50, 70)
    assert not misses(attend(part, "torch"), part)


def test_in_double_precision():
    p = prompt(40)
    p = replace(p, **{name: getattr(p, name).double() for name in ("q_BHQE", "k_BGKE", "v_BGKE")})
    torch.testing.assert_close(attend(p, "torch")[1].cpu(), oracle(p)[1], atol=1e-12, rtol=1e-12)


def test_unknown_names_and_what_does_not_apply(monkeypatch):
    p = prompt(5)
    with pytest.raises(InputError, match="unknown implementation 'cuda'; there are: flex, merged, reference, torch, triton"):
        attend(p, "cuda")
    if DEVICE == "cpu":
        with pytest.raises(InputError, match="on cpu; use torch"):
            attend(p, "merged")
    monkeypatch.setattr("workbench.ops.attend.missing_for", lambda device: "it needs CUDA")
    with pytest.raises(InputError, match="implementation triton: it needs CUDA; torch runs on any device"):
        attend(p, "triton")


def blocks(mask, heads):
    """[B, H, U, V] which blocks a mask visits, and which of those whole."""
    shape = -(-mask.seq_lengths[0] // 128), -(-mask.seq_lengths[1] // 128)
    visited = []
    for count_BHU, index_BHUV in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        batch = len(count_BHU)
        times_BHUV = torch.zeros(batch, count_BHU.shape[1], *shape, dtype=torch.int64)
        for place in np.ndindex(*count_BHU.shape):
            for n in range(count_BHU[place]):
                times_BHUV[*place, index_BHUV[*place, n]] += 1
        visited.append(times_BHUV.expand(-1, heads, -1, -1))
    assert (visited[0] + visited[1]).max() <= 1
    return visited


FLEX = {
    "one block": ({"length": 100}, None, 0),
    "many blocks": ({"length": 1000, "window": 300, "sinks": 64}, None, 0),
    "whole blocks": ({"length": 1024, "window": 513, "sinks": 200}, None, 0),
    "padding": ({"length": 700, "window": 256, "sinks": 64, "batch": 3, "start": [0, 100, 650]}, None, 0),
    "chunk": ({"length": 900, "window": 300, "sinks": 64, "batch": 2, "start": [0, 100]}, 500, 0),
    "chunk of which all is seen": ({"length": 900, "window": 100, "sinks": 4, "chunk_window": True}, 333, 0),
    "some full": ({"length": 700, "window": 256, "sinks": 64, "heads": (3, 2)}, None, 2),
    "some full, padding": ({"length": 500, "window": 130, "sinks": 129, "heads": (2, 1), "batch": 2, "start": [129, 0]}, None, 1),
    "all full": ({"length": 300, "heads": (2, 1)}, None, 2),
}


@pytest.mark.parametrize("name", FLEX)
def test_the_block_mask_visits_what_is_seen_and_little_else(name):
    from workbench.ops import flex

    arguments, first, full = FLEX[name]
    p = prompt(**arguments)
    p = p if first is None else chunk(p, first, p.q_BHQE.shape[2])
    visible_BQK = p.visible().cpu()
    causal_BQK = torch.stack([torch.ones_like(visible_BQK[0]).tril(visible_BQK.shape[2] - visible_BQK.shape[1])] * len(visible_BQK))
    causal_BQK &= torch.arange(visible_BQK.shape[2]) >= p.start_B.cpu()[:, None, None]
    heads = p.q_BHQE.shape[1]
    visible_BHQK = torch.stack([causal_BQK if head < full * p.group else visible_BQK for head in range(heads)], dim=1)
    by_block = [-(-size // 128) for size in visible_BHQK.shape[2:]]
    some, every = torch.zeros(2, len(visible_BQK), heads, *by_block, dtype=torch.bool)
    for u, v in np.ndindex(*by_block):
        tile = visible_BHQK[:, :, u * 128 : u * 128 + 128, v * 128 : v * 128 + 128]
        some[:, :, u, v], every[:, :, u, v] = tile.any(-1).any(-1), tile.all(-1).all(-1)
    part, whole = (tensor.bool() for tensor in blocks(flex.block_mask(p, full), heads))
    assert not (some & ~(part | whole)).any()
    assert not (whole & ~every).any()
    assert ((part | whole) & ~some).sum() <= 0.1 * some.sum()
    assert (every & ~whole).sum() <= 3 * heads * len(visible_BQK) * by_block[0]


def test_full_heads_beside_streaming_ones_in_flex():
    from workbench.ops import flex

    p = prompt(150, heads=(2, 2), batch=2, start=[0, 20])
    z, lse = flex.attend(p, full=1)
    part = {name: getattr(p, name)[:, 1:] for name in ("k_BGKE", "v_BGKE")}
    assert not misses((z[:, 2:], lse[:, 2:]), replace(p, q_BHQE=p.q_BHQE[:, 2:], **part))
    part = {name: getattr(p, name)[:, :1] for name in ("k_BGKE", "v_BGKE")}
    assert not misses((z[:, :2], lse[:, :2]), replace(p, q_BHQE=p.q_BHQE[:, :2], **part, window=1000))
    with pytest.raises(InputError, match="full heads need all keys"):
        flex.block_mask(chunk(p, 100, 150), 1)


DENSE = {
    "square": {"rows": 30},
    "chunk": {"rows": 11},
    "one row": {"rows": 1},
    "chunk behind a single key": {"rows": 29},
    "two rows behind a single key": {"rows": 2, "start": [27, 27, 28]},
    "padding": {"rows": 30, "start": [0, 7, 7]},
    "padding, chunk": {"rows": 12, "start": [0, 25, 29]},
    "cap": {"rows": 30, "softcap": 3.0},
    "cap, padding, chunk": {"rows": 12, "softcap": 3.0, "start": [20, 0, 3]},
}


@pytest.mark.parametrize("backend", ["auto", "flash", "math", "statistics"])
@pytest.mark.parametrize("name", DENSE)
def test_dense_attention_is_a_window_over_everything(backend, name):
    more = dict(DENSE[name])
    rows, start, softcap = more["rows"], more.get("start"), more.get("softcap")
    p = prompt(30, heads=(2, 3), size=32, batch=3, start=start, sinks=0, window=1000, softcap=softcap, dtype=FP32 if DEVICE == "cpu" else BF16)
    p = replace(p, q_BHQE=p.q_BHQE[:, :, 30 - rows :], first=30 - rows)
    if softcap is not None and backend in ("flash", "math"):
        with pytest.raises(InputError, match=f"on {backend} cannot cap scores; use statistics"):
            dense.dense(p.q_BHQE, p.k_BGKE, p.v_BGKE, p.scaling, backend, p.start_B, softcap)
        return
    z, ran = dense.dense(p.q_BHQE, p.k_BGKE, p.v_BGKE, p.scaling, backend, p.start_B if start else None, softcap)
    assert ran == backend if backend != "auto" else ran in dense.BACKENDS
    assert not misses((z, attend(p, "reference")[1]), p)


def test_dense_attention_never_falls_back():
    p = prompt(6, sinks=0)
    with pytest.raises(InputError, match="unknown backend 'fa4'; there are: auto, cudnn, efficient, flash, math, statistics"):
        dense.dense(p.q_BHQE, p.k_BGKE, p.v_BGKE, 1.0, "fa4")
    with pytest.raises(InputError, match=r"dense attention on cudnn is not possible (on cpu|in float32); use auto"):
        dense.dense(p.q_BHQE, p.k_BGKE, p.v_BGKE, 1.0, "cudnn")
    assert math.isclose(float(dense.dense(p.q_BHQE, p.k_BGKE, p.v_BGKE, p.scaling)[0][0, 0, 0, 0]), float(p.v_BGKE[0, 0, 0, 0]), rel_tol=1e-2)
