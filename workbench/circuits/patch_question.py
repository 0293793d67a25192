"""What does patching tell of a task? Path patching to a receiver or activation patching of a component, asked for as plain data."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.circuits import kept
from workbench.circuits.alternatives import check
from workbench.circuits.effects import Effects
from workbench.circuits.patching import DIRECTIONS, activation_patching
from workbench.circuits.paths import path_patching, receivers_of
from workbench.circuits.tasks import METRICS, prepare, task_of
from workbench.errors import InputError, unknown
from workbench.heads import ModelCard, Shape
from workbench.models import HFModel

KINDS = {
    "path": "path patching: what a head sends straight to a receiver, through MLPs and no other head",
    "activation": "activation patching: what is lost when one component of a head is exchanged, everything behind it following",
}
POSITIONS: Mapping[str, tuple[int, ...] | None] = {"all": None, "last": (-1,)}
"""At which positions something is exchanged."""

MOST_PROMPTS = 64
SCHEMA = "workbench.patching/1"


@dataclass(frozen=True)
class PatchQuestion:
    """What shall be patched: a `kind` of `KINDS`, on so many `prompts` of a `task` (with its options, as in ioi:corruption=swap), drawn by `seed`.

    `receiver` is where paths end, such as logits or L9H6.q, several at once joined by +; `component` is what activation patching exchanges. `ablation`,
    `direction` and `metric` are those of the two functions. Raises `InputError` for unknown names and a number of prompts outside of 1–64.
    """

    kind: str = "path"
    task: str = "ioi"
    prompts: int = 4
    receiver: str = "logits"
    component: str = "z"
    ablation: str = "resample"
    direction: str = "noising"
    positions: str = "all"
    metric: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of patching", self.kind, KINDS)
        task_of(self.task)
        check("z" if self.kind == "path" else self.component, self.ablation)
        for name, value, known in (("direction", self.direction, DIRECTIONS), ("positions", self.positions, POSITIONS)):
            if value not in known:
                raise unknown(name, value, known)
        if self.metric is not None and self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        if not 1 <= self.prompts <= MOST_PROMPTS:
            raise InputError(f"1 to {MOST_PROMPTS} prompts, not {self.prompts}")


@dataclass(frozen=True, eq=False)
class Patched:
    """The answer: the `effects`, the query heads' part of them, and how many prompts were `dropped`, by reason."""

    question: PatchQuestion
    card: ModelCard
    effects: Effects
    dropped: Mapping[str, int]

    @property
    def shape(self) -> Shape:
        """How many layers and heads the model has."""
        return self.card.shape

    @property
    def value_LH(self) -> Float[np.ndarray, "L H"]:
        """The mean effect of every query head, in the metric's unit; those of a KV group share theirs. NaN without a path to the receiver."""
        return np.repeat(self.effects.mean_LH, self.effects.group, axis=1).astype(np.float64)

    @property
    def table(self) -> pd.DataFrame:
        """The effects of heads, or of KV groups, the largest first (`effects.COLUMNS`)."""
        return self.effects.table(self.question.seed)

    @property
    def facts(self) -> dict[str, Any]:
        """What was done, on how many prompts, and the metric on clean and on corrupted ones."""
        base, other = float(self.effects.base_N.mean()), float(self.effects.other_N.mean())
        clean, corrupted = (base, other) if self.question.direction == "noising" else (other, base)
        return {**self.effects.facts, "prompts": len(self.effects.base_N), "clean": clean, "corrupted": corrupted, "dropped": dict(self.dropped)}

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, effects prompt by prompt."""
        arrays = {name: kept.listed(getattr(self.effects, name)) for name in ("effect_NLH", "base_N", "other_N")}
        effects = {**arrays, "group": self.effects.group, "facts": self.effects.facts}
        return kept.write(path, SCHEMA, self.card, {"question": asdict(self.question), "effects": effects, "dropped": dict(self.dropped)})

    @classmethod
    def load(cls, path: str | Path) -> "Patched":
        """Read what `save` wrote. Raises `InputError` for a file that is missing or is something else."""
        card, data = kept.read(path, SCHEMA)
        told = data["effects"]
        effect_NLH, base_N, other_N = (kept.numbers(told[name]) for name in ("effect_NLH", "base_N", "other_N"))
        return cls(PatchQuestion(**data["question"]), card, Effects(effect_NLH, base_N, other_N, told["group"], told["facts"]), data["dropped"])


def patched(model: HFModel, question: PatchQuestion, progress: Callable[[int, int], None] = lambda *_: None) -> Patched:
    """Answer the question; `progress` is told what is done, of how much.

    Raises `InputError` where the model has no such receiver, and as the task's prompts and the two functions do.
    """
    asked = question
    data = prepare(model, asked.task, asked.prompts, asked.seed)
    how: dict[str, Any] = {"ablation": asked.ablation, "direction": asked.direction, "positions": POSITIONS[asked.positions], "metric": asked.metric}
    how["progress"] = progress
    if asked.kind == "activation":
        effects = activation_patching(model, data, component=asked.component, **how)
    else:
        receivers = receivers_of(asked.receiver, model.shape)
        effects = path_patching(model, data, (receivers,), **how)[receivers]
    return Patched(asked, model.card, effects, data.dropped)
