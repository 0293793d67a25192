"""Who measures? This process, or the workers of an executor: every call of a function of a model is a task of its own, and the values come back in order."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.heads import ModelCard
from workbench.models import HFModel

Progress = Callable[[str, int, int], None]

Each = Callable[[str, Callable[..., Any], Sequence[dict[str, Any]]], list[Any]]
"""Calls a function of a model for each of some arguments, which are plain data as its values are; the text says for people what that is."""


@dataclass
class Crew:
    """Those who measure, all with the model of this `card`, on this kind of `device`, in this `dtype`.

    `workers` says how many calls may run at once, by now; numbers do not depend on it. `cpu_seconds` adds up what the calls took of the processors, all
    threads and workers together; loading is not counted.
    """

    card: ModelCard
    device: str
    dtype: str
    each: Each
    workers: Callable[[], int] = lambda: 1
    cpu_seconds: float = 0.0

    @classmethod
    def here(cls, model: HFModel, progress: Progress = lambda *_: None) -> "Crew":
        """The process itself, one call after the other."""

        def each(what: str, function: Callable[..., Any], calls: Sequence[dict[str, Any]]) -> list[Any]:
            found = []
            for number, call in enumerate(calls):
                progress(what, number, len(calls))
                found.append(function(model, **call))
            progress(what, len(calls), len(calls))
            return found

        return cls(*_described(model), each)

    @classmethod
    def there(cls, each: Each, workers: Callable[[], int]) -> "Crew":
        """Whoever makes the calls; one of them is asked at once what its model is."""
        (described,) = each("model", _described, [{}])
        card, device, dtype = described
        return cls(card, device, dtype, each, workers)

    @classmethod
    def of(cls, given: "HFModel | Crew") -> "Crew":
        """A crew itself, or this process for a model."""
        return given if isinstance(given, Crew) else cls.here(given)

    def run(self, what: str, function: Callable[..., Any], calls: Sequence[dict[str, Any]]) -> list[Any]:
        """What the function gives for each call, in their order. Raises what it raises."""
        found = self.each(what, _clocked, [{"function": function, "call": call} for call in calls]) if calls else []
        self.cpu_seconds += sum(seconds for _, seconds in found)
        return [value for value, _ in found]


class Clock:
    """Seconds of the clock of this process, and of the processors of all who work, since it was made."""

    def __init__(self, crew: Crew) -> None:
        self._crew, self._wall, self._cpu = crew, time.perf_counter(), crew.cpu_seconds

    def read(self, name: str) -> dict[str, float]:
        """Both, by name."""
        return {f"{name}_seconds": time.perf_counter() - self._wall, f"{name}_cpu_seconds": self._crew.cpu_seconds - self._cpu}


def _described(model: HFModel) -> tuple[ModelCard, str, str]:
    return model.card, model.device.type, str(model.dtype).removeprefix("torch.")


def _clocked(model: HFModel, function: Callable[..., Any], call: dict[str, Any]) -> tuple[Any, float]:
    begin = time.process_time()
    return function(model, **call), time.process_time() - begin
