"""What does a head put out instead? Its outputs with one of its parts replaced, by zero, by the mean over prompts, or by those of another prompt."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.circuits.anatomy import Anatomy, Trace, mixed
from workbench.errors import InputError, unknown
from workbench.heads import Shape

COMPONENTS = {
    "z": "the head's output in front of its projection",
    "q": "its queries",
    "k": "its keys, shared by the query heads of a KV group",
    "v": "its values, shared by the query heads of a KV group",
    "pattern": "where it looks, its values kept",
}
"""The parts of a head that can be replaced."""

ABLATIONS = {
    "resample": "what it is on the other prompt of the pair",
    "mean": "its mean over the other prompts of the same template and length, position by position",
    "zero": "nothing",
}
"""What a part is replaced by."""


def check(component: str, ablation: str) -> None:
    """Raise `InputError` unless both are known."""
    if component not in COMPONENTS:
        raise unknown("component", component, COMPONENTS)
    if ablation not in ABLATIONS:
        raise unknown("ablation", ablation, ABLATIONS)


def values(anatomy: Anatomy, trace: Trace, component: str) -> list[Tensor]:
    """A component in a pass, per layer: q, k, v, z [B, heads, T, E], or the pattern [B, H, T, T]."""
    if component == "pattern":
        return [anatomy.pattern(layer, q, k) for layer, (q, k) in enumerate(zip(trace.q, trace.k, strict=True))]
    return list(getattr(trace, component))


def means(anatomy: Anatomy, pieces: Iterable[tuple[Sequence[str], Trace]], component: str) -> dict[str, list[Tensor]]:
    """The mean of a component over the prompts of each template, position by position, per layer; `pieces` are passes and the template of each prompt."""
    total: dict[str, list[Tensor]] = {}
    count: Counter[str] = Counter()
    for templates, trace in pieces:
        count.update(templates)
        here = values(anatomy, trace, component)
        for template in dict.fromkeys(templates):
            rows = [row for row, name in enumerate(templates) if name == template]
            sums = [value[rows].sum(0) for value in here]
            total[template] = [before + value for before, value in zip(total[template], sums, strict=True)] if template in total else sums
    return {template: [part / count[template] for part in parts] for template, parts in total.items()}


def alternatives(
    anatomy: Anatomy, base: Trace, other: Trace, component: str, ablation: str, *, mean: Sequence[Tensor] | None = None, positions: Sequence[int] | None = None
) -> list[Float[Tensor, "B H T E"]]:
    """The heads' outputs per layer, each head's component replaced at some positions (all by default), everything else as in the base pass.

    What replaces it is what the component is in the `other` pass, the `mean` [B, heads, T, E] per layer (of `means`), or zero.
    """
    at_T1 = at(anatomy.length, positions, base.z[0].device)[:, None]
    own = values(anatomy, base, component)
    new = values(anatomy, other, component) if ablation == "resample" else mean if ablation == "mean" else [torch.zeros_like(part) for part in own]
    assert new is not None
    made = []
    for layer, (old, changed) in enumerate(zip(own, new, strict=True)):
        part = torch.where(at_T1, changed, old)
        if component == "z":
            made.append(part)
        elif component == "pattern":
            made.append(mixed(part, base.v[layer]))
        else:
            made.append(anatomy.mix(layer, *(part if name == component else getattr(base, name)[layer] for name in "qkv")))
    return made


def at(length: int, positions: Sequence[int] | None, device: torch.device) -> Bool[Tensor, " T"]:
    """Which positions are meant, negative ones counted from the end; all if none are given.

    Raises `InputError` for positions that are not there, and for an empty choice.
    """
    if positions is not None and (not len(positions) or not all(-length <= place < length for place in positions)):
        raise InputError(f"positions lie between {-length} and {length - 1} in prompts of {length} tokens, at least one; got {list(positions)}")
    chosen = torch.ones(length, dtype=torch.bool) if positions is None else torch.zeros(length, dtype=torch.bool)
    if positions is not None:
        chosen[list(positions)] = True
    return chosen.to(device)


def single(shape: Shape, component: str) -> tuple[Bool[np.ndarray, "S L H"], int]:
    """One variant for every head, or for every KV group where the component is k or v; and how many there are in a layer."""
    units = shape.n_kv_heads if component in ("k", "v") else shape.n_heads
    member_UH = np.repeat(np.eye(units, dtype=bool), shape.n_heads // units, axis=1)
    replaced_LULH = np.zeros((shape.n_layers, units, shape.n_layers, shape.n_heads), bool)
    for layer in range(shape.n_layers):
        replaced_LULH[layer, :, layer] = member_UH
    return replaced_LULH.reshape(-1, shape.n_layers, shape.n_heads), units
