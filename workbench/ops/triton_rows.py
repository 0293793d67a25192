"""What does each query row attend to? A flash-attention forward in Triton that keeps row statistics while it computes the output.

Per row, in one pass over the keys: the output, the log-sum-exp, the entropy and the strongest key. Nothing of size T² is stored.

1. A program takes a block of query rows of one head and runs over the tiles of keys that they may see; only tiles at the edges are masked.
2. t = log2 p comes from one multiply-add, p = exp2(t), and Σ p·t is the negative entropy in bits. When the running maximum m grows by Δ,
   all sums so far are rescaled by 2^-Δ, and the entropy's also take −Δ times the probability so far.
3. For the strongest key, the last bits of each score carry its column, so that one maximum finds both. m may then be off in those bits, which
   no result depends on: m only keeps exp2 in range. Of keys whose scores agree in 17 bits, any may be given.
"""

from typing import no_type_check

import triton
import triton.language as tl

NOWHERE = tl.constexpr(2**30)
NEVER = tl.constexpr(-1e30)
LN2 = tl.constexpr(0.6931471805599453)


@no_type_check
@triton.jit
def capped(s, inner, softcap, SOFTCAP: tl.constexpr):
    """softcap * tanh(inner * s), where the model caps its scores; `inner` is scale / cap."""
    if SOFTCAP:
        return softcap * (2 * tl.sigmoid(2 * inner * s) - 1)
    return s


@no_type_check
@triton.jit
def _step(
    n, q, m, l, e, acc, peak, K, V, i, low, n_keys, stride_kn, stride_vn, c, inner, softcap,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, OUTPUT: tl.constexpr, ENTROPY: tl.constexpr, PEAK: tl.constexpr, ASSEMBLY: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys: the state of all rows after it."""
    col = tl.arange(0, BN)
    d = tl.arange(0, DP)
    k_at = K + tl.cast(n, tl.int64) * stride_kn + (d[:, None] + col[None, :] * stride_kn)
    v_at = V + tl.cast(n, tl.int64) * stride_vn + (col[:, None] * stride_vn + d[None, :])
    if MASKED:
        k = tl.load(k_at, mask=(d < D)[:, None] & (n + col < n_keys)[None, :], other=0.0)
    elif DP != D:
        k = tl.load(k_at, mask=(d < D)[:, None], other=0.0)
    else:
        k = tl.load(k_at)
    s = capped(tl.dot(q, k, input_precision=PRECISION), inner, softcap, SOFTCAP)
    if MASKED:
        s = tl.where((n + col[None, :] <= i[:, None]) & (n + col[None, :] >= low[:, None]), s, NEVER)
    if PEAK:
        place = (BN - 1 - col)[None, :]
        if ASSEMBLY:  # one instruction instead of the two that come out otherwise
            each = [s.to(tl.int32, bitcast=True), tl.full([BM, BN], -BN, tl.int32), place.broadcast_to(BM, BN)]
            tagged = tl.inline_asm_elementwise("lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", each, dtype=tl.int32, is_pure=True, pack=1)
        else:
            tagged = (s.to(tl.int32, bitcast=True) & -BN) | place
        top = tl.max(tagged.to(tl.float32, bitcast=True), 1)
        where = n + BN - 1 - (top.to(tl.int32, bitcast=True) & (BN - 1))
        peak = tl.where(top > m, where, peak)
    else:
        top = tl.max(s, 1)
    m_new = tl.maximum(m, top)
    t = s * c - (m_new * c)[:, None]
    p = tl.exp2(t)
    shift = (m - m_new) * c
    alpha = tl.exp2(shift)
    if ENTROPY:
        e = alpha * (e + l * shift) + tl.sum(p * t, 1)
    l = l * alpha + tl.sum(p, 1)
    if OUTPUT:
        if MASKED:
            v = tl.load(v_at, mask=(n + col < n_keys)[:, None] & (d < D)[None, :], other=0.0)
        elif DP != D:
            v = tl.load(v_at, mask=(d < D)[None, :], other=0.0)
        else:
            v = tl.load(v_at)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return m_new, l, e, acc, peak


@no_type_check
@triton.jit(do_not_specialize=["n_heads", "group", "n_rows", "n_keys", "window"])
def rows_kernel(
    Q, K, V, Pos, Start, Out, Lse, Bits, Entropy, Peak, Prob,
    n_heads, group, n_rows, n_keys, window, c, inner, softcap,
    stride_qb, stride_qh, stride_qr, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn, stride_ob, stride_oh, stride_or,
    WINDOW: tl.constexpr, PADDED: tl.constexpr, SOFTCAP: tl.constexpr, OUTPUT: tl.constexpr, ENTROPY: tl.constexpr, PEAK: tl.constexpr,
    ASSEMBLY: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Blocks of rows [cdiv(R, BM), B·H]. `Pos` ascends; scores times `c` are in bits. `Lse` and `Entropy` are in nats, `Bits` is the former in bits."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows first
    batch = (tl.program_id(1) // n_heads).to(tl.int64)
    head = (tl.program_id(1) % n_heads).to(tl.int64)
    row = block * BM + tl.arange(0, BM)
    live = row < n_rows
    i = tl.load(Pos + batch * n_rows + row, mask=live, other=-1)
    low = tl.zeros([BM], tl.int32)
    if PADDED:
        low += tl.load(Start + batch)
    if WINDOW:
        low = tl.maximum(low, i - window + 1)
    end = tl.max(i, 0) + 1
    begin = tl.min(tl.where(live, low, NOWHERE), 0) // BN * BN
    whole_from = (tl.max(tl.where(live, low, 0), 0) + BN - 1) // BN * BN
    whole_to = (tl.min(tl.where(live, i, NOWHERE), 0) + 1) // BN * BN
    d = tl.arange(0, DP)
    q = tl.load(Q + batch * stride_qb + head * stride_qh + row.to(tl.int64)[:, None] * stride_qr + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
    K += batch * stride_kb + head // group * stride_kh
    V += batch * stride_vb + head // group * stride_vh
    m = tl.full([BM], NEVER / 2, tl.float32)  # above that of a tile which a row sees nothing of
    l = tl.zeros([BM], tl.float32)
    e = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    peak = tl.zeros([BM], tl.int32)
    if WINDOW or PADDED:
        for n in range(begin, tl.minimum(whole_from, end), BN):
            m, l, e, acc, peak = _step(
                n, q, m, l, e, acc, peak, K, V, i, low, n_keys, stride_kn, stride_vn, c, inner, softcap,
                True, SOFTCAP, OUTPUT, ENTROPY, PEAK, ASSEMBLY, BM, BN, D, DP, PRECISION,
            )  # fmt: skip
        begin = tl.maximum(begin, whole_from)
    for n in range(begin, whole_to, BN):
        m, l, e, acc, peak = _step(
            n, q, m, l, e, acc, peak, K, V, i, low, n_keys, stride_kn, stride_vn, c, inner, softcap,
            False, SOFTCAP, OUTPUT, ENTROPY, PEAK, ASSEMBLY, BM, BN, D, DP, PRECISION,
        )  # fmt: skip
    for n in range(tl.maximum(begin, whole_to), end, BN):
        m, l, e, acc, peak = _step(
            n, q, m, l, e, acc, peak, K, V, i, low, n_keys, stride_kn, stride_vn, c, inner, softcap,
            True, SOFTCAP, OUTPUT, ENTROPY, PEAK, ASSEMBLY, BM, BN, D, DP, PRECISION,
        )  # fmt: skip
    seen = i >= low  # a row of padding sees nothing
    at = (batch * n_heads + head) * n_rows + row
    bits = tl.where(seen, m * c + tl.log2(l), float("inf"))
    tl.store(Bits + at, bits, mask=live)
    tl.store(Lse + at, bits * LN2, mask=live)
    if ENTROPY:
        tl.store(Entropy + at, tl.where(seen, (tl.log2(l) - e / l) * LN2, 0.0), mask=live)
    if OUTPUT:
        z = tl.where(seen[:, None], acc / l[:, None], 0.0)
        z_at = Out + batch * stride_ob + head * stride_oh + row.to(tl.int64)[:, None] * stride_or + d[None, :]
        tl.store(z_at, z.to(Out.dtype.element_ty), mask=live[:, None] & (d < D)[None, :])
    if PEAK:  # m is off in its last bits; the score is made once more
        peak = tl.where(seen, peak, 0)
        k = tl.load(K + peak.to(tl.int64)[:, None] * stride_kn + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
        s = capped(tl.sum(q.to(tl.float32) * k.to(tl.float32), 1), inner, softcap, SOFTCAP)
        tl.store(Peak + at, peak, mask=live)
        tl.store(Prob + at, tl.exp2(s * c - bits), mask=live)
