"""How are exact statistics computed on a GPU? By Triton kernels: one flash-attention pass, and what is known from its log-sum-exp.

1. `rows_kernel`: the output, the log-sum-exp, the entropy and the strongest key of each row, in one pass.
2. `ranges_kernel`: masses of ranges of keys, from the tiles of each range alone.
3. `pairs_kernel`: probabilities of single keys, a dot product each.
4. `columns_kernel`: what is per key or per block of the map; the one sweep over all pairs that is made a second time, and only if it is asked for.
"""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import reduce
from torch import Tensor
from torch.nn.functional import pad
from triton import knobs

from workbench.errors import InputError
from workbench.ops import singles
from workbench.ops.inputs import Attention, Name, Pairs, Statistics, Wanted
from workbench.ops.support import HEAD_SIZES
from workbench.ops.triton_given_lse import columns_kernel, pairs_kernel, ranges_kernel
from workbench.ops.triton_rows import rows_kernel
from workbench.ops.tuning import Tile, choose

LOG2E = 1.4426950408889634
MAP_BLOCK = 16
"""Blocks of a map are multiples of this: the smallest tile of the tensor cores."""

ROW_TILES = {
    64: (Tile(128, 64, 8, 3, 128), Tile(64, 128, 4, 3), Tile(128, 64, 4, 3), Tile(64, 64, 4, 3), Tile(128, 128, 8, 2, 128)),
    128: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(128, 64, 4, 3)),
    256: (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)),
}
COLUMN_TILES = {
    64: (Tile(64, 128, 4, 3), Tile(128, 64, 4, 3), Tile(64, 128, 4, 2), Tile(32, 128, 4, 3), Tile(64, 64, 4, 3), Tile(128, 128, 4, 3)),
    128: (Tile(64, 128, 4, 3), Tile(128, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 128, 4, 2), Tile(32, 128, 4, 3), Tile(64, 128, 8, 3)),
    256: (Tile(32, 64, 4, 2), Tile(64, 64, 8, 2), Tile(64, 128, 8, 2)),
}
"""Tiles to choose among, by the largest head size that they serve."""

SINGLE_PRECISION = (Tile(32, 32, 4, 2),)
"""Float32 inputs take twice the shared memory, and are multiplied exactly (IEEE) without tensor cores."""

RANGE_TILE, PAIR_TILE = Tile(128, 64, 8, 2), Tile(32, 1, 4, 1)

empty = torch.empty
"""Where kernels write; tests put NaN there first."""


def statistics(attention: Attention, wanted: Wanted) -> Statistics:
    """Everything wanted, for the rows of `attention`. Raises `InputError` for a head size or a map that the kernels do not do."""
    _check(attention, wanted)
    attention = _contiguous(attention)
    with torch.cuda.device(attention.q_BHRE.device) if attention.q_BHRE.is_cuda else nullcontext():  # Triton takes the current one
        rows, bits_BHR = _rows(attention, wanted)
        masses = _masses(attention, bits_BHR, wanted)
        masses |= singles.masses(attention, bits_BHR, wanted, probabilities)
        received, maps = _columns(attention, bits_BHR, wanted)
    return replace(rows, masses=masses, received=received, maps=maps)


def probabilities(attention: Attention, bits_BHR: Tensor, pairs: Pairs) -> Tensor:
    """The probability [H, P] of single keys, given the log-sum-exp in bits."""
    heads, size = attention.q_BHRE.shape[1], pairs.row_P.shape[0]
    prob_HP = empty(heads, size, device=bits_BHR.device)
    switches = {"SOFTCAP": attention.softcap is not None, "BP": PAIR_TILE.rows, **_head_size(attention)}
    arguments = (attention.q_BHRE, attention.k_BGKE, bits_BHR, pairs.batch_P, pairs.row_P, pairs.key_P, prob_HP)
    sizes = (heads, attention.group, size, bits_BHR.shape[2])
    _launch(
        pairs_kernel,
        (-(-size // PAIR_TILE.rows), heads // attention.group),
        PAIR_TILE,
        *arguments,
        *sizes,
        *_scales(attention),
        *_strides(attention),
        **switches,
    )
    return prob_HP


def _launch(kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **switches: Any) -> None:
    kernel[grid](*arguments, **switches, **tile.launch())


def _check(attention: Attention, wanted: Wanted) -> None:
    size = attention.q_BHRE.shape[-1]
    if size not in HEAD_SIZES:
        raise InputError(
            f"heads of size {size} are not supported by the Triton kernels ({HEAD_SIZES.start} to {HEAD_SIZES.stop - 1}); use --implementation torch"
        )
    if wrong := sorted(block for block, _ in wanted.maps if block % MAP_BLOCK):
        raise InputError(f"the Triton kernels make maps of blocks that are multiples of {MAP_BLOCK}, not {wrong[0]}; use --implementation torch")


def _contiguous(attention: Attention) -> Attention:
    """The same with every head's vectors, and the positions, in one piece, which they are as models hand them over."""
    tensors = {name: getattr(attention, name) for name in ("q_BHRE", "k_BGKE", "v_BGKE")}
    if all(tensor.stride(-1) == 1 for tensor in tensors.values()) and attention.pos_BR.is_contiguous() and attention.pos_BR.dtype == torch.int32:
        return attention
    return replace(attention, **{name: tensor.contiguous() for name, tensor in tensors.items()}, pos_BR=attention.pos_BR.int().contiguous())


def _scales(attention: Attention) -> tuple[float, float, float]:
    """What makes scores bits; and for capped scores the factor inside of tanh, and the cap."""
    if attention.softcap is None:
        return attention.scaling * LOG2E, 0.0, 0.0
    return LOG2E, attention.scaling / attention.softcap, attention.softcap


def _strides(attention: Attention) -> tuple[int, ...]:
    return *attention.q_BHRE.stride()[:3], *attention.k_BGKE.stride()[:3]


def _head_size(attention: Attention) -> dict[str, int]:
    size = attention.q_BHRE.shape[-1]
    return {"D": size, "DP": max(16, 1 << (size - 1).bit_length())}


def _switches(attention: Attention) -> dict[str, Any]:
    precision = "ieee" if attention.q_BHRE.dtype == torch.float32 else "tf32"
    return {"SOFTCAP": attention.softcap is not None, "PRECISION": precision, **_head_size(attention)}


def _tile(kind: str, candidates: dict[int, tuple[Tile, ...]], attention: Attention, switches: dict[str, Any], run: Any) -> Tile:
    """The tile for a kernel with these switches, found once for all layers that share a memo."""

    def found() -> Tile:
        batch, heads, n_rows, size = attention.q_BHRE.shape
        tiles = SINGLE_PRECISION if attention.q_BHRE.dtype == torch.float32 else next(tiles for limit, tiles in candidates.items() if size <= limit)
        sizes = [n.bit_length() for n in (batch * heads, n_rows, attention.keys)]
        problem = (kind, *(f"{name}={value}" for name, value in switches.items()), attention.q_BHRE.dtype, attention.group, *sizes)
        return choose(problem, tiles, batch * heads * n_rows * attention.keys, run)

    return attention.once((kind, *switches.values()), found)


def _rows(attention: Attention, wanted: Wanted) -> tuple[Statistics, Tensor]:
    """The first pass, and its log-sum-exp in bits."""
    batch, heads, n_rows, _ = attention.q_BHRE.shape
    q, v = attention.q_BHRE, attention.v_BGKE
    bits_BHR, lse_BHR = empty(2, batch, heads, n_rows, device=q.device)
    entropy_BHR = empty(batch, heads, n_rows, device=q.device) if wanted.entropy else None
    key_BHR = torch.empty(batch, heads, n_rows, dtype=torch.int32, device=q.device) if wanted.peak else None
    prob_BHR = empty(batch, heads, n_rows, device=q.device) if wanted.peak else None
    z_BHRE = empty(batch, n_rows, heads, q.shape[3], dtype=q.dtype, device=q.device).transpose(1, 2) if wanted.output else None
    places = [bits_BHR if part is None else part for part in (z_BHRE, lse_BHR, bits_BHR, entropy_BHR, key_BHR, prob_BHR)]
    places[4] = attention.pos_BR if key_BHR is None else key_BHR
    strides = (*_strides(attention), *v.stride()[:3], *((0, 0, 0) if z_BHRE is None else z_BHRE.stride()[:3]))
    sizes = (heads, attention.group, n_rows, attention.keys, attention.window or 0)
    switches = {"WINDOW": attention.window is not None, "PADDED": attention.padded, "OUTPUT": wanted.output, "ENTROPY": wanted.entropy, "PEAK": wanted.peak}
    switches |= {"ASSEMBLY": not knobs.runtime.interpret, **_switches(attention)}

    def run(tile: Tile) -> None:
        arguments = (q, attention.k_BGKE, v, attention.pos_BR, attention.start_B, *places, *sizes, *_scales(attention), *strides)
        _launch(rows_kernel, (-(-n_rows // tile.rows), batch * heads), tile, *arguments, **switches, BM=tile.rows, BN=tile.keys)

    run(_tile("rows", ROW_TILES, attention, switches, run))
    return Statistics(lse_BHR, z_BHRE, entropy_BHR, key_BHR, prob_BHR), bits_BHR


def _masses(attention: Attention, bits_BHR: Tensor, wanted: Wanted) -> dict[Name, Tensor]:
    if not wanted.ranges:
        return {}
    batch, heads, n_rows, size = attention.q_BHRE.shape

    def edges() -> tuple[Tensor, Tensor, object]:
        """Side by side; the ranges are kept as well, so that no other tensor takes their identity."""
        low, high = ([keys[side].expand(batch, n_rows) for keys in wanted.ranges.values()] for side in (0, 1))
        return torch.stack(low).int().contiguous(), torch.stack(high).int().contiguous(), wanted.ranges

    low_SBR, high_SBR, _ = attention.once(("ranges", *(id(edge) for keys in wanted.ranges.values() for edge in keys)), edges)
    mass_SBHR = empty(len(low_SBR), batch, heads, n_rows, device=bits_BHR.device)
    tile = SINGLE_PRECISION[0] if attention.q_BHRE.dtype == torch.float32 or size > 128 else RANGE_TILE
    arguments = (attention.q_BHRE, attention.k_BGKE, bits_BHR, low_SBR, high_SBR, mass_SBHR)
    numbers = (heads, attention.group, batch, n_rows, attention.keys, *_scales(attention), *_strides(attention))
    grid = -(-n_rows // tile.rows), batch * heads, len(low_SBR)
    _launch(ranges_kernel, grid, tile, *arguments, *numbers, **_switches(attention), BM=tile.rows, BN=tile.keys)
    return dict(zip(wanted.ranges, mass_SBHR.unbind(0), strict=True))


def _columns(attention: Attention, bits_BHR: Tensor, wanted: Wanted) -> tuple[dict[str, Tensor], dict[tuple[int, str], Tensor]]:
    """The second sweep: once for what keys receive and the first map, and once more for each further map."""
    received: dict[str, Tensor] = {}
    maps: dict[tuple[int, str], Tensor] = {}
    for number, pooled in enumerate(sorted(wanted.maps) or [None] * bool(wanted.received)):
        part, made = _sweep(attention, bits_BHR, wanted.received if number == 0 else frozenset(), pooled)
        received |= part
        maps |= {} if pooled is None or made is None else {pooled: made}
    return received, maps


def _sweep(attention: Attention, bits_BHR: Tensor, reducers: frozenset[str], pooled: tuple[int, str] | None) -> tuple[dict[str, Tensor], Tensor | None]:
    batch, heads, n_rows, size = attention.q_BHRE.shape
    q, k = attention.q_BHRE, attention.k_BGKE
    sums = {name: empty(batch, heads, attention.keys, device=q.device) for name in sorted(reducers)}
    switches = {"WINDOW": attention.window is not None, "SUM": "sum" in sums, "MAX": "max" in sums, "MAP": 0 if pooled is None else 1 + (pooled[1] == "sum")}
    switches |= _switches(attention)

    def run(tile: Tile, map_BHVU: Tensor = bits_BHR) -> None:
        edges = attention.once(("edges", tile), partial(_edges, attention, tile))
        places = (bits_BHR, attention.pos_BR, attention.start_B, edges, sums.get("sum", bits_BHR), sums.get("max", bits_BHR), map_BHVU)
        sizes = (heads, attention.group, n_rows, attention.keys, attention.window or 0, -(-n_rows // tile.rows))
        grid = -(-attention.keys // tile.keys), batch * heads
        numbers = (*sizes, *_scales(attention), *_strides(attention))
        _launch(columns_kernel, grid, tile, q, k, *places, *numbers, **switches, BM=tile.rows, BN=tile.keys)

    if pooled is None:
        run(_tile("columns", COLUMN_TILES, attention, switches, run))
        return sums, None
    side = min(32 if q.dtype == torch.float32 or size > 128 else 64, pooled[0] & -pooled[0])
    tile = Tile(side, side, 4, 2)
    map_BHVU = torch.zeros(batch, heads, -(-attention.keys // side), -(-n_rows // side), device=q.device)
    run(tile, map_BHVU)
    return sums, _pool(map_BHVU.transpose(2, 3), pooled, side, attention.span[0])


def _pool(map_BHUV: Tensor, pooled: tuple[int, str], side: int, first: int) -> Tensor:
    """The numbers of tiles, joined to those of blocks; the rows begin at position `first`, a multiple of the tile."""
    if first % side:
        raise InputError(f"chunks of a map begin at multiples of {side} tokens with the Triton kernels, not at {first}; take such a --chunk")
    size, above = pooled[0] // side, first // side
    padded = pad(map_BHUV, (0, -map_BHUV.shape[3] % size, above, -(map_BHUV.shape[2] + above) % size))
    return reduce(padded, "b h (u r) (v k) -> b h u v", pooled[1], r=size, k=size)


def _edges(attention: Attention, tile: Tile) -> Tensor:
    """For each tile of keys [B, 4, tiles]: the blocks of rows where it begins to be seen, to be seen whole, ceases to be seen whole, to be seen."""
    n_rows, keys, pos_BR = attention.q_BHRE.shape[2], attention.keys, attention.pos_BR
    low_T = torch.arange(0, keys, tile.keys, device=pos_BR.device, dtype=pos_BR.dtype)
    high_T = (low_T + tile.keys - 1).clamp(max=keys - 1)

    def at_least(position_T: Tensor) -> Tensor:
        """The first row at or behind each position, [B, tiles]."""
        return torch.searchsorted(pos_BR, position_T.expand(len(pos_BR), -1).contiguous())

    seen = at_least(low_T) // tile.rows
    whole = -(-at_least(high_T) // tile.rows)
    if attention.window is None:  # the last block may be a part of one
        whole_end, end = torch.full_like(seen, n_rows // tile.rows), torch.full_like(seen, -(-n_rows // tile.rows))
    else:
        whole_end = torch.clamp(at_least(low_T + attention.window) // tile.rows, max=n_rows // tile.rows)
        end = torch.maximum(-(-at_least(high_T + attention.window) // tile.rows), seen)
    masked = (low_T + tile.keys > keys)[None] | (low_T[None] < attention.start_B[:, None])
    whole = torch.where(masked, end, torch.minimum(torch.maximum(whole, seen), end))
    whole_end = torch.where(masked, end, torch.minimum(torch.maximum(whole_end, whole), end))
    return torch.stack([seen, whole, whole_end, end], dim=1).int().contiguous()
