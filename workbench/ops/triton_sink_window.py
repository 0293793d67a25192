"""What do streaming heads compute? A flash-attention forward in Triton over the sinks and a window, with the group of query heads in one tile.

1. A program takes some consecutive rows of all query heads of one KV head, so that a key is loaded once for the group and few keys beside a
   row's window are visited. Any group fits: rows of the tile that are left over are not used.
2. One loop runs over the tiles of the sinks and then over those of the window, which begin at the first key that any row sees.
   So short a loop is not worth splitting into parts; tiles that all rows see whole pass over the mask, which is one unsigned comparison.
3. A key's position less a row's is compared with the row's width, which is endless for sinks; a key that nobody may see has a position behind all rows.
"""

from typing import no_type_check

import triton
import triton.language as tl

from workbench.ops.triton_rows import capped

BEHIND = tl.constexpr(2**30)
NEVER = tl.constexpr(-1e30)
LN2 = tl.constexpr(0.6931471805599453)


@no_type_check
@triton.jit(do_not_specialize=["n_rows", "n_keys", "first", "recent_from", "recent_first"])
def sink_window_kernel(
    Q, K, V, Start, SinkAt, Out, Lse,
    n_groups, n_rows, n_keys, first, recent_from, recent_first, sinks, window, c, inner, softcap,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, stride_ob, stride_oh, stride_or,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Blocks of rows [cdiv(Q, BM // GROUP), B·G]. Scores times `c` are in bits; `Lse` [B, H, Q] is in nats."""
    TOKENS: tl.constexpr = BM // GROUP
    batch = (tl.program_id(1) // n_groups).to(tl.int64)
    kv_head = (tl.program_id(1) % n_groups).to(tl.int64)
    start = tl.load(Start + batch).to(tl.int32)
    sink_at = tl.load(SinkAt + batch).to(tl.int32)
    lane = tl.arange(0, BM)
    row = tl.program_id(0) * TOKENS + lane // GROUP
    head = kv_head * GROUP + lane % GROUP
    live = (lane < TOKENS * GROUP) & (row < n_rows)
    top = first + tl.program_id(0) * TOKENS
    bottom = first + tl.minimum((tl.program_id(0) + 1) * TOKENS, n_rows) - 1
    i = first + row
    if CHUNK:
        low = first - window + 1
        whole_from = low
        width = i - low + 1
    else:
        low = top - window + 1
        whole_from = bottom - window + 1
        width = tl.zeros([BM], tl.int32) + window
    seen_sinks = tl.minimum(tl.minimum(sinks, bottom - start + 1), n_keys - sink_at)
    sink_tiles = (tl.maximum(seen_sinks, 0) + BN - 1) // BN
    low = tl.maximum(tl.maximum(low, start + sinks), recent_first)
    tiles = sink_tiles + (tl.maximum(bottom - low + 1, 0) + BN - 1) // BN
    d = tl.arange(0, DP)
    col = tl.arange(0, BN)
    q_at = Q + batch * stride_qb + head[:, None] * stride_qh + row.to(tl.int64)[:, None] * stride_qr + d[None, :]
    q = tl.load(q_at, mask=live[:, None] & (d < D)[None, :], other=0.0)
    K += batch * stride_kb + kv_head * stride_kh
    V += batch * stride_vb + kv_head * stride_vh
    m = tl.full([BM], NEVER / 2, tl.float32)  # above that of a tile which a row sees nothing of
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    for tile in range(tiles):
        among = tile < sink_tiles
        number = tl.where(among, tile, tile - sink_tiles) * BN
        position = tl.where(among, start, low) + number
        index = tl.where(among, sink_at + number, low - recent_first + recent_from + number)
        length = tl.where(among, seen_sinks, bottom - low + 1)
        there = number + col < length
        k_at = K + tl.cast(index, tl.int64) * stride_kn + (d[:, None] + col[None, :] * stride_kn)
        v_at = V + tl.cast(index, tl.int64) * stride_vn + (col[:, None] * stride_vn + d[None, :])
        k = tl.load(k_at, mask=there[None, :] if D == DP else there[None, :] & (d < D)[:, None], other=0.0)
        s = capped(tl.dot(q, k, input_precision=PRECISION), inner, softcap, SOFTCAP)
        if (position + BN - 1 > top) | (number + BN > length) | (not among and position < whole_from):
            j = tl.where(there, position + col, BEHIND)
            distance = (i[:, None] - j[None, :]).to(tl.uint32, bitcast=True)
            s = tl.where(distance < tl.where(among, BEHIND, width).to(tl.uint32, bitcast=True)[:, None], s, NEVER)
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s * c - (m_new * c)[:, None])
        alpha = tl.exp2((m - m_new) * c)
        l = l * alpha + tl.sum(p, 1)
        v = tl.load(v_at, mask=there[:, None] if D == DP else there[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new
    seen = l > 0  # a row of padding sees nothing
    heads = n_groups * GROUP
    tl.store(Lse + (batch * heads + head) * n_rows + row, tl.where(seen, m * c + tl.log2(l), -float("inf")) * LN2, mask=live)
    z = tl.where(seen[:, None], acc / l[:, None], 0.0)
    z_at = Out + batch * stride_ob + head[:, None] * stride_oh + row.to(tl.int64)[:, None] * stride_or + d[None, :]
    tl.store(z_at, z.to(Out.dtype.element_ty), mask=live[:, None] & (d < D)[None, :])
