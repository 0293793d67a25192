"""What does calibrating one head do, measured? Exact effects of several heads at once, block of questions after block, until enough is known of each."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.calibration.crew import Crew
from workbench.calibration.sequential import Tally
from workbench.calibration.taps import calibrated, prepare
from workbench.edits import Calibrate
from workbench.heads import Head
from workbench.models import HFModel
from workbench.questions import Batch, Encoded, batches

TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 2**16}
"""Tokens of one pass, about."""

WORTH = 0.95
"""More tasks repeat more plain passes, which is worth it if all is done in this share of the time."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What screening told of N questions: as `Screened` for each of them, with the task `task_N` of each among the `names`, and its length in tokens."""

    names: tuple[str, ...]
    task_N: Int[np.ndarray, " N"]
    tokens_N: Int[np.ndarray, " N"]
    first_NLH: Float[np.ndarray, "N L H"]
    sinks_NLH: Int[np.ndarray, "N L H"]
    loss_N: Float[np.ndarray, " N"]
    right_N: Bool[np.ndarray, " N"]

    def over_tasks(self, value_NLH: np.ndarray, chosen_N: np.ndarray | None = None) -> np.ndarray:
        """The mean over tasks of the means over their questions (of the chosen ones)."""
        among = [(self.task_N == task) & (True if chosen_N is None else chosen_N) for task in range(len(self.names))]
        return np.asarray(np.mean([value_NLH[task_N].mean(0) for task_N in among if task_N.any()], axis=0))


Pairs = dict[int, list[tuple[int, int]]]
"""What is measured of a batch, by layer: which question of it, with which head calibrated."""

After = dict[int, tuple[Bool[np.ndarray, " R"], Float[np.ndarray, " R"]]]
"""What came of it, by layer and in the order of its pairs: whether the answer is right, and its loss in nats."""


def batched(device: str, every: Sequence[Encoded], numbers: Sequence[int]) -> list[Batch]:
    """The questions of these numbers, as many at once as a kind of device takes well."""
    return batches(every, numbers, TOKENS_AT_ONCE.get(device, 1024))


def effects(model: HFModel, batch: Batch, edit: Calibrate, pairs: Pairs) -> tuple[Float[np.ndarray, " B"], After]:
    """Exact effects of single heads on questions of a batch: the losses of the plain model, and what came of every pair.

    A layer gives the same numbers whichever others are measured beside it: each begins at the same plain pass, and its rows are its own.
    """
    ready = prepare(model, batch, edit, list(pairs))
    size = max(1, TOKENS_AT_ONCE.get(model.device.type, 1024) // batch.prompts.length)
    after: After = {}
    for layer, mine in pairs.items():
        seen = []
        for part in (mine[begin : begin + size] for begin in range(0, len(mine), size)):
            rows, logits_RV = calibrated(model, ready, layer, [place for place, _ in part], [head for _, head in part])
            seen.append((rows.right(logits_RV), rows.loss(logits_RV).cpu().numpy()))
        if seen:
            after[layer] = tuple(map(np.concatenate, zip(*seen, strict=True)))
    return batch.loss(ready.logits_BV).cpu().numpy(), after


def work_of(pairs: Pairs, layers: int) -> list[int]:
    """What each layer's rows take, in blocks of the model: a row begins at its layer."""
    return [len(mine) * (layers - layer) for layer, mine in pairs.items()]


def shares(pairs: Pairs, count: int, layers: int) -> list[Pairs]:
    """The layers in so many groups of about equal work, or in fewer, as a layer is not divided."""
    work_L = np.array(work_of(pairs, layers))
    middle_L = (work_L.cumsum() - work_L / 2) / max(1, work_L.sum())
    group_L = np.minimum((middle_L * count).astype(int), count - 1)
    return [{layer: mine for (layer, mine), one in zip(pairs.items(), group_L, strict=True) if one == group} for group in np.unique(group_L)]


def tasks_of(todo: Sequence[tuple[Batch, Pairs]], workers: int, layers: int) -> list[tuple[Batch, Pairs]]:
    """What is measured of each batch as tasks, the longest first: as few as let so many workers end about as soon as they can; one for each batch if alone.

    Tasks of a batch have whole layers each, which share nothing but the plain pass; that is repeated.
    """
    work = [batch.prompts.length * sum(work_of(pairs, layers)) for batch, pairs in todo]
    best: list[tuple[Batch, Pairs]] = []
    soonest = math.inf
    for pieces in range(1, 2 * min(workers, layers) + 1):
        counts = [max(1, math.ceil(pieces * mine / max(1, sum(work)))) for mine in work]
        tasks = [(batch, group) for (batch, pairs), count in zip(todo, counts, strict=True) for group in shares(pairs, count, layers)]
        tasks.sort(key=lambda task: cost_of(*task, layers), reverse=True)
        ends = [0] * workers
        for task in tasks:
            heapq.heapreplace(ends, ends[0] + cost_of(*task, layers))
        if max(ends) < WORTH * soonest:
            best, soonest = tasks, max(ends)
    return best


def cost_of(batch: Batch, pairs: Pairs, layers: int) -> int:
    """What a task takes, in tokens × blocks: the plain pass, and its rows."""
    return batch.prompts.length * (batch.prompts.count * layers + sum(work_of(pairs, layers)))


def tally_of(head: Head, evidence: Evidence) -> Tally:
    """Nothing seen yet of a head: what is to come is told by its sinks and by the plain model's answers."""
    able_N = (evidence.sinks_NLH[:, head.layer, head.index] > 0) & ~evidence.right_N
    count = len(evidence.names)
    return Tally.fresh(np.bincount(evidence.task_N, minlength=count), np.bincount(evidence.task_N[able_N], minlength=count))


class Measuring:
    """Exact effects, block of questions after block, of the heads of `tallies` about which not enough is known.

    `exact` has the change of the loss by each head and question, in nats, NaN where it was not seen; `rows` counts the passes (question × head).
    """

    def __init__(self, crew: Crew, every: Sequence[Encoded], evidence: Evidence, edit: Calibrate, tallies: dict[Head, Tally]) -> None:
        self.crew, self.every, self.evidence, self.edit, self.tallies = crew, every, evidence, edit, tallies
        self.exact = {head: np.full(len(every), np.nan) for head in tallies}
        self.rows, self.work = 0, 0.0  # `work`: tokens × blocks that passes took, the plain ones included

    def run(self, what: str, block: Sequence[int], last: bool) -> None:
        """Measure the questions of these numbers, and judge the heads unless this is the last block."""
        active = [head for head, tally in self.tallies.items() if not tally.stopped]
        layers = self.crew.card.shape.n_layers
        todo = [(batch, self._pairs(batch, active)) for batch in batched(self.crew.device, self.every, block)] if active else []
        tasks = tasks_of(todo, max(1, self.crew.workers()), layers)
        found = self.crew.run(what, effects, [{"batch": batch, "edit": self.edit, "pairs": pairs} for batch, pairs in tasks])
        for (batch, pairs), (loss_B, after) in zip(tasks, found, strict=True):
            self.rows += sum(map(len, pairs.values()))
            self.work += cost_of(batch, pairs, layers)
            seen = {(layer, *pair): one for layer in after for pair, one in zip(pairs[layer], zip(*after[layer], strict=True), strict=True)}
            for head in active:
                if head.layer in pairs:
                    self._add(batch, head, loss_B, seen)
        for head in active if not last else ():
            self.tallies[head].judge()

    def _pairs(self, batch: Batch, active: list[Head]) -> Pairs:
        """Which heads have sinks in which questions of a batch; layers whose heads have none are empty."""
        pairs: Pairs = {layer: [] for layer in sorted({head.layer for head in active})}
        for place, number in enumerate(batch.numbers):
            for head in active:
                if self.evidence.sinks_NLH[number, head.layer, head.index]:
                    pairs[head.layer].append((place, head.index))
        return pairs

    def _add(self, batch: Batch, head: Head, loss_B: np.ndarray, seen: dict[tuple[int, int, int], tuple[np.bool_, np.floating]]) -> None:
        for place, number in enumerate(batch.numbers):
            before, sink = bool(self.evidence.right_N[number]), bool(self.evidence.sinks_NLH[number, head.layer, head.index])
            right, loss = seen.get((head.layer, place, head.index), (before, loss_B[place]))
            self.exact[head][number] = loss - loss_B[place]
            self.tallies[head].add(int(self.evidence.task_N[number]), before, bool(right), sink)

    def full(self, candidates: Sequence[Head], cost: Mapping[str, float]) -> dict[str, float]:
        """What all candidates on all questions would take at the measured rate: with these shortcuts but no screening or stopping, and as plain passes."""
        evidence, layers = self.evidence, self.crew.card.shape.n_layers
        each = [evidence.tokens_N @ (evidence.sinks_NLH[:, head.layer, head.index] > 0) * (layers - head.layer) for head in candidates]
        shared = evidence.tokens_N.sum() * layers
        plain = shared * len(candidates)
        rates = {name: cost[f"measuring_{name}"] / self.work if self.work else 0.0 for name in ("seconds", "cpu_seconds")}
        return {f"{what}_{name}": float(rate * work) for name, rate in rates.items() for what, work in (("full", sum(each) + shared), ("naive", plain))}
