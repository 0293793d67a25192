"""What is a task? Plain data that says which model it wants, and what to do with it; what became of it is an outcome."""

import socket
import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from workbench.errors import InputError
from workbench.models import HFModel, load
from workbench.sources import DEFAULT_MODEL

KEPT = 2
"""How many things that were made for a model a desk keeps at once: such as the prompts of the question at hand, and of the one before."""


@dataclass(frozen=True)
class Wanted:
    """Which model, where and in what precision: what `models.load` is asked for."""

    name: str = DEFAULT_MODEL
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    def load(self) -> HFModel:
        """Load it. Raises `InputError` as `models.load` does."""
        return load(self.name, device=self.device, dtype=self.dtype, revision=self.revision)

    @property
    def words(self) -> str:
        """What it is called: the name, and what differs from the usual."""
        more = [part for part in (self.revision, self.device, self.dtype) if part not in (None, "auto")]
        return f"{self.name} ({', '.join(more)})" if more else self.name


@runtime_checkable
class Task(Protocol):
    """What can be run: `wanted` is the model that must be loaded (None: none), `what` a name for people; `run` does it, and its value is plain data."""

    @property
    def wanted(self) -> Wanted | None: ...
    @property
    def what(self) -> str: ...
    def run(self, desk: "Desk") -> Any: ...


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a task: its `value`, or the `error` that it ended with, in a sentence; `refused` if something given cannot be used, else it is a bug.

    `details` is the traceback of a bug, `seconds` the time it took, loading counted, `node` where it ran, `attempts` how many workers began with it.
    """

    task: Task
    value: Any = None
    error: str = ""
    refused: bool = False
    details: str = ""
    seconds: float = 0.0
    node: str = ""
    attempts: int = 1

    def taken(self) -> Any:
        """The value. Raises `InputError` with the error if there is none, `RuntimeError` if that is a bug."""
        if not self.error:
            return self.value
        raise InputError(self.error) if self.refused else RuntimeError(f"{self.task.what} failed: {self.error}\n{self.details}")


@dataclass
class Desk:
    """Where a worker works: the one model that it has loaded, and what was made for it."""

    wanted: Wanted | None = None
    _model: HFModel | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict)

    def model(self, wanted: Wanted) -> HFModel:
        """The model; another one that is on the desk gives way to it."""
        if self._model is None or wanted != self.wanted:
            self.wanted, self._model, self._made = None, None, {}
            self._model = wanted.load()
            self.wanted = wanted
        return self._model

    def made(self, wanted: Wanted, key: Hashable, make: Callable[[HFModel], Any]) -> Any:
        """What is made for a model, such as prompts: kept for the tasks to come, until others have taken its place."""
        model = self.model(wanted)
        if key not in self._made:
            while len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = make(model)
        return self._made[key]


def spend(task: Task, desk: Desk, threads: int | None = None) -> dict[str, Any]:
    """Run a task at a desk, with so many threads of torch: the fields of its `Outcome`. Whatever it raises becomes the error."""
    begin = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        if threads is not None and task.wanted is not None:
            import torch

            torch.set_num_threads(threads)
        found["value"] = task.run(desk)
    except InputError as error:
        found.update(error=str(error), refused=True)
    except Exception as error:  # noqa: BLE001 - one task's bug must not stop the others; it is told with its traceback
        found.update(error=f"{type(error).__name__}: {error}", details=traceback.format_exc())
    return {"seconds": time.perf_counter() - begin, "node": socket.gethostname(), **found}
