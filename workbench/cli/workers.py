"""Who does the work? The options that name an executor, and what the commands do with it."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show

if TYPE_CHECKING:
    from workbench.executors import Executor, Wanted

_PANEL = "Workers"
ExecutorName = Annotated[str, typer.Option("--executor", help="local (this process) or ray (the workers of a Ray cluster).", rich_help_panel=_PANEL)]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="With ray: auto for the cluster that runs on this machine, host:port, or ray://host:port; by default one is begun for this command.",
        rich_help_panel=_PANEL,
    ),
]
Cpus = Annotated[
    int | None, typer.Option("--cpus-per-task", help="Threads of a task; with ray it takes so many CPUs of a node, 1 by default.", rich_help_panel=_PANEL)
]
Gpus = Annotated[
    float | None,
    typer.Option("--gpus-per-task", help="With ray: GPUs that a task takes, such as 1 or 0.5; by default 1 where there are any.", rich_help_panel=_PANEL),
]


@contextmanager
def workers(name: str, address: str | None, cpus: int | None, gpus: float | None) -> Generator["Executor"]:
    """The executor that was asked for, until the command ends. Raises `InputError` as `executor` does."""
    from workbench.executors import executor

    with closing(executor(name, address, cpus, gpus, show.remark)) as found:
        yield found


@contextmanager
def calling(
    chosen: tuple[str, str | None, int | None, float | None], wanted: "Wanted"
) -> Generator[tuple[Callable[[str, Callable[..., Any], Sequence[dict[str, Any]]], list[Any]], Callable[[], int]]]:
    """What makes calls of functions of a model, by the workers that were chosen (the four options in their order), and how many of these there may be by now.

    They keep the model from call to call.
    """
    from workbench.sweeping.tasks import call_on

    with workers(*chosen) as executor, show.progress() as progress:

        def each(what: str, function: Callable[..., Any], calls: Sequence[dict[str, Any]]) -> list[Any]:
            return call_on(executor, wanted, what, function, calls, progress)

        yield each, executor.room


def called(
    chosen: tuple[str, str | None, int | None, float | None],
    wanted: "Wanted",
    what: str,
    function: Callable[..., Any],
    calls: Sequence[dict[str, Any]],
) -> list[Any]:
    """What a function of a model gives for each call, by the workers that were chosen."""
    with calling(chosen, wanted) as (each, _):
        return each(what, function, calls)


def threads(chosen: tuple[str, str | None, int | None, float | None]) -> None:
    """Let this process take the threads that its tasks were given. Raises `InputError` for options that do not concern it."""
    from workbench.executors import executor

    executor(*chosen).close()
    if chosen[2] is not None:
        import torch

        torch.set_num_threads(chosen[2])
