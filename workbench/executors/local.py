"""How are tasks run in this process? One after the other; those of the model that is loaded come before those of another."""

from collections import deque
from collections.abc import Callable, Iterator

from workbench.errors import InputError
from workbench.executors.task import Desk, Outcome, Task, Wanted, spend


class Local:
    """An executor: tasks are submitted, at any time, and `outcomes` gives what became of them until none is left."""

    def __init__(self, address: str | None = None, cpus: int | None = None, gpus: float | None = None) -> None:
        """Raises `InputError` for what cannot concern this process, and for a number out of range."""
        if cpus is not None and cpus < 1:
            raise InputError(f"--cpus-per-task is 1 or more, got {cpus}")
        self._check(address, gpus)
        self._waiting: deque[Task] = deque()
        self._cpus = cpus
        self._desk = Desk()

    def _check(self, address: str | None, gpus: float | None) -> None:
        for option, value in (("--address", address), ("--gpus-per-task", gpus)):
            if value is not None:
                raise InputError(f"{option} concerns --executor ray; the local executor runs tasks in this process, on --device")

    def submit(self, *tasks: Task, first: bool = False) -> None:
        """Give tasks to do: after all others, or before them."""
        if first:
            self._waiting.extendleft(reversed(tasks))
        else:
            self._waiting.extend(tasks)

    def drop(self, useless: Callable[[Task], bool]) -> int:
        """Forget the tasks of a kind that nobody has begun; how many there were."""
        before = len(self._waiting)
        self._waiting = deque(task for task in self._waiting if not useless(task))
        return before - len(self._waiting)

    def outcomes(self) -> Iterator[Outcome]:
        """What became of every task, as they end; tasks may be submitted, or dropped, meanwhile."""
        while self._waiting:
            task = self._next(self._desk.wanted, {self._desk.wanted})
            yield Outcome(task, **spend(task, self._desk, self._cpus))

    def room(self) -> int:
        """How many tasks can run at once, by now."""
        return 1

    def close(self) -> None:
        """Forget what was not begun, and let the model go."""
        self._waiting.clear()
        self._desk = Desk()

    def _next(self, mine: Wanted | None, loaded: set[Wanted | None]) -> Task:
        """The task for a worker that has loaded `mine`: one that wants it, else one whose model nobody has `loaded`, else the first."""
        best, least = 0, len(_DISTANCES)
        for place, task in enumerate(self._waiting):
            if (distance := _distance(task.wanted, mine, loaded)) < least:
                best, least = place, distance
            if not least:
                break
        task = self._waiting[best]
        del self._waiting[best]
        return task


_DISTANCES = ("its own model, or none", "a model that nobody has loaded", "a model that another has loaded")


def _distance(wanted: Wanted | None, mine: Wanted | None, loaded: set[Wanted | None]) -> int:
    """How far a task is from a worker, as a place in `_DISTANCES`."""
    return 0 if wanted in (None, mine) else 2 if wanted in loaded else 1
