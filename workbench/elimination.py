"""Which KV heads can the model do without? Backward elimination: one after another, the head that is missed least loses what lies between sinks and window.

A probe tells where a head looks; this tells what the model loses. In every step each open head in turn is made streaming, and the surprise of right answers
(−log p of their tokens, in nats) is measured on prompts drawn for that step; the head with the least surprise stays streaming. The order in which heads go
ranks them, and what others can stand in for is in it: of two heads that do the same, one goes early and the other late.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.labels import HeadLabels
from workbench.mixture import Mixture, gated
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.runs import versions

PROBE = "elimination"
"""The name of the order among the scores of `HeadLabels`."""


@dataclass(frozen=True)
class Eliminating:
    """How heads are eliminated: `sinks` and `window` of a streaming head, `prompts` drawn for each step, and how many heads a step may take.

    A step takes one head for every `each` that are open, one at least: while many are left, most of them change nothing.
    """

    sinks: int = 16
    window: int = 128
    prompts: int = 24
    each: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1 or self.prompts < 1 or self.each < 1:
            raise InputError(f"an elimination needs sinks ≥ 0, window ≥ 1, a prompt or more per step, and each ≥ 1; got {self}")


@dataclass(frozen=True, eq=False)
class Order:
    """In which order the KV heads went: 0 the first, 1 the last; layers with a window of their own have 0. Read-only.

    `steps` has one entry per step: the heads that went (layer, KV head), and the surprise before and after, in nats per token.
    """

    card: ModelCard
    place_LG: Float[np.ndarray, "L G"]
    steps: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        place_LG = np.array(self.place_LG, float)
        place_LG.setflags(write=False)
        object.__setattr__(self, "place_LG", place_LG)
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def labels(self, **facts: Any) -> HeadLabels:
        """The order as scores `elimination`, every query head with its KV head's. The `facts` are added to the provenance."""
        told = {**self.provenance, "steps": [dict(step) for step in self.steps], **facts}
        return HeadLabels(self.card, {}, {PROBE: self.card.shape.to_query(self.place_LG)}, evidence={PROBE: {"n": len(self.steps)}}, provenance=told)


@dataclass(frozen=True, eq=False)
class Answers:
    """Prompts with their answers, side by side on the device: shorter ones have padding behind them, which no row before it sees."""

    ids_BT: Tensor
    prompt_R: Tensor
    row_R: Tensor
    token_R: Tensor
    share_R: Tensor

    @classmethod
    def of(cls, model: HFModel, prompts: Sequence[Prompts], rows: str = "answer") -> "Answers":
        """The tokens behind the rows of that name are the answers; every prompt counts as much, however long its answer."""
        ids_BT = np.zeros((sum(batch.count for batch in prompts), max(batch.length for batch in prompts)), np.int64)
        places: list[tuple[int, int, int, float]] = []
        number = 0
        for batch in prompts:
            for ids_T, row_R in zip(batch.ids_BT, batch.row_positions(rows), strict=True):
                if row_R.max() + 1 >= len(ids_T):
                    raise InputError(f"rows {rows!r} need a token behind each: the answer that they produce")
                ids_BT[number, : len(ids_T)] = ids_T
                places += [(number, row, ids_T[row + 1], 1 / (len(row_R) * len(ids_BT))) for row in row_R]
                number += 1
        prompt_R, row_R, token_R, share_R = (torch.tensor(np.array(column), device=model.device) for column in zip(*places, strict=True))
        return cls(torch.tensor(ids_BT, device=model.device), prompt_R, row_R, token_R, share_R)


@torch.inference_mode()
def surprise(model: HFModel, answers: Answers, mixture: Mixture) -> float:
    """The mean −log p of the answers' tokens under a mixture, in nats; logits are in float32."""
    with gated(model, mixture) as hf:
        hidden_BTD = hf.base_model(answers.ids_BT, use_cache=False).last_hidden_state
        out = hf.get_output_embeddings()
        logit_RV = linear(hidden_BTD[answers.prompt_R, answers.row_R].float(), out.weight.float(), None if out.bias is None else out.bias.float())
    if (cap := getattr(model.config, "final_logit_softcapping", None)) is not None:
        logit_RV = (logit_RV / cap).tanh() * cap
    return float((cross_entropy(logit_RV, answers.token_R, reduction="none") * answers.share_R).sum())


def eliminate(
    model: HFModel,
    prompts: Sequence[Prompts],
    settings: Eliminating | None = None,
    *,
    rows: str = "answer",
    say: Callable[[str], None] = lambda _: None,
) -> Order:
    """Eliminate the model's KV heads, all of them. Prompts carry their answers behind the `rows`, as teacher-forced needle tests and passkeys do.

    Needs about half as many passes as the square of the number of KV heads. Raises `InputError` if every layer has a window of its own, or for rows
    without an answer.
    """
    settings, rng = settings or Eliminating(), np.random.default_rng((settings or Eliminating()).seed)
    open_LG = torch.tensor([[window is None] * model.shape.n_kv_heads for window in model.windows], dtype=torch.float32, device=model.device)
    left = [(layer, head) for layer, head in np.argwhere(open_LG.cpu().numpy() > 0).tolist()]
    if not left:
        raise InputError(f"every layer of {model.name} has a window of its own; there is nothing to eliminate")
    full, every, gone, steps = Mixture(open_LG, settings.sinks, settings.window), len(left), [], []
    place_LG = np.zeros(open_LG.shape)
    while left:
        drawn = rng.choice(len(prompts), min(settings.prompts, len(prompts)), replace=False)
        answers = Answers.of(model, [prompts[number] for number in drawn], rows)
        before, lost = surprise(model, answers, full), {}
        for head in left:
            open_LG[head] = 0
            lost[head] = surprise(model, answers, full)
            open_LG[head] = 1
        going = sorted(left, key=lost.__getitem__)[: max(1, len(left) // settings.each)]
        for head in going:
            open_LG[head] = 0
            place_LG[head] = len(gone) / max(every - 1, 1)
            gone.append(head)
            left.remove(head)
        steps.append({"heads": [list(head) for head in going], "before": round(before, 5), "after": round(lost[going[-1]], 5)})
        say(f"{len(left)} of {every} open; gone {' '.join(f'{layer}.{head}' for layer, head in going)}; surprise {before:.4f} → {lost[going[-1]]:.4f}")
    return Order(model.card, place_LG, steps, _provenance(model, settings, prompts))


def _provenance(model: HFModel, settings: Eliminating, prompts: Sequence[Prompts]) -> dict[str, Any]:
    place = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    needles = sorted({fact["needle"] for batch in prompts for fact in batch.facts if "needle" in fact})
    lengths = sorted({fact["length"] for batch in prompts for fact in batch.facts if "length" in fact})
    return {**asdict(settings), **place, "of": len(prompts), "needles": needles, "lengths": lengths, "versions": versions()}
