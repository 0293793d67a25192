"""Which KV heads need their whole context? One gate per KV head, trained against the full model (DuoAttention, arXiv 2410.10819).

A gate mixes what a head gives with all keys and with sinks and a window alone (`mixture`). All gates begin at 1 and are lowered as far as the model's
final hidden states allow: the loss is their squared distance from those of the full model, at the rows that must find something far away, plus
`weight` times the mean gate. Only the gates are trained. Layers that have a window of their own have no gate (0 in the result: they never
need the whole context). DuoAttention compares all rows of questions and answers, and takes the full answer inside the mixture from the full model's
pass; here the rows that produce the answers are compared, and the mixture computes both of its parts itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.labels import HeadLabels
from workbench.mixture import Mixture, gated
from workbench.models import HFModel
from workbench.passkeys import Passkeys
from workbench.prompts import Prompts
from workbench.runs import versions

PROBE, MEAN = "duo_gate", "duo_gate_mean"
"""The names of the gates, and of their means over the training, among the scores of `HeadLabels`."""

WARM = 0.2
"""The learning rate rises from a tenth over this share of the steps, and falls back over the last."""


@dataclass(frozen=True)
class Training:
    """How gates are trained. DuoAttention: 2,000 steps, weight 0.05, sinks 128, window 256, rate 0.02, seed 42; the sizes here are those of short contexts.

    `weight` is what an open gate costs, λ; it decides how many stay open. It is relative to the square of the model's final hidden states.
    """

    sinks: int = 16
    window: int = 128
    steps: int = 300
    rate: float = 0.02
    weight: float = 0.5
    seed: int = 42

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1 or self.steps < 1 or not self.rate > 0 or not self.weight >= 0:
            raise InputError(f"gates need sinks ≥ 0, window ≥ 1, steps ≥ 1, rate > 0 and weight ≥ 0; got {self}")


@dataclass(frozen=True, eq=False)
class Gates:
    """One gate per KV head, 0–1: how much of its attention must see all keys, where the others see `sinks` and `window`. Read-only.

    Many gates end at 0 or 1 exactly. `mean_LG`, the mean over all steps, ranks these too: by how long they stayed open. `provenance` has the settings,
    seed, versions, device, and the loss of every step.
    """

    card: ModelCard
    alpha_LG: Float[np.ndarray, "L G"]
    mean_LG: Float[np.ndarray, "L G"]
    sinks: int
    window: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("alpha_LG", "mean_LG"):
            gate_LG = np.array(getattr(self, name), float)
            gate_LG.setflags(write=False)
            object.__setattr__(self, name, gate_LG)
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def labels(self, **facts: Any) -> HeadLabels:
        """The gates as scores `duo_gate` and `duo_gate_mean`, every query head with its KV head's. The `facts` are added to the provenance.

        A policy takes them from there; so does the file format `duo`, which holds the former.
        """
        told = {**self.provenance, "sink": self.sinks, "recent": self.window, **facts}
        scores = {name: self.card.shape.to_query(gate_LG) for name, gate_LG in ((PROBE, self.alpha_LG), (MEAN, self.mean_LG))}
        evidence = {name: {"n": len(self.provenance.get("loss", ()))} for name in scores}
        return HeadLabels(self.card, {}, scores, evidence=evidence, provenance=told)


def hidden(model: HFModel, prompts: Prompts, rows: str, mixture: Mixture) -> Float[Tensor, "B R D"]:
    """The final hidden states, behind the last norm, of the chosen rows under a mixture, in float32."""
    ids_BT, row_BR = (torch.tensor(np.array(array), device=model.device) for array in (prompts.ids_BT, prompts.row_positions(rows)))
    with gated(model, mixture) as hf:
        hidden_BTD = hf.base_model(ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD.gather(1, row_BR[:, :, None].expand(-1, -1, hidden_BTD.shape[2])).float()


def distance(model: HFModel, prompts: Prompts, rows: str, mixture: Mixture) -> Float[Tensor, ""]:
    """The mean squared distance of the chosen rows' final hidden states from those of the full model; its gradient reaches the gates."""
    with torch.no_grad():
        full = hidden(model, prompts, rows, Mixture(None, mixture.sinks, mixture.window, mixture.masks))
    return (hidden(model, prompts, rows, mixture) - full).square().mean()


def train(
    model: HFModel,
    settings: Training | None = None,
    prompts: Passkeys | Sequence[Prompts] | None = None,
    *,
    rows: str = "answer",
    say: Callable[[str], None] = lambda _: None,
) -> Gates:
    """Train the gates of a model's KV heads: a batch of prompts per step, `Passkeys()` by default, compared at the `rows`.

    The same seed on the same device gives the same gates. Raises `InputError` if every layer has a window of its own, and for prompts that cannot be made.
    """
    settings, prompts = settings or Training(), prompts or Passkeys()
    open_L1 = torch.tensor([[window is None] for window in model.windows], dtype=torch.float32, device=model.device)
    if not open_L1.any():
        raise InputError(f"every layer of {model.name} has a window of its own; there is nothing to gate")
    alpha_LG = open_L1.repeat(1, model.shape.n_kv_heads).requires_grad_()
    optimizer = torch.optim.AdamW([alpha_LG], lr=settings.rate, weight_decay=0.0)
    mean_LG, losses = torch.zeros_like(alpha_LG, requires_grad=False), []
    drawn = _drawn(model, prompts, settings.seed)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.rate * _warm((step + 0.5) / settings.steps)
        loss = distance(model, next(drawn), rows, Mixture(alpha_LG, settings.sinks, settings.window))
        price = settings.weight * alpha_LG.sum() / (open_L1.sum() * alpha_LG.shape[1])
        (alpha_LG.grad,) = torch.autograd.grad(loss + price, alpha_LG)
        optimizer.step()
        with torch.no_grad():
            alpha_LG.clamp_(0, 1).mul_(open_L1)
            mean_LG += alpha_LG / settings.steps
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            raise InputError(f"step {step + 1}: the distance from the full model is {losses[-1]}; try --dtype float32")
        if (step + 1) % 20 == 0:
            say(f"step {step + 1} of {settings.steps}: distance {np.mean(losses[-20:]):.4f}, mean gate {float(alpha_LG.detach().mean()):.3f}")
    gates = (gate_LG.detach().cpu().numpy() for gate_LG in (alpha_LG, mean_LG))
    return Gates(model.card, *gates, settings.sinks, settings.window, _provenance(model, settings, prompts, losses))


def _warm(done: float) -> float:
    """The share of the learning rate after so much of the steps: a tenth → 1, 1, 1 → a tenth."""
    return 0.1 + 0.9 * min(1.0, done / WARM, (1 - done) / WARM)


def _drawn(model: HFModel, prompts: Passkeys | Sequence[Prompts], seed: int) -> Iterator[Prompts]:
    if not isinstance(prompts, Passkeys):
        yield from cycle(prompts)
        return
    rng = np.random.default_rng(seed)
    while True:
        yield prompts.draw(model, rng)


def _provenance(model: HFModel, settings: Training, prompts: Passkeys | Sequence[Prompts], losses: list[float]) -> dict[str, Any]:
    place = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    if isinstance(prompts, Passkeys):
        made = {**asdict(prompts), "lengths": list(prompts.lengths), "haystack": prompts.digest()}
    else:
        made = {"prompts": [batch.fingerprint for batch in prompts]}
    return {**asdict(settings), **place, "prompts": made, "versions": versions(), "loss": [round(loss, 6) for loss in losses]}
