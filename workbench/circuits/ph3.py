"""Which heads bring up what a model remembers, and which what a text says? PH3: both found by path patching, one side pruned to steer the model.

Jin et al. 2024 (2402.18154). The paper's normalisation is not known to us: the importance is a reconstruction, the change of logit_memory − logit_context
(or of their probabilities) when a head's direct path from the last position carries another prompt; both are offered, and so are the corruptions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.circuits.attribution import node_attribution
from workbench.circuits.conflicts import CONTEXT, MEMORY, ConflictSets, answers, closed_book, rates
from workbench.circuits.effects import Effects
from workbench.circuits.faithfulness import mask
from workbench.circuits.paths import LOGITS, path_patching
from workbench.circuits.steering import COLUMNS, bounded, steered, transferred
from workbench.circuits.tasks import TaskSet
from workbench.edits import Ablate
from workbench.errors import InputError, unknown
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels
from workbench.models import HFModel
from workbench.rules import Rule
from workbench.runs import versions

SIDES = {"memory": "context", "context": "memory"}
"""What a model can be steered to, and which heads are pruned for it."""

SCORES = {"logits": "logit_difference", "probabilities": "probability_difference"}
"""How an effect is measured."""

SIZES = (1, 3, 5, 7, 9, 15)
"""Numbers of heads that are tried on the validation items."""

CLEAN_LOSS = 0.1
"""The most that the accuracy on closed-book queries may fall on the validation items."""


@dataclass(frozen=True, eq=False)
class Ph3:
    """Memory and context heads of a model. `importance` has the effects of patching each head: below 0 memory heads, above 0 context heads.

    `heads["memory"]` are the memory heads of the size that was best on the validation items, likewise `context`. `sizes` has the validation, `table` the
    test items (`COLUMNS`), `transfer` other relations and formats.
    """

    card: ModelCard
    importance: Effects
    by_probability: Effects
    heads: Mapping[str, tuple[Head, ...]]
    sizes: pd.DataFrame
    table: pd.DataFrame
    transfer: pd.DataFrame
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def edit(self, steer: str) -> Ablate:
        """The edit that steers to `memory` or `context`, for `capture`, `generate` and all that takes edits. Raises `InputError` for another side."""
        return Ablate(self.heads[choose_side(steer)], kind="zero", phase="both")

    def told(self) -> dict[str, Any]:
        """Heads, importance and tables as plain data."""
        tables = {"sizes": self.sizes, "table": self.table, "transfer": self.transfer}
        patched = {name: effects.table().to_dict("records") for name, effects in {"logits": self.importance, "probabilities": self.by_probability}.items()}
        heads = {side: [str(head) for head in found] for side, found in self.heads.items()}
        return {"heads": heads, "effects_of_patching": patched, **{name: table.to_dict("records") for name, table in tables.items()}, **self.provenance}

    def labels(self, given: HeadLabels | None = None) -> HeadLabels:
        """Head labels `memory` and `context`, with their importance (0 for heads of the other side) as scores; added to `given` ones of the same model.

        Raises `InputError` for labels of another model.
        """
        names = {"memory": "memory", "context": "context"}
        effects = self.by_probability if self.provenance.get("score") == "probabilities" else self.importance
        size_LH = -effects.mean_LH.astype(np.float64)
        scores = {f"ph3_{name}": np.maximum(size_LH if name == "memory" else -size_LH, 0.0) for name in names}
        rules = {
            name: Rule(
                name,
                f"ph3_{name}",
                float(min((scores[f"ph3_{name}"][head.layer, head.index] for head in self.heads[name]), default=0.0)),
                "PH3 (2402.18154), reconstruction: as many heads as steer best on validation items",
                "half of all heads are above 0",
            )
            for name in names
        }
        count = len(self.importance.effect_NLH)
        evidence = {f"ph3_{name}": {"status": "ok", **dict.fromkeys(("tests", "valid", "counted"), count), "dead": 0} for name in names}
        mine = {head: tuple(name for name in names if head in self.heads[name]) for name in names for head in self.heads[name]}
        if given is None:
            return HeadLabels(self.card, mine, scores, rules, evidence, dict(self.provenance))
        given.check_model(self.card)
        merged = {head: (*(label for label in had if label not in names), *mine.get(head, ())) for head, had in given.labels.items()}
        return replace(
            given,
            labels=merged,
            scores={**given.scores, **scores},
            rules={**given.rules, **rules},
            evidence={**given.evidence, **evidence},
            provenance={**given.provenance, "ph3": dict(self.provenance)},
        )


def choose_side(steer: str) -> str:
    """Which heads are pruned to steer to `memory` or `context`. Raises `InputError` for another side."""
    if steer not in SIDES:
        raise unknown("side to steer to", steer, SIDES)
    return SIDES[steer]


def importance(model: HFModel, data: TaskSet, score: str = "logits") -> Effects:
    """The effect of patching each head's path from the last position to the logits, other heads frozen and MLPs free: below 0 memory heads, above 0 context.

    `score` is one of `SCORES`. Raises `InputError` for another.
    """
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    return path_patching(model, data, positions=[-1], metric=SCORES[score])[LOGITS]


def sides(effects: Effects) -> dict[str, list[Head]]:
    """Memory heads (patching them costs the memory answer) and context heads, the most important first."""
    ranked = effects.ranked()
    return {
        "memory": [head for head in ranked if effects.mean_LH[head.layer, head.index] < 0],
        "context": [head for head in ranked if effects.mean_LH[head.layer, head.index] > 0],
    }


def find(
    model: HFModel,
    data: ConflictSets,
    *,
    text_T: np.ndarray,
    score: str = "logits",
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    told: Callable[[str, int, int], None] = lambda *_: None,
) -> Ph3:
    """Find the heads on the conflicts for it, choose how many on others, and evaluate on a third part and on other relations and formats.

    `text_T` are token ids for perplexity. Raises `InputError` for an unknown score and sizes below 1.
    """
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    if not sizes or min(sizes) < 1:
        raise InputError(f"a number of heads to prune is 1 or more, got {sizes}")
    told("path patching", 0, 4)
    effects = {name: importance(model, data.searched, name) for name in SCORES}
    ranked = sides(effects[score])
    told("choosing how many", 1, 4)
    chosen, validation = _choose(model, data.validated, ranked, sizes)
    told("evaluating", 2, 4)
    gradient = sides(node_attribution(model, data.searched, "eap", metric="logit_difference"))
    table = pd.DataFrame([row for steer in SIDES for row in steered(model, data.tested, steer, chosen[SIDES[steer]], gradient[SIDES[steer]], text_T, seeds)])[
        list(COLUMNS)
    ]
    told("transfer", 3, 4)
    transfer = pd.DataFrame(
        [row for name, other in data.others.items() for row in transferred(model, name, other, {steer: chosen[side] for steer, side in SIDES.items()})]
    )
    facts = {
        "task": data.searched.task,
        "score": score,
        "pruned": "z = 0 at all positions",
        "items": {"searched": len(data.searched), "validated": len(data.validated), "tested": len(data.tested), "dropped": dict(data.searched.dropped)},
        "left_out": dict(data.left_out),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "seed": data.searched.seed,
        "seeds_random": list(seeds),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        **versions(),
    }
    return Ph3(model.card, effects["logits"], effects["probabilities"], chosen, validation, table, transfer, facts)


def _choose(model: HFModel, data: TaskSet, ranked: Mapping[str, list[Head]], sizes: Sequence[int]) -> tuple[dict[str, tuple[Head, ...]], pd.DataFrame]:
    """For each side the number of heads that steers best, ties by the mean margin, among those that cost little closed-book accuracy; and all of them."""
    clean, chosen, rows = closed_book(model, data), {}, []
    whole = rates(answers(model, clean, np.zeros((1, model.shape.n_layers, model.shape.n_heads), bool))[0][0])["memory"]
    for steer, side in SIDES.items():
        able = [size for size in sizes if size <= len(ranked[side])]
        if not able:
            raise InputError(f"no {side} heads were found: no head's path lowers or raises the difference that way")
        pruned = np.stack([mask(model.shape, ranked[side][:size]) for size in able])
        kind_SN, margin_SN = answers(model, data, pruned)
        clean_SN, _ = answers(model, clean, pruned)
        sign, mine = (1, MEMORY) if steer == "memory" else (-1, CONTEXT)
        order = [
            (rates(clean_N)["memory"] >= whole - CLEAN_LOSS, float((kind_N == mine).mean()), sign * float(margin_N.mean()))
            for kind_N, margin_N, clean_N in zip(kind_SN, margin_SN, clean_SN, strict=True)
        ]
        best = max(range(len(able)), key=lambda place: order[place])
        chosen[side] = tuple(ranked[side][: able[best]])
        rows += [
            {
                "steer": steer,
                "heads": size,
                **bounded({**rates(kind_N), "clean": rates(clean_N)["memory"]}, len(data)),
                "clean_kept": order[place][0],
                "margin": float(margin_N.mean()),
                "chosen": place == best,
            }
            for place, (size, kind_N, margin_N, clean_N) in enumerate(zip(able, kind_SN, margin_SN, clean_SN, strict=True))
        ]
    return chosen, pd.DataFrame(rows)
