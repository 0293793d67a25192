"""What else can be told once each row's log-sum-exp L is known? Sums of p = exp2(s − L), with no running maximum; all in bits.

`columns_kernel`: what each key receives (sum and maximum over the rows), and the maximum or sum over square blocks. It is a second
sweep over all pairs. `ranges_kernel`: the probability on a range of keys, visiting the tiles of that range alone. `pairs_kernel`: the
probability of one key for one row, a dot product each.
"""

from typing import no_type_check

import triton
import triton.language as tl

from workbench.ops.triton_rows import NOWHERE, capped


@no_type_check
@triton.jit(do_not_specialize=["n_heads", "group", "n_rows", "n_keys", "window", "n_blocks"])
def columns_kernel(
    Q, K, Lse, Pos, Start, Tiles, Sum, Max, Map,
    n_heads, group, n_rows, n_keys, window, n_blocks, c, inner, softcap,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kn,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SUM: tl.constexpr, MAX: tl.constexpr, MAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tiles of keys [cdiv(K, BN), B·H].

    `Tiles` [B, 4, tiles]: the blocks of rows where a tile begins to be seen, begins to be seen by all rows of a block, ceases to be, and ceases to be
    seen at all. `MAP` is 0, 1 (maximum) or 2 (sum): `Map` then takes one number per tile, whose rows and keys divide the blocks of the map.
    """
    tile = tl.program_id(0)
    batch = (tl.program_id(1) // n_heads).to(tl.int64)
    head = (tl.program_id(1) % n_heads).to(tl.int64)
    key = tile * BN + tl.arange(0, BN)
    d = tl.arange(0, DP)
    k_at = K + batch * stride_kb + head // group * stride_kh + key.to(tl.int64)[:, None] * stride_kn + d[None, :]
    k = tl.load(k_at, mask=(key < n_keys)[:, None] & (d < D)[None, :], other=0.0)
    start = tl.load(Start + batch)
    Q += batch * stride_qb + head * stride_qh
    Pos += batch * n_rows
    Lse += (batch * n_heads + head) * n_rows
    Map += ((batch * n_heads + head) * tl.num_programs(0) + tile) * n_blocks
    edges = Tiles + batch * 4 * tl.num_programs(0) + tile
    total = tl.zeros([BN], tl.float32)
    most = tl.zeros([BN], tl.float32)
    for part in tl.static_range(3):  # seen by some rows of a block, by all, by some
        first = tl.load(edges + part * tl.num_programs(0))
        last = tl.load(edges + (part + 1) * tl.num_programs(0))
        for block in range(first, last):
            row = block * BM + tl.arange(0, BM)
            q_at = Q + tl.cast(block, tl.int64) * (BM * stride_qr) + (d[:, None] + tl.arange(0, BM)[None, :] * stride_qr)
            if part == 1 and DP == D:
                q = tl.load(q_at)
            elif part == 1:
                q = tl.load(q_at, mask=(d < D)[:, None], other=0.0)
            else:
                q = tl.load(q_at, mask=(d < D)[:, None] & (row < n_rows)[None, :], other=0.0)
            lse = tl.load(Lse + row) if part == 1 else tl.load(Lse + row, mask=row < n_rows, other=float("inf"))
            s = capped(tl.dot(k, q, input_precision=PRECISION), inner, softcap, SOFTCAP)
            p = tl.exp2(s * c - lse[None, :])
            if part != 1:
                i = tl.load(Pos + row, mask=row < n_rows, other=-1)
                visible = (key[:, None] <= i[None, :]) & (key >= start)[:, None]
                if WINDOW:
                    visible = visible & (key[:, None] > i[None, :] - window)
                p = tl.where(visible, p, 0.0)
            if SUM:
                total += tl.sum(p, 1)
            if MAX:
                most = tl.maximum(most, tl.max(p, 1))
            if MAP == 1:
                tl.store(Map + block, tl.max(tl.max(p, 1), 0))
            if MAP == 2:
                tl.store(Map + block, tl.sum(tl.sum(p, 1), 0))
    out = (batch * n_heads + head) * n_keys + key
    if SUM:
        tl.store(Sum + out, total, mask=key < n_keys)
    if MAX:
        tl.store(Max + out, most, mask=key < n_keys)


@no_type_check
@triton.jit(do_not_specialize=["n_heads", "group", "n_batch", "n_rows", "n_keys"])
def ranges_kernel(
    Q, K, Lse, Low, High, Mass,
    n_heads, group, n_batch, n_rows, n_keys, c, inner, softcap,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kn,
    SOFTCAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Blocks of rows [cdiv(R, BM), B·H, ranges]: the mass on keys [Low, High) of each row, [ranges, B, H, R]; ranges hold visible keys only."""
    block = tl.program_id(0)
    batch = (tl.program_id(1) // n_heads).to(tl.int64)
    head = (tl.program_id(1) % n_heads).to(tl.int64)
    which = tl.program_id(2).to(tl.int64)
    row = block * BM + tl.arange(0, BM)
    live = row < n_rows
    low = tl.load(Low + (which * n_batch + batch) * n_rows + row, mask=live, other=0)
    high = tl.load(High + (which * n_batch + batch) * n_rows + row, mask=live, other=0)
    some = high > low
    d = tl.arange(0, DP)
    q = tl.load(Q + batch * stride_qb + head * stride_qh + row.to(tl.int64)[:, None] * stride_qr + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
    out = (batch * n_heads + head) * n_rows + row
    lse = tl.load(Lse + out, mask=live, other=float("inf"))
    K += batch * stride_kb + head // group * stride_kh
    mass = tl.zeros([BM], tl.float32)
    for n in range(tl.min(tl.where(some, low, NOWHERE), 0) // BN * BN, tl.max(tl.where(some, high, 0), 0), BN):
        key = n + tl.arange(0, BN)
        k = tl.load(K + d[:, None] + key.to(tl.int64)[None, :] * stride_kn, mask=(d < D)[:, None] & (key < n_keys)[None, :], other=0.0)
        s = capped(tl.dot(q, k, input_precision=PRECISION), inner, softcap, SOFTCAP)
        p = tl.exp2(s * c - lse[:, None])
        mass += tl.sum(tl.where((key[None, :] >= low[:, None]) & (key[None, :] < high[:, None]), p, 0.0), 1)
    tl.store(Mass + which * n_batch * n_heads * n_rows + out, mass, mask=live)


@no_type_check
@triton.jit(do_not_specialize=["n_heads", "group", "n_pairs", "n_rows"])
def pairs_kernel(
    Q, K, Lse, Batch, Row, Key, Prob,
    n_heads, group, n_pairs, n_rows, c, inner, softcap,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kn,
    SOFTCAP: tl.constexpr, BP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Blocks of pairs [cdiv(P, BP), G]: the probability [H, P] of key `Key` for row `Row` of prompt `Batch`."""
    pair = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    kv_head = tl.program_id(1).to(tl.int64)
    live = pair < n_pairs
    batch = tl.load(Batch + pair, mask=live, other=0).to(tl.int64)
    row = tl.load(Row + pair, mask=live, other=0).to(tl.int64)
    key = tl.load(Key + pair, mask=live, other=0).to(tl.int64)
    d = tl.arange(0, DP)
    there = live[:, None] & (d < D)[None, :]
    k = tl.load(K + (batch * stride_kb + kv_head * stride_kh + key * stride_kn)[:, None] + d[None, :], mask=there, other=0.0).to(tl.float32)
    for member in range(group):
        head = kv_head * group + member
        q = tl.load(Q + (batch * stride_qb + head * stride_qh + row * stride_qr)[:, None] + d[None, :], mask=there, other=0.0).to(tl.float32)
        bits = tl.load(Lse + (batch * n_heads + head) * n_rows + row, mask=live, other=float("inf"))
        s = capped(tl.sum(q * k, 1), inner, softcap, SOFTCAP)
        tl.store(Prob + head * n_pairs + pair, tl.exp2(s * c - bits), mask=live)
