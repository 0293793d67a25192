"""Which tasks does a model do, and with which heads; and which heads matter on plain text? For `circuit_reuse.py`."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from circuit_shared import drawn, halves
from jaxtyping import Float
from scipy.stats import binomtest

from workbench.circuits.faithfulness import faithfulness
from workbench.circuits.finding import accuracy
from workbench.circuits.patching import activation_patching, replace_sets
from workbench.circuits.tasks import Item, Pairs, TaskSet
from workbench.circuits.tasks.lines import is_file
from workbench.errors import InputError
from workbench.models import HFModel
from workbench.recipes import haystack_text

LEVEL = 0.05
PASSAGE, PASSAGES = 32, 32
"""Tokens of a passage of plain text, and how many there are."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task that the model does: prompts held out, and the effects of all heads on those searched."""

    name: str
    searched: TaskSet
    held_out: TaskSet
    effect_NLH: Float[np.ndarray, "N L H"]
    normalised_LH: Float[np.ndarray, "L H"]
    right: float
    metric: float
    said: str

    @property
    def mean_LH(self) -> Float[np.ndarray, "L H"]:
        """The mean effect."""
        return self.effect_NLH.mean(0)

    def row(self) -> dict[str, object]:
        """A line of the report."""
        prompts = f"{len(self.searched)} + {len(self.held_out)}"
        templates = len({item.template for item in (*self.searched.items, *self.held_out.items)})
        facts = {"accuracy": self.right, "chance": self.searched.chance, "metric": self.metric, "of": self.searched.pairs[0].metric}
        return {"task": self.name, "": self.said or "done", "prompts": prompts, "templates": templates, **facts}


@dataclass(frozen=True)
class Refused:
    """A task that the model does not do, or that does not fit it, and why."""

    name: str
    why: str
    right: float = float("nan")
    chance: float = float("nan")

    def row(self) -> dict[str, object]:
        """A line of the report."""
        return {"task": self.name, "": f"refused: {self.why}", "accuracy": self.right, "chance": self.chance}


def try_task(model: HFModel, task: str, count: int, lengths: int, seed: int) -> Prepared | Refused:
    """The effects of all heads on a task, or why there are none."""
    name = Path(task).stem if is_file(task) else task
    try:
        data = drawn(model, task, count, lengths, seed)
    except InputError as error:
        return Refused(name, str(error))
    right, said = accuracy(model, data), ""
    if task.startswith("knowledge_conflict"):
        said = "done: the model's knowledge is right" if right >= data.chance else "done: what the text states is right"
        data, right = (data, right) if right >= data.chance else (exchanged(data), 1 - right)
    if binomtest(round(right * len(data)), len(data), data.chance, "greater").pvalue > LEVEL:
        return Refused(name, "no better than chance", right, data.chance)
    searched, held_out = halves(data, 0.5, seed)
    everything_1LH = np.ones((1, model.shape.n_layers, model.shape.n_heads), bool)
    empty_1N, full_N, _ = replace_sets(model, held_out, everything_1LH)
    if np.isnan(faithfulness(empty_1N[0], empty_1N[0], full_N)[0]):
        return Refused(name, "replacing all heads makes no difference beyond three standard errors", right, data.chance)
    effects = activation_patching(model, searched)
    return Prepared(name, searched, held_out, effects.effect_NLH, effects.normalised_LH, right, float(effects.base_N.mean()), said)


def exchanged(data: TaskSet) -> TaskSet:
    """The same prompts with right and wrong answers exchanged."""
    return replace(data, pairs=tuple(replace(pairs, right=pairs.wrong, wrong=pairs.right) for pairs in data.pairs))


def text_effects(model: HFModel) -> Float[np.ndarray, "L H"]:
    """How much the log probability of the next token of plain text falls, head by head, when the head puts out its mean over other passages."""
    text, _ = haystack_text(None)
    ids_P = np.array(model.tokenizer(text[: 40 * PASSAGE * PASSAGES])["input_ids"])[: 2 * PASSAGES * (PASSAGE + 1)]
    ids_NT = ids_P[: len(ids_P) // (2 * (PASSAGE + 1)) * 2 * (PASSAGE + 1)].reshape(2, -1, PASSAGE + 1)
    ids_NT = ids_NT[..., -(min(PASSAGE, model.positions) + 1) :]
    nexts = tuple((int(token),) for token in ids_NT[0, :, -1])
    others = tuple((0 if one[0] else 1,) for one in nexts)
    items = tuple(Item(f"passage {number}", f"other {number}", ("next",), ("another",)) for number in range(len(nexts)))
    pairs = Pairs("text", "log_probability", items, ids_NT[0, :, :-1], ids_NT[1, :, :-1], nexts, others)
    return activation_patching(model, TaskSet("text", (pairs,), {}, 0), ablation="mean").mean_LH
