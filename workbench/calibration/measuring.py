"""What does calibrating one head do, measured? Exact effects of several heads at once, block of questions after block, until enough is known of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.calibration.sequential import Tally
from workbench.calibration.taps import Prepared, calibrated, prepare
from workbench.edits import Calibrate
from workbench.heads import Head
from workbench.models import HFModel
from workbench.questions import Batch, Encoded, batches

TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 2**16}
"""Tokens of one pass, about."""


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


def batched(model: HFModel, every: Sequence[Encoded], numbers: Sequence[int]) -> Iterator[Batch]:
    """The questions of these numbers, as many at once as a device takes well."""
    yield from batches(every, numbers, TOKENS_AT_ONCE.get(model.device.type, 1024))


def tally_of(head: Head, evidence: Evidence) -> Tally:
    """Nothing seen yet of a head: what is to come is told by its sinks and by the plain model's answers."""
    able_N = (evidence.sinks_NLH[:, head.layer, head.index] > 0) & ~evidence.right_N
    count = len(evidence.names)
    return Tally.fresh(np.bincount(evidence.task_N, minlength=count), np.bincount(evidence.task_N[able_N], minlength=count))


class Measuring:
    """Exact effects, block of questions after block, of the heads of `tallies` about which not enough is known.

    `exact` has the change of the loss by each head and question, in nats, NaN where it was not seen; `rows` counts the passes (question × head).
    """

    def __init__(self, model: HFModel, every: Sequence[Encoded], evidence: Evidence, edit: Calibrate, tallies: dict[Head, Tally]) -> None:
        self.model, self.every, self.evidence, self.edit, self.tallies = model, every, evidence, edit, tallies
        self.exact = {head: np.full(len(every), np.nan) for head in tallies}
        self.rows, self.work = 0, 0.0  # `work`: tokens × blocks that passes took, the plain ones included

    def run(self, block: Sequence[int], last: bool) -> None:
        """Measure the questions of these numbers, and judge the heads unless this is the last block."""
        active = [head for head, tally in self.tallies.items() if not tally.stopped]
        for batch in batched(self.model, self.every, block) if active else ():
            ready = prepare(self.model, batch, self.edit, sorted({head.layer for head in active}))
            loss_B = batch.loss(ready.logits_BV).cpu().numpy()
            self.work += batch.prompts.ids_BT.size * self.model.shape.n_layers
            for layer in ready.changed:
                self._layer(ready, layer, [head for head in active if head.layer == layer], loss_B)
        for head in active if not last else ():
            self.tallies[head].judge()

    def _layer(self, ready: Prepared, layer: int, heads: list[Head], loss_B: np.ndarray) -> None:
        batch, evidence = ready.batch, self.evidence
        after = {}
        pairs = [(place, head) for place, number in enumerate(batch.numbers) for head in heads if evidence.sinks_NLH[number, layer, head.index]]
        size = max(1, TOKENS_AT_ONCE.get(self.model.device.type, 1024) // batch.prompts.length)
        for part in (pairs[begin : begin + size] for begin in range(0, len(pairs), size)):
            rows, logits_RV = calibrated(self.model, ready, layer, [place for place, _ in part], [head.index for _, head in part])
            after.update(zip(part, zip(rows.right(logits_RV), rows.loss(logits_RV).cpu().numpy(), strict=True), strict=True))
            self.rows += len(part)
            self.work += rows.prompts.ids_BT.size * (self.model.shape.n_layers - layer)
        for place, number in enumerate(batch.numbers):
            before = bool(evidence.right_N[number])
            for head in heads:
                right, loss = after.get((place, head), (before, loss_B[place]))
                self.exact[head][number] = loss - loss_B[place]
                self.tallies[head].add(int(evidence.task_N[number]), before, bool(right), bool(evidence.sinks_NLH[number, layer, head.index]))

    def full(self, candidates: Sequence[Head], cost: Mapping[str, float]) -> dict[str, float]:
        """What all candidates on all questions would take at the measured rate: with these shortcuts but no screening or stopping, and as plain passes."""
        evidence, layers = self.evidence, self.model.shape.n_layers
        each = [evidence.tokens_N @ (evidence.sinks_NLH[:, head.layer, head.index] > 0) * (layers - head.layer) for head in candidates]
        shared = evidence.tokens_N.sum() * layers
        plain = shared * len(candidates)
        rates = {name: cost[f"measuring_{name}"] / self.work if self.work else 0.0 for name in ("seconds", "cpu_seconds")}
        return {f"{what}_{name}": float(rate * work) for name, rate in rates.items() for what, work in (("full", sum(each) + shared), ("naive", plain))}
