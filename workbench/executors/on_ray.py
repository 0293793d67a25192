"""How are tasks run on a Ray cluster? By workers, Ray actors that keep one model loaded each; as many as the cluster has room for.

1. Connect; refuse a cluster whose nodes have no room for one task. 2. Hire a worker for every task, up to that room, which is looked at again as nodes come and
go; refuse to go on where one has other versions. 3. A worker that is free takes a task, of its own model if there is one. 4. A worker that dies is replaced,
and its task goes to another; a task whose workers died `ATTEMPTS` times is given up, as it may kill them.
"""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.executors.local import Local
from workbench.executors.task import Desk, Outcome, Task, Wanted, spend
from workbench.runs import versions

try:
    import ray
    from ray.exceptions import RayActorError, RayError

    from workbench.executors.joining import LOST, join
except ImportError as missing:
    raise InputError("--executor ray needs Ray; install it with: pip install 'attention-head-workbench[ray]'") from missing

ATTEMPTS = 4
"""How many workers may die on a task before it is given up."""

UNBORN = 40
"""How many workers, one after the other, may be killed before they have begun."""

QUIET = (15.0, 60.0)
"""Seconds without any worker until it is said what is waited for, and until it is said again."""

LOOK = 2.0
"""Seconds between two looks at what room the cluster has."""


class Worker:
    """An actor: one desk on some node, in the folder of who asks, so that the names of files mean the same."""

    def __init__(self, threads: int, folder: str) -> None:
        self._desk, self._threads = Desk(), threads
        with suppress(OSError):  # a node that does not have it can do without, unless such a name is asked for
            os.chdir(folder)

    def ready(self) -> tuple[str, dict[str, str]]:
        """Its node and its versions, once it is there."""
        return socket.gethostname(), versions()

    def run(self, task: Task) -> dict[str, Any]:
        """Run a task: the fields of its outcome but the task itself, which who asked has."""
        return spend(task, self._desk, self._threads)


@dataclass
class _Hired:
    """A worker as this process sees it: what it has been asked (None: to begin), and the model that it was last asked to load."""

    actor: Any
    task: Task | None = None
    wanted: Wanted | None = None


class OnRay(Local):
    """An executor whose tasks run on a Ray cluster; see `executor`."""

    def __init__(self, address: str | None = None, cpus: int | None = None, gpus: float | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(address, cpus, gpus)
        self._say, self._speak = say, 0.0
        self._own = join(address)
        nodes = _nodes()
        if gpus is None:
            gpus = 1 if any(node["Resources"].get("GPU") for node in nodes) else 0
        self._needs = {"CPU": float(cpus or 1), "GPU": float(gpus)}
        self._busy: dict[Any, _Hired] = {}
        self._free: list[_Hired] = []
        self._deaths: Counter[int] = Counter()
        self._unborn = 0
        self._looked = 0.0
        try:
            self._check_room(nodes)
        except InputError:
            self.close()
            raise

    def _check(self, address: str | None, gpus: float | None) -> None:
        if gpus is not None and gpus < 0:
            raise InputError(f"--gpus-per-task is 0 or more, got {gpus}")

    def outcomes(self) -> Iterator[Outcome]:
        """What became of every task, as they end; tasks may be submitted meanwhile.

        Raises `InputError` if workers cannot begin, or have other versions, and if a Ray Client server is no longer there.
        """
        try:
            yield from self._ended()
        except LOST as error:
            raise InputError("the Ray cluster can no longer be reached; what is finished lies where it was written") from error

    def _ended(self) -> Iterator[Outcome]:
        self._speak = time.monotonic() + QUIET[0]
        while self._waiting or any(one.task is not None for one in self._busy.values()):
            self._hire()
            self._say_what_is_waited_for()
            while self._free and self._waiting:
                self._assign(self._free.pop())
            if not self._busy:
                time.sleep(LOOK)  # no node has room; one may come
                continue
            done, _ = ray.wait(list(self._busy), timeout=LOOK)
            for reference in done:
                outcome = self._heard(reference)
                if outcome is not None:
                    yield outcome

    def room(self) -> int:
        """How many workers the cluster has room for, by now, if nobody else has any."""
        return sum(map(self._room, _nodes()))

    def close(self) -> None:
        """Stop all workers, and the cluster if it is its own; what they have finished lies where it was written."""
        self._waiting.clear()
        with suppress(*LOST):  # workers end with a Ray Client server that is lost
            for hired in [*self._busy.values(), *self._free]:
                ray.kill(hired.actor)
        self._busy, self._free = {}, []
        if self._own:
            ray.shutdown()

    def _hire(self) -> None:
        """Begin as many workers as there are tasks, and room; nobody knows when a node comes or goes, so that it is looked at again and again."""
        there = len(self._busy) + len(self._free)
        wanted = len(self._waiting) + sum(one.task is not None for one in self._busy.values())
        if there >= wanted or time.monotonic() < self._looked:
            return
        self._looked = time.monotonic() + LOOK
        nodes = _nodes()
        self._check_room(nodes)
        needs = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs["GPU"]}
        for _ in range(min(wanted, sum(self._room(node) for node in nodes)) - there):
            actor: Any = ray.remote(Worker).options(**needs, scheduling_strategy="SPREAD").remote(int(self._needs["CPU"]), str(Path.cwd()))
            self._busy[actor.ready.remote()] = _Hired(actor)

    def _say_what_is_waited_for(self) -> None:
        """Say, once per so often, that no worker has begun: others may have all of the cluster, for hours."""
        now = time.monotonic()
        if self._free or any(one.task is not None for one in self._busy.values()):
            self._speak = now + QUIET[0]
        elif now >= self._speak:
            self._speak = now + QUIET[1]
            all_, free = ray.cluster_resources(), ray.available_resources()
            there = ", ".join(f"{free.get(name, 0):g} of {all_.get(name, 0):g} {name}s" for name, need in self._needs.items() if need)
            self._say(f"no worker has begun yet, each takes {self._asked}; free are {there}, the rest is held by others or by workers that are beginning")

    @property
    def _asked(self) -> str:
        """What a worker takes, in words."""
        return ", ".join(f"{need:g} {name}{'s' * (need != 1)}" for name, need in self._needs.items() if need)

    def _assign(self, hired: _Hired) -> None:
        others = {one.wanted for one in [*self._busy.values(), *self._free]}
        hired.task = self._next(hired.wanted, others)
        hired.wanted = hired.task.wanted or hired.wanted
        self._busy[hired.actor.run.remote(hired.task)] = hired

    def _heard(self, reference: Any) -> Outcome | None:
        """What a worker says: that it is there, what became of its task; or nothing more, as it is dead."""
        hired = self._busy.pop(reference)
        task, hired.task = hired.task, None
        try:
            said = ray.get(reference)
        except RayActorError as error:
            ray.kill(hired.actor)
            self._looked = 0.0
            return self._not_born(error) if task is None else self._died(task, error)
        except RayError as error:
            self._free.append(hired)
            return None if task is None else Outcome(task, error=f"{type(error).__name__}: {error}", attempts=self._attempts(task))
        self._free.append(hired)
        if task is not None:
            return Outcome(task, **said, attempts=self._attempts(task))
        self._unborn = 0
        _check_versions(*said)
        return None

    def _not_born(self, error: RayActorError) -> None:
        """Try again, unless workers cannot begin: what one raises by itself tells that sooner than that one after the other is killed."""
        self._unborn += UNBORN // ATTEMPTS if error.actor_init_failed else 1
        if self._unborn >= UNBORN:
            raise InputError(f"workers cannot begin, the last of several ended so: {str(error).strip().splitlines()[-1]}") from error

    def _died(self, task: Task, error: RayActorError) -> Outcome | None:
        self._deaths[id(task)] += 1
        if self._deaths[id(task)] < ATTEMPTS:
            self.submit(task, first=True)
            return None
        reason = str(error).strip().partition("\n")[0]
        del self._deaths[id(task)]
        return Outcome(task, error=f"{ATTEMPTS} workers died on it, the last so: {reason}", refused=True, attempts=ATTEMPTS)

    def _attempts(self, task: Task) -> int:
        return self._deaths.pop(id(task), 0) + 1

    def _room(self, node: dict[str, Any]) -> int:
        """How many workers a node has room for."""
        return int(min(node["Resources"].get(name, 0) // need for name, need in self._needs.items() if need))

    def _check_room(self, nodes: list[dict[str, Any]]) -> None:
        if any(self._room(node) for node in nodes):
            return
        most = {name: max((node["Resources"].get(name, 0) for node in nodes), default=0) for name in self._needs}
        there = f"at most {most['CPU']:g} CPUs and {most['GPU']:g} GPUs"
        raise InputError(f"a task takes {self._asked}, and no node of the cluster has that: {there}; see --cpus-per-task and --gpus-per-task")


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _check_versions(node: str, theirs: dict[str, str]) -> None:
    """Raise `InputError` if a worker would run other code than this process has."""
    if other := {name: f"{theirs.get(name)} instead of {value}" for name, value in versions().items() if theirs.get(name) != value}:
        told = "; ".join(f"{name} {words}" for name, words in other.items())
        raise InputError(f"node {node} has other versions than this process: {told}; results would not be the same")
