"""What does a worker do of a question? It cuts it into batches, measures one of them, or puts the answer together from all; each finds what is finished.

Whoever does what, the parts lie in the same files under the same names, and hold the same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.batches import Asked, Work
from workbench.errors import InputError
from workbench.executors import Desk, Executor, Outcome, Wanted
from workbench.measure import Progress, answer
from workbench.scores import HeadScores
from workbench.storage import lasting, place

PATIENCE = 60.0
"""Seconds for which a worker waits for a storage that is full or cannot be reached."""


@dataclass(frozen=True)
class Question:
    """A question to a model, whose parts lie under `runs`, an address or a folder that all workers see."""

    wanted: Wanted
    asked: Asked
    runs: str
    label: str = ""
    """What it is called, for people."""

    def work(self, desk: Desk) -> Work:
        """The question at a desk: the model loaded, the prompts built."""
        return desk.made(self.wanted, (self.asked, self.runs), lambda model: Work(model, self.asked, place(self.runs), PATIENCE))


@dataclass(frozen=True)
class OfQuestion:
    """What the tasks of a question have in common."""

    question: Question

    @property
    def wanted(self) -> Wanted:
        """The question's model."""
        return self.question.wanted


@dataclass(frozen=True)
class Cut(OfQuestion):
    """Say which batches a question has: the names of groups of probes, whether they are of its null, and numbers."""

    @property
    def what(self) -> str:
        """What it is, for people."""
        return f"{self.question.label}: prompts"

    def run(self, desk: Desk) -> list[tuple[str, bool, int]]:
        """The batches."""
        work = self.question.work(desk)
        counts = [(group.name, control, work.count(group, control)) for group in work.groups for control in (False, True)]
        return [(name, control, number) for name, control, count in counts for number in range(count)]


@dataclass(frozen=True)
class Batch(OfQuestion):
    """Measure one batch, and keep it; nothing is done if it is there."""

    batch: tuple[str, bool, int]

    @property
    def what(self) -> str:
        """What it is, for people."""
        name, control, number = self.batch
        return f"{self.question.label}: {name}{' (null)' if control else ''}, batch {number}"

    def run(self, desk: Desk) -> None:
        """Measure it."""
        self.question.work(desk).part(*self.batch)


@dataclass(frozen=True)
class Answer(OfQuestion):
    """Put the scores together; a batch that is missing is measured."""

    @property
    def what(self) -> str:
        """What it is, for people."""
        return f"{self.question.label}: scores"

    def run(self, desk: Desk) -> HeadScores:
        """The scores."""
        return answer(self.question.work(desk))


@dataclass(frozen=True)
class Whole:
    """One call of a function that takes a model first, and arguments that are plain data."""

    wanted: Wanted
    what: str
    function: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict, compare=False)

    def run(self, desk: Desk) -> Any:
        """What the function gives."""
        return self.function(desk.model(self.wanted), **self.arguments)


def score_on(executor: Executor, wanted: Wanted, asked: Asked, runs: str, progress: Progress = lambda *_: None) -> HeadScores:
    """What `measure.score` gives, by the workers of an executor; parts lie under `runs`. Raises `InputError` as `score` does, and if a batch was given up."""
    question = Question(wanted, asked, runs, wanted.words)
    batches = _one(executor, Cut(question)).taken()
    executor.submit(*(Batch(question, batch) for batch in batches))
    for number, outcome in enumerate(executor.outcomes()):
        outcome.taken()
        progress(outcome.task.what, number + 1, len(batches))
    return _one(executor, Answer(question)).taken()


def call_on(executor: Executor, wanted: Wanted, what: str, function: Callable[..., Any], calls: Sequence[dict[str, Any]], progress: Progress) -> list[Any]:
    """What a function gives for each of some calls, in their order. The function takes a model and plain data; raises `InputError` as it does."""
    tasks = [Whole(wanted, what, function, arguments) for arguments in calls]
    executor.submit(*tasks)
    place_of = {id(task): number for number, task in enumerate(tasks)}
    found: list[Any] = [None] * len(tasks)
    for done, outcome in enumerate(executor.outcomes()):
        found[place_of[id(outcome.task)]] = outcome.taken()
        progress(what, done + 1, len(tasks))
    return found


def _one(executor: Executor, task: Cut | Answer) -> Outcome:
    executor.submit(task)
    return next(iter(executor.outcomes()))


def runs_for(runs: Any, executor: str) -> str:
    """The address of the runs as text, made absolute. Raises `InputError` if nothing is to be kept, which workers cannot do without."""
    if str(runs) == "-":
        raise InputError(f"--executor {executor} needs a place for finished parts that all workers see: give --runs a folder or an address")
    return lasting(str(runs)) if "://" in str(runs) else str(place(str(runs)).absolute())
