"""How do many variants of a pass run at once? As rows that join at the first layer where something is replaced, with the positions from the first changed.

A variant replaces the outputs of some heads. Below its first replaced layer it equals the base pass, which is kept; so are keys and values in front of the
first changed position. Variants are rows of one batch.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.circuits.anatomy import Anatomy, Trace

TOKENS = {"cpu": 2**13, "cuda": 2**18}
"""How many tokens are in hand at once, over all variants and prompts; more do not run faster."""


def sweep(
    anatomy: Anatomy,
    base: Trace,
    other: Sequence[Float[Tensor, "*S B H T E"] | None],
    replaced_SLH: Bool[np.ndarray, "S L H"],
    *,
    first: int = 0,
    frozen: bool = False,
    last_only: bool = False,
) -> Iterator[tuple[int, list[int], Tensor | None]]:
    """Run variants of the base pass in which the replaced heads put out `other`, layer by layer.

    Yields in front of every block, and behind the last: the layer, which variants have joined, and their residual streams [s, B, Q, D] at positions
    `first` to the end (None before any has). Heads that are not replaced follow the changed stream, or keep the outputs of the base pass (`frozen`);
    MLPs always follow. With `last_only` the last block is computed, and yielded behind it, for the last position alone. `other` must equal the base in front
    of `first`; a layer's may differ by variant [S, B, H, T, E].
    """
    begins = _begins(replaced_SLH)
    order = sorted(range(len(begins)), key=lambda variant: begins[variant])
    joined: list[int] = []
    x_SBQD: Tensor | None = None
    for layer in range(anatomy.shape.n_layers):
        yield layer, joined, x_SBQD
        cut = anatomy.length - first - 1 if last_only and layer == anatomy.shape.n_layers - 1 else 0
        here = base.x[layer][:, first + cut :]
        parts: list[tuple[Tensor, Tensor]] = []
        if x_SBQD is not None:
            mask_SH = replaced_SLH[joined, layer]
            theirs = _of(other[layer], joined, first) if mask_SH.any() else None
            parts.append((x_SBQD[:, :, cut:], _attention(anatomy, base, theirs, layer, x_SBQD, mask_SH, first, cut, frozen)))
        new = [variant for variant in order if begins[variant] == layer]
        if new:
            z_SBHQE = _replaced(base.z[layer][:, :, first + cut :], _of(other[layer], new, first + cut), replaced_SLH[new, layer])
            written = anatomy.write(layer, z_SBHQE.flatten(0, 1)).unflatten(0, z_SBHQE.shape[:2])
            parts.append((here.expand_as(written), written))
            joined = [*joined, *new]
        if parts:
            x, written = (torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*parts, strict=True))
            x_SBQD = anatomy.finish(layer, x.flatten(0, 1), written.flatten(0, 1)).unflatten(0, x.shape[:2])
    yield anatomy.shape.n_layers, joined, x_SBQD


def outcomes(
    anatomy: Anatomy,
    base: Trace,
    other: Sequence[Float[Tensor, "*S B H T E"] | None],
    replaced_SLH: Bool[np.ndarray, "S L H"],
    measure: Callable[[Float[Tensor, "SB V"], int], Float[Tensor, "SB ..."]],
    *,
    first: int = 0,
    frozen: bool = False,
) -> Float[np.ndarray, "S B ..."]:
    """A measure of the last position's logits in each variant, prompt by prompt; it may be several numbers.

    `measure` is told how many variants of the prompts there are, outermost.
    """
    batch, length = base.x[0].shape[:2]
    size = max(1, TOKENS[anatomy.model.device.type] // (batch * (length - first)))
    begins = _begins(replaced_SLH)
    order = sorted(range(len(begins)), key=lambda variant: begins[variant])
    unchanged_B = _numbers(measure(base.logits_BV, 1))
    out_SB = np.empty((len(order), *unchanged_B.shape), np.float32)
    for begin in range(0, len(order), size):
        some = order[begin : begin + size]
        final: tuple[list[int], Tensor | None] = [], None
        theirs = [part if part is None or part.dim() == 4 else part[some] for part in other]
        for _, joined, x_SBQD in sweep(anatomy, base, theirs, replaced_SLH[some], first=first, frozen=frozen, last_only=True):
            final = joined, x_SBQD
        joined, x_SBQD = final
        out_SB[some] = unchanged_B
        if x_SBQD is not None:
            changed = measure(anatomy.logits(x_SBQD[:, :, -1].flatten(0, 1)), len(joined))
            out_SB[[some[place] for place in joined]] = _numbers(changed).reshape(-1, *unchanged_B.shape)
    return out_SB


def _begins(replaced_SLH: Bool[np.ndarray, "S L H"]) -> list[int]:
    """The first layer in which each variant replaces something; the number of layers if it replaces nothing."""
    touched_SL = np.any(replaced_SLH, axis=2)
    return [int(layer) for layer in np.where(np.any(touched_SL, axis=1), np.argmax(touched_SL, axis=1), touched_SL.shape[1])]


def _numbers(value: Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy()


def _of(other: Tensor | None, variants: list[int], first: int) -> Tensor:
    """What some variants put out instead, from a position on: the same for all, or each its own."""
    assert other is not None
    return other[..., first:, :] if other.dim() == 4 else other[variants][..., first:, :]


def _replaced(z_BHQE: Tensor, other: Tensor, replaced_SH: Bool[np.ndarray, "S H"]) -> Float[Tensor, "S B H Q E"]:
    mask = torch.from_numpy(replaced_SH).to(z_BHQE.device)[:, None, :, None, None]
    return torch.where(mask, other, z_BHQE)


def _attention(
    anatomy: Anatomy, base: Trace, other: Tensor | None, layer: int, x_SBQD: Tensor, replaced_SH: Bool[np.ndarray, "S H"], first: int, cut: int, frozen: bool
) -> Float[Tensor, "S B R D"]:
    """What attention writes in variants that have joined, at their positions less the first `cut`."""
    count, batch = x_SBQD.shape[:2]
    if frozen:
        if other is None:
            return base.attention[layer][:, first + cut :].expand(count, -1, -1, -1)
        z_SBHRE = _replaced(base.z[layer][:, :, first + cut :], other[..., cut:, :], replaced_SH)
        return anatomy.write(layer, z_SBHRE.flatten(0, 1)).unflatten(0, (count, batch))

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if first:
            before = (repeat(part[layer][:, :, :first], "b g t e -> (s b) g t e", s=count) for part in (base.k, base.v))
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(before, (k, v), strict=True))
        z = anatomy.mix(layer, q, k, v)
        return z if other is None else _replaced(rearrange(z, "(s b) h q e -> s b h q e", s=count), other[..., cut:, :], replaced_SH).flatten(0, 1)

    x_NQD = x_SBQD.flatten(0, 1)
    if cut:
        q, k, v = anatomy.qkv(layer, x_NQD, first)
        return anatomy.write(layer, mix(q[:, :, cut:], k, v)).unflatten(0, (count, batch))
    return anatomy.attend(layer, x_NQD, mix, first).unflatten(0, (count, batch))
