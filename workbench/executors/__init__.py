"""Who runs the tasks? This process, one after the other, or the workers of a Ray cluster: the same tasks, the same results.

A task is plain data that says which model it wants and what to do with it. A worker keeps one model loaded and takes its tasks in turn. A task that fails for
its own reasons is an outcome with an error; one whose worker dies is given to another.
"""

from collections.abc import Callable

from workbench.errors import unknown
from workbench.executors.local import Local
from workbench.executors.task import Desk, Outcome, Task, Wanted, spend

EXECUTORS = {"local": "this process, one task after the other", "ray": "the workers of a Ray cluster"}
"""The executors by name."""

Executor = Local
"""What all executors have: `submit`, `outcomes`, `close`; Ray's is a `Local` whose tasks run elsewhere."""


def executor(
    name: str = "local", address: str | None = None, cpus: int | None = None, gpus: float | None = None, say: Callable[[str], None] = lambda _: None
) -> Executor:
    """An executor by name; `address` is that of a Ray cluster (`auto`: the one of this machine; ray://host:port: through Ray Client; None: one of its own).

    `cpus` are the threads of a task, and with Ray what it takes of a node's, `gpus` the GPUs; `say` is told what tasks wait for.

    Raises `InputError` for an unknown name, for options that do not concern it, without Ray, where no cluster is at the address, and where its nodes have
    too little or other versions.
    """
    if name not in EXECUTORS:
        raise unknown("executor", name, EXECUTORS)
    if name == "local":
        return Local(address, cpus, gpus)
    from workbench.executors.on_ray import OnRay

    return OnRay(address, cpus, gpus, say)


__all__ = ["EXECUTORS", "Desk", "Executor", "Local", "Outcome", "Task", "Wanted", "executor", "spend"]
