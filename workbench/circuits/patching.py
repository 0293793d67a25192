"""What does each head do? Activation patching and ablation of every head, position and component, all heads in one sweep; direct logit attribution.

A head's output (or its queries, keys, values or pattern) is replaced by what it is on the other prompt of a pair, by its mean, or by zero; everything behind
follows. Wang et al. 2022 (2211.00593), Heimersheim & Nanda 2024 (2404.15255).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.circuits.alternatives import alternatives, at, check, means, single
from workbench.circuits.anatomy import Anatomy, Trace, taken_apart
from workbench.circuits.effects import Effects, joined
from workbench.circuits.sweep import outcomes
from workbench.circuits.tasks import Pairs, TaskSet
from workbench.circuits.writes import head_writes, to_logits
from workbench.errors import InputError, unknown
from workbench.models import HFModel

DIRECTIONS = {
    "noising": "clean prompts get parts of the corrupted: what is necessary",
    "denoising": "corrupted prompts get parts of the clean: what suffices",
}
"""Which prompts run, and which give."""

TRACED = 2**12
"""Tokens of prompts whose passes are kept at once."""

MEASURED = 2**27
"""Logits that are measured at once."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Scene:
    """Prompts of one length at hand: the passes over the base prompts and the others, and the metric."""

    anatomy: Anatomy
    pairs: Pairs
    base: Trace
    other: Trace
    metric: str | None
    mean: Sequence[Tensor] | None = None

    def measure(self, logits_SV: Float[Tensor, "SB V"], variants: int = 1) -> Float[Tensor, " SB"]:
        """The metric of each row, for so many variants of the prompts, outermost. KL is against the base pass."""
        batch, found, against = len(self.pairs), [], (self.metric or self.pairs.metric) == "kl"
        size = max(1, MEASURED // (batch * logits_SV.shape[-1]))
        for begin in range(0, variants, size):
            count = min(size, variants - begin)
            pairs = self.pairs if count == 1 else self.pairs.rows(list(range(batch)) * count)
            reference_SV = self.base.logits_BV.repeat(count, 1) if against else None
            found.append(pairs.measure(logits_SV[begin * batch : (begin + count) * batch], self.metric, reference_SV))
        return torch.cat(found)

    def first(self, positions: Sequence[int] | None, ablation: str) -> int:
        """The first position where anything changes when heads are replaced at some: with `resample`, none does before the prompts differ."""
        asked = int(at(self.anatomy.length, positions, torch.device("cpu")).int().argmax())
        differ_T = (self.pairs.clean_BT != self.pairs.corrupted_BT).any(0)
        return asked if ablation != "resample" else max(asked, int(differ_T.argmax()))

    def numbers(self, trace: Trace) -> Float[np.ndarray, " B"]:
        """The metric of a pass."""
        return self.measure(trace.logits_BV).detach().float().cpu().numpy()


def scenes(
    model: HFModel, data: TaskSet, direction: str = "noising", metric: str | None = None, mean_of: str | None = None, tokens: int | None = None
) -> Iterator[Scene]:
    """Passes over all prompts of a task, length by length, in pieces of about so many `tokens` (by default `TRACED`).

    With `mean_of`, each prompt has the mean of that component over the other prompts of its length and template. Raises `InputError` for an unknown direction.
    """
    if direction not in DIRECTIONS:
        raise unknown("direction", direction, DIRECTIONS)
    for pairs in data.pairs:
        base_BT, other_BT = (pairs.clean_BT, pairs.corrupted_BT) if direction == "noising" else (pairs.corrupted_BT, pairs.clean_BT)
        size = max(1, (tokens or TRACED) // base_BT.shape[1])
        pieces = [list(range(begin, min(begin + size, len(base_BT)))) for begin in range(0, len(base_BT), size)]
        with torch.no_grad(), taken_apart(model, base_BT.shape[1]) as anatomy:
            templates = [[pairs.templates[row] for row in piece] for piece in pieces]
            others = ((names, anatomy.trace(_ids(model, other_BT[piece]))) for names, piece in zip(templates, pieces, strict=True))
            mean = None if mean_of is None else means(anatomy, others, mean_of)
            for names, piece in zip(templates, pieces, strict=True):
                both = anatomy.trace(_ids(model, np.concatenate([base_BT[piece], other_BT[piece]])))
                base, other = (_rows(both, rows) for rows in (slice(0, len(piece)), slice(len(piece), None)))
                own = None if mean is None else [torch.stack([mean[name][layer] for name in names]) for layer in range(model.shape.n_layers)]
                yield Scene(anatomy, pairs.rows(piece), base, other, metric, own)


def _rows(trace: Trace, rows: slice) -> Trace:
    """The passes over some of the prompts."""
    parts = {part.name: [layer[rows] for layer in getattr(trace, part.name)] for part in fields(Trace) if part.name != "logits_BV"}
    return Trace(**parts, logits_BV=trace.logits_BV[rows])


def _ids(model: HFModel, ids_BT: np.ndarray) -> Tensor:
    return torch.tensor(ids_BT, device=model.device)


def activation_patching(
    model: HFModel,
    data: TaskSet,
    *,
    component: str = "z",
    ablation: str = "resample",
    direction: str = "noising",
    positions: Sequence[int] | None = None,
    metric: str | None = None,
    progress: Progress = lambda *_: None,
) -> Effects:
    """The effect of replacing one component of each head (KV group for k and v), one head at a time, at some positions (all by default).

    `component` is one of `COMPONENTS`, `ablation` of `ABLATIONS`, `direction` of `DIRECTIONS`. `positions` count from the start, or from the end if negative.
    Raises `InputError` for unknown names and positions out of range.
    """
    check(component, ablation)
    replaced_SLH, units = single(model.shape, component)
    parts = []
    for number, scene in enumerate(scenes(model, data, direction, metric, component if ablation == "mean" else None)):
        progress(number, len(data.pairs))
        other = alternatives(scene.anatomy, scene.base, scene.other, component, ablation, mean=scene.mean, positions=positions)
        value_SB = outcomes(scene.anatomy, scene.base, other, replaced_SLH, scene.measure, first=scene.first(positions, ablation))
        base_B = scene.numbers(scene.base)
        effect_BLU = (value_SB - base_B).T.reshape(len(base_B), model.shape.n_layers, units)
        parts.append(Effects(effect_BLU, base_B, scene.numbers(scene.other), model.shape.n_heads // units))
    facts = {"method": "activation patching", "component": component, "ablation": ablation, "direction": direction, "positions": positions}
    return joined(parts, **facts, metric=metric or data.pairs[0].metric, task=data.task)


def replace_sets(
    model: HFModel, data: TaskSet, replaced_SLH: Bool[np.ndarray, "S L H"], *, ablation: str = "resample", direction: str = "noising", metric: str | None = None
) -> tuple[Float[np.ndarray, "S N"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The metric with sets of heads replaced together, for every set and prompt; beside it that of the base prompts and of the others."""
    check("z", ablation)
    found = []
    for scene in scenes(model, data, direction, metric, "z" if ablation == "mean" else None):
        other = alternatives(scene.anatomy, scene.base, scene.other, "z", ablation, mean=scene.mean)
        value_SB = outcomes(scene.anatomy, scene.base, other, replaced_SLH, scene.measure, first=scene.first(None, ablation))
        found.append((value_SB, scene.numbers(scene.base), scene.numbers(scene.other)))
    value, base, other = zip(*found, strict=True)
    return np.concatenate(value, axis=1), np.concatenate(base), np.concatenate(other)


def direct_attribution(model: HFModel, data: TaskSet, metric: str | None = None) -> Effects:
    """What each head adds to the logit difference of the clean prompts by itself: its write at the last position, through the final norm as it was, and W_U.

    One pass; nothing is replaced. In units of logits; only logit differences can be taken apart so. Heads of models whose attention has a norm behind it write
    through that norm as it was. Raises `InputError` for another metric.
    """
    if (metric or data.pairs[0].metric) != "logit_difference":
        raise InputError(f"direct attribution takes logit differences apart, not {metric or data.pairs[0].metric}; give the metric logit_difference")
    parts = []
    for scene in scenes(model, data, "noising", "logit_difference"):
        effect_BLH = attributed(scene)
        parts.append(Effects(effect_BLH, scene.numbers(scene.base), scene.numbers(scene.other)))
    return joined(parts, method="direct logit attribution", component="z", positions=[-1], metric="logit_difference", task=data.task)


def attributed(scene: Scene) -> Float[np.ndarray, "B L H"]:
    """What each head adds to the logit difference of the base prompts of a scene, at the last position."""
    anatomy, base = scene.anatomy, scene.base
    unembedding_VD = anatomy.model.hf.get_output_embeddings().weight
    direction_BD = torch.stack(
        [
            unembedding_VD[list(right)].float().mean(0) - unembedding_VD[list(wrong)].float().mean(0)
            for right, wrong in zip(scene.pairs.right, scene.pairs.wrong, strict=True)
        ]
    )
    layers = [
        to_logits(anatomy, base.x[-1][:, -1], direction_BD, head_writes(anatomy, layer, base.z[layer])[:, :, -1]) for layer in range(anatomy.shape.n_layers)
    ]
    return torch.stack(layers, dim=1).cpu().numpy()
