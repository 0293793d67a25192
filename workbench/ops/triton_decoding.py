"""How is one token decoded when heads keep different numbers of keys? All heads in one launch, the long ones in parts, and a second to join the parts.

1. Programs are numbered: those of the full heads first (each KV head of each prompt in `PARTS` parts of equal length), then those of the rings.
   Which work a program has follows from its number; how much there is of it from the position on the device, so that a captured graph stays right.
2. A part that is empty writes a log-sum-exp of −∞. A head in one piece writes its output at once.
3. The group of query heads is a tile of at least 16 rows, for the tensor cores: keys are read once for the group, and reading is all that takes time.
"""

from typing import no_type_check

import triton
import triton.language as tl

from workbench.ops.triton_rows import capped

NEVER = tl.constexpr(-1e30)
LN2 = tl.constexpr(0.6931471805599453)


@no_type_check
@triton.jit(do_not_specialize=["ring_parts", "sinks", "window"])
def decode_kernel(
    Q, FullK, FullV, RingK, RingV, Position, Start, Out, Lse, PartOut, PartBits,
    full_heads, ring_heads, parts, ring_parts, batches, sinks, window, c, inner, softcap,
    stride_qb, stride_qh, stride_fkb, stride_fkh, stride_fkn, stride_fvb, stride_fvh, stride_fvn,
    stride_rkb, stride_rkh, stride_rkn, stride_rvb, stride_rvh, stride_rvn,
    GROUP: tl.constexpr, SOFTCAP: tl.constexpr, FULL_WHOLE: tl.constexpr, RING_WHOLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs [B·F·parts + B·S·ring_parts]. `Out` [B, H, E], `Lse` [B, H] in nats; of parts, outputs [P, GROUP, DP] and log-sum-exp [P, GROUP] in bits."""
    program = tl.program_id(0)
    full_items = batches * full_heads * parts
    position = tl.load(Position).to(tl.int32)
    ring = program >= full_items
    if ring:
        item = program - full_items
        owner = item // ring_parts
        part = item % ring_parts
        pieces = ring_parts
        batch = owner // ring_heads
        kv_head = owner % ring_heads
        head = full_heads + kv_head
    else:
        owner = program // parts
        part = program % parts
        pieces = parts
        batch = owner // full_heads
        kv_head = owner % full_heads
        head = kv_head
    start = tl.load(Start + batch).to(tl.int32)
    batch = batch.to(tl.int64)
    kv_head = kv_head.to(tl.int64)
    if ring:
        K = RingK + batch * stride_rkb + kv_head * stride_rkh
        V = RingV + batch * stride_rvb + kv_head * stride_rvh
        stride_kn = stride_rkn
        stride_vn = stride_rvn
        begin = 0
        end = sinks + window
    else:
        K = FullK + batch * stride_fkb + kv_head * stride_fkh
        V = FullV + batch * stride_fvb + kv_head * stride_fvh
        stride_kn = stride_fkn
        stride_vn = stride_fvn
        begin = start
        end = position + 1
    size = ((end - begin + pieces - 1) // pieces + 15) // 16 * 16
    begin += part * size
    end = tl.minimum(begin + size, end)
    line = tl.arange(0, BM)
    d = tl.arange(0, DP)
    col = tl.arange(0, BN)
    live = (line < GROUP)[:, None] & (d < D)[None, :]
    row = head * GROUP + line
    q = tl.load(Q + batch * stride_qb + row[:, None] * stride_qh + d[None, :], mask=live, other=0.0)
    m = tl.full([BM], NEVER / 2, tl.float32)  # above that of a tile which holds nothing to be seen
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    for n in range(begin, end, BN):
        slot = n + col
        held = position - (position - slot + sinks + window) % window  # the newest position that falls on a slot; the dividend is not negative
        there = tl.where(slot < sinks, start + slot <= position, held >= start + sinks)
        there = (slot < end) & (there | (not ring))
        k_at = K + tl.cast(n, tl.int64) * stride_kn + (d[:, None] + col[None, :] * stride_kn)
        v_at = V + tl.cast(n, tl.int64) * stride_vn + (col[:, None] * stride_vn + d[None, :])
        k = tl.load(k_at, mask=there[None, :] if D == DP else there[None, :] & (d < D)[:, None], other=0.0)
        s = capped(tl.dot(q, k, input_precision=PRECISION), inner, softcap, SOFTCAP)
        s = tl.where(there[None, :], s, NEVER)
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s * c - (m_new * c)[:, None])
        alpha = tl.exp2((m - m_new) * c)
        l = l * alpha + tl.sum(p, 1)
        v = tl.load(v_at, mask=there[:, None] if D == DP else there[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new
    bits = tl.where(l > 0, m * c + tl.log2(l), -float("inf"))
    z = tl.where((l > 0)[:, None], acc / l[:, None], 0.0)
    if tl.where(ring, RING_WHOLE, FULL_WHOLE):
        at = batch * (full_heads + ring_heads) * GROUP + row
        tl.store(Out + at[:, None] * D + d[None, :], z.to(Out.dtype.element_ty), mask=live)
        tl.store(Lse + at, bits * LN2, mask=line < GROUP)
    else:
        tl.store(PartOut + (program * GROUP + line)[:, None] * DP + d[None, :], z, mask=live)
        tl.store(PartBits + program * GROUP + line, bits, mask=line < GROUP)


@no_type_check
@triton.jit(do_not_specialize=["first_item", "first_head", "kv_heads", "heads"])
def join_kernel(
    PartOut, PartBits, Out, Lse, first_item, first_head, kv_heads, heads, parts,
    GROUP: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The parts of each query head of some KV heads, joined: programs [B · KV heads · GROUP, DP // BD]."""
    owner = tl.program_id(0) // GROUP
    line = tl.program_id(0) % GROUP
    row = (owner // kv_heads) * heads * GROUP + (first_head + owner % kv_heads) * GROUP + line
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    m = tl.full([BP], NEVER, tl.float32)
    l = tl.zeros([BP], tl.float32)
    acc = tl.zeros([BP, BD], tl.float32)
    for n in range(0, parts, BP):
        part = n + tl.arange(0, BP)
        at = (first_item + owner * parts + part) * GROUP + line
        bits = tl.load(PartBits + at, mask=part < parts, other=-float("inf"))
        z = tl.load(PartOut + at[:, None] * DP + d[None, :], mask=(part < parts)[:, None] & (d < D)[None, :], other=0.0)
        m_new = tl.maximum(m, bits)
        alpha = tl.exp2(m - m_new)
        share = tl.exp2(bits - m_new)
        l = l * alpha + share
        acc = acc * alpha[:, None] + z * share[:, None]
        m = m_new
    top = tl.max(m, 0)
    alpha = tl.exp2(m - top)
    total = tl.sum(l * alpha, 0)
    z = tl.sum(acc * alpha[:, None], 0) / total
    tl.store(Out + row.to(tl.int64) * D + d, tl.where(total > 0, z, 0.0).to(Out.dtype.element_ty), mask=d < D)
    if tl.program_id(1) == 0:
        tl.store(Lse + row, tl.where(total > 0, top + tl.log2(total), -float("inf")) * LN2)
