"""How does a sweep run? Cell by cell its batches, by an executor; what is finished is found again, what fails is written down and stops nothing else."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from workbench.executors import Executor, Outcome
from workbench.measure import Progress
from workbench.sweeping.asking import Cell, Sweep
from workbench.sweeping.dataset import Dataset
from workbench.sweeping.tasks import PATIENCE, Answer, Batch, Cut, OfQuestion, Question

TELL = 10.0
"""Seconds, at least, between two words about cells that have not ended."""


@dataclass
class _Open:
    """A cell that is being worked on."""

    cell: Cell
    left: int = 0
    batches: int = 0
    error: str = ""
    details: str = ""
    seconds: float = 0.0
    attempts: int = 0
    nodes: set[str] = field(default_factory=set)

    @property
    def far(self) -> str:
        """What it is, and how far it has come, for people."""
        return f"{self.cell.what}: {self.batches - self.left} of {self.batches} batches"


@dataclass(frozen=True)
class Done:
    """What became of a sweep: how many cells were `found`, `made`, and `failed`, with the error of each of these."""

    found: int
    made: int
    failed: dict[str, str]


def run(sweep: Sweep, dataset: Dataset, executor: Executor, progress: Progress = lambda *_: None) -> Done:
    """Run what is not finished of a sweep; cells that failed before are tried again. `progress` is told of every cell that ends, and how far another has come.

    Raises `InputError` where the results cannot be kept; what is finished then lies where it is.
    """
    dataset, cells = replace(dataset, patience=PATIENCE), list(sweep.cells())
    finished = dataset.finished()
    left = {cell.fingerprint: cell for cell in cells}
    left = {name: cell for name, cell in left.items() if name not in finished}
    running = _Running(dataset, executor)
    failed: dict[str, str] = {}
    ended, told = 0, float("-inf")
    for one, over in running.steps(left.values()):
        ended += over
        if over and one.error:
            failed[one.cell.what] = one.error
        if over or time.monotonic() - told >= TELL:
            progress(one.cell.what if over else one.far, ended, len(left))
            told = time.monotonic()
    return Done(len(cells) - len(left), len(left) - len(failed), failed)


class _Running:
    """The cells at work."""

    def __init__(self, dataset: Dataset, executor: Executor) -> None:
        self._dataset, self._executor = dataset, executor
        self._open: dict[Question, _Open] = {}

    def steps(self, cells: Iterable[Cell]) -> Iterator[tuple[_Open, bool]]:
        """A cell whenever one of its tasks has ended, and whether it is now done or has failed."""
        for cell in cells:
            question = Question(cell.wanted, cell.asked, str(self._dataset.parts), cell.what)
            self._open[question] = _Open(cell)
            self._executor.submit(Cut(question))
        for outcome in self._executor.outcomes():
            assert isinstance(outcome.task, OfQuestion)
            question = outcome.task.question
            one = self._open[question]
            one.seconds += outcome.seconds
            one.attempts = max(one.attempts, outcome.attempts)
            one.nodes.add(outcome.node)
            if over := self._step(question, one, outcome):
                del self._open[question]
            yield one, over

    def _step(self, question: Question, one: _Open, outcome: Outcome) -> bool:
        """Go on with a cell after one of its tasks; whether the cell has ended."""
        if outcome.error:
            one.error, one.details = one.error or outcome.error, one.details or outcome.details
            one.left -= self._executor.drop(lambda task: isinstance(task, Batch) and task.question is question)
        if isinstance(outcome.task, Cut) and not one.error:
            one.left = one.batches = len(outcome.value)
            self._executor.submit(*(Batch(question, batch) for batch in outcome.value), first=True)
        elif isinstance(outcome.task, Batch):
            one.left -= 1
        elif not one.error:
            self._dataset.save(one.cell, outcome.value)
            self._tell(one, "done")
            return True
        if one.left:
            return False
        if one.error:
            self._tell(one, "failed")
            return True
        self._executor.submit(Answer(question), first=True)
        return False

    def _tell(self, one: _Open, state: str) -> None:
        facts = {"batches": one.batches, "seconds": round(one.seconds, 2), "nodes": sorted(one.nodes), "attempts": one.attempts}
        self._dataset.tell(one.cell, {"state": state, "error": one.error, "details": one.details, **facts})
