"""Which heads answer better with their sinks calibrated? ACT's offline search, one head at a time, made affordable.

ACT (Yu et al. 2024, 2406.15765) runs every question once for every head. Here one plain pass and its gradient rank all heads by their first-order effect on
the loss; the best share is measured exactly, in passes that begin at the head's layer and hold several heads at once; a head is left when enough is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from workbench.calibration.crew import Clock, Crew
from workbench.calibration.measuring import Evidence, Measuring, batched, tally_of
from workbench.calibration.sequential import e_value
from workbench.calibration.taps import screen
from workbench.edits import Calibrate
from workbench.errors import InputError
from workbench.heads import Head, Shape
from workbench.models import HFModel
from workbench.passes import check
from workbench.prompts import Prompts
from workbench.questions import Encoded
from workbench.scores import rank_agreement


@dataclass(frozen=True)
class Setting:
    """How heads are searched: the `edit` (all heads; β and rule), and the share `screen` of the candidates that is measured (1: all of them).

    `sample` further candidates are measured to see how far the screening can be trusted. The candidates are the heads of `layers`: by default all but the
    first two and the last. The test is looked at after every `block` questions, which come in an order drawn from `seed`.
    """

    edit: Calibrate = field(default_factory=Calibrate)
    screen: float = 0.15
    sample: int = 8
    layers: tuple[int, ...] | None = None
    block: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.screen <= 1:
            raise InputError(f"screening keeps a share of the heads, above 0 and up to 1, got {self.screen:g}")
        if self.sample < 0 or self.block < 1:
            raise InputError(f"a sample of 0 heads or more, and a look after 1 question or more; got {self.sample} and {self.block}")
        if self.edit.heads is not None:
            raise InputError("the search looks for the heads; give a calibration without them")

    def candidates(self, shape: Shape) -> tuple[Head, ...]:
        """The heads that may be calibrated. Raises `InputError` if there are none, or for a layer that is not there."""
        layers = range(2, shape.n_layers - 1) if self.layers is None else sorted(set(self.layers))
        if not layers or not 0 <= layers[0] <= layers[-1] < shape.n_layers:
            raise InputError(f"no candidates: by default all layers but the first two and the last; name some of the {shape.n_layers} layers, from 0")
        return tuple(Head(layer, index) for layer in layers for index in range(shape.n_heads))


@dataclass(frozen=True, eq=False)
class Search:
    """What the search found: the `kept` heads, a row of `table` for every head measured (`COLUMNS`), and how far screening agrees with the exact effects.

    `cost` has seconds, of the clock of who asked and of the processors of all who worked, and what the full search would take at the same rate.
    """

    candidates: tuple[Head, ...]
    kept: tuple[Head, ...]
    table: pd.DataFrame
    evidence: Evidence
    agreement: dict[str, dict[str, float]]
    cost: dict[str, float]


COLUMNS = {
    "head": "the head",
    "chosen": "why it was measured: screening, or sample (drawn at random from the others)",
    "predicted": "first-order change of the loss by calibrating it, nats, mean over tasks; negative is better",
    "exact": "measured change of the loss on the `n` questions seen",
    "predicted_seen": "the first-order change on the same questions",
    "n": "questions seen",
    "fixed": "answers turned right",
    "broken": "answers turned wrong",
    "gain": "change of accuracy on them, mean over tasks, −1 to 1; too large, on average, of a head that was left because it helps",
    "e_helps": "evidence that it helps; at 20 it is left, and kept",
    "e_hurts": "evidence that it hurts; at 20 it is left",
    "stopped": "helps, hurts, or futile (the questions to come could not make it help); empty if all questions were seen",
    "sinks": "sinks per question",
    "kept": "whether it is calibrated from now on: its gain is above 0",
}
"""What the columns of `Search.table` mean."""


def search(model: HFModel | Crew, questions: Mapping[str, Sequence[Encoded]], setting: Setting | None = None) -> Search:
    """Search the heads on the questions of each task, here or by whoever is given.

    Raises `InputError` for layers that are not there, questions too long for the model, and settings out of range.
    """
    crew, setting = Crew.of(model), setting or Setting()
    candidates = setting.candidates(crew.card.shape)
    every = [one for task in questions.values() for one in task]
    task_N = np.repeat(np.arange(len(questions)), [len(task) for task in questions.values()])
    order = np.random.default_rng(setting.seed).permutation(len(every)).tolist()
    blocks = [order[begin : begin + setting.block] for begin in range(0, len(order), setting.block)]
    clock = Clock(crew)
    evidence = _screened(crew, every, tuple(questions), task_N, setting, candidates)
    screening = clock.read("screening")
    rank_LH = evidence.over_tasks(evidence.first_NLH)
    chosen = _chosen(candidates, rank_LH, evidence, setting)
    clock = Clock(crew)
    measuring = Measuring(crew, every, evidence, setting.edit, {head: tally_of(head, evidence) for head in chosen})
    for number, block in enumerate(blocks, 1):
        measuring.run(f"measuring heads, block {number} of {len(blocks)}", block, last=number == len(blocks))
    cost = {**screening, **clock.read("measuring"), "passes": measuring.rows}
    table = _table(chosen, measuring, rank_LH)
    kept = tuple(head for head in sorted(chosen) if measuring.tallies[head].kept)
    return Search(candidates, kept, table, evidence, _agreement(table), {**cost, **measuring.full(candidates, cost)})


def _screened(crew: Crew, every: list[Encoded], names: tuple[str, ...], task_N: np.ndarray, setting: Setting, candidates: tuple[Head, ...]) -> Evidence:
    size = len(every), crew.card.shape.n_layers, crew.card.shape.n_heads
    first_NLH, sinks_NLH, loss_N, right_N = np.zeros(size), np.zeros(size, np.int64), np.zeros(size[0]), np.zeros(size[0], bool)
    parts = batched(crew.device, every, range(len(every)))
    crew.run("lengths", _checked, [{"parts": [batch.prompts for batch in parts], "edit": setting.edit}])
    how = {"edit": setting.edit, "layers": sorted({head.layer for head in candidates})}
    for batch, seen in zip(parts, crew.run("screening", screen, [{"batch": batch, **how} for batch in parts]), strict=True):
        index = list(batch.numbers)
        first_NLH[index], sinks_NLH[index], loss_N[index], right_N[index] = seen.first_BLH, seen.sinks_BLH, seen.loss_B, seen.right_B
    tokens_N = np.array([len(one.ids) for one in every])
    return Evidence(names, task_N, tokens_N, first_NLH, sinks_NLH, loss_N, right_N)


def _checked(model: HFModel, parts: Sequence[Prompts], edit: Calibrate) -> None:
    for prompts in parts:
        check(model, prompts, prompts.length, [], [edit])


def _chosen(candidates: tuple[Head, ...], rank_LH: np.ndarray, evidence: Evidence, setting: Setting) -> dict[Head, str]:
    """The heads to measure, and why: the best share by first-order effect, and some of the others; heads without sinks are none."""
    able = [head for head in candidates if evidence.sinks_NLH[:, head.layer, head.index].any()]
    ranked = sorted(able, key=lambda head: (rank_LH[head.layer, head.index], head))
    best = ranked[: max(1, round(setting.screen * len(candidates)))]
    others = ranked[len(best) :]
    drawn = np.random.default_rng(setting.seed).permutation(len(others))[: setting.sample]
    return {**dict.fromkeys(best, "screening"), **{others[place]: "sample" for place in sorted(drawn)}}


def _table(chosen: dict[Head, str], measuring: Measuring, rank_LH: np.ndarray) -> pd.DataFrame:
    rows = []
    for head in sorted(chosen):
        tally, exact_N, evidence = measuring.tallies[head], measuring.exact[head], measuring.evidence
        seen_N = np.isfinite(exact_N)
        known = {
            "exact": float(evidence.over_tasks(exact_N, seen_N)) if seen_N.any() else np.nan,
            "predicted_seen": float(evidence.over_tasks(evidence.first_NLH[:, head.layer, head.index], seen_N)) if seen_N.any() else np.nan,
        }
        counts = {"n": int(seen_N.sum()), "fixed": tally.fixed, "broken": tally.broken, "gain": tally.gain}
        found = {"e_helps": e_value(tally.fixed, tally.broken), "e_hurts": e_value(tally.broken, tally.fixed), "stopped": tally.stopped}
        sinks = {"sinks": float(evidence.sinks_NLH[:, head.layer, head.index].mean()), "kept": tally.kept}
        rows.append({"head": str(head), "chosen": chosen[head], "predicted": float(rank_LH[head.layer, head.index]), **known, **counts, **found, **sinks})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _agreement(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """How screening and exact effects rank the heads measured: all of them, and those drawn at random; on the questions that each has seen."""
    found = {}
    seen = table[table["n"] > 0]
    for name, rows in {"measured": seen, "sample": seen[seen["chosen"] == "sample"]}.items():
        if len(rows) > 2:
            k = min(10, len(rows) // 2)
            found[name] = {"heads": len(rows), **rank_agreement(-rows["predicted_seen"].to_numpy(), -rows["exact"].to_numpy(), k)}
    return found
