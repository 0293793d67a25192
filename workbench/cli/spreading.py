"""How is a model spread that does not fit? The options that say so, and what they do not go together with."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.models import HFModel

_PANEL = "Large models"
DeviceMap = Annotated[
    str | None,
    typer.Option("--device-map", help="auto spreads layers over the GPUs of this machine, and offloads what does not fit to the CPU.", rich_help_panel=_PANEL),
]
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory", help="With --device-map: GiB that weights may take of each GPU, to leave room for long prompts.", rich_help_panel=_PANEL),
]
TensorParallel = Annotated[
    bool, typer.Option("--tensor-parallel", help="Spread the heads over the processes that torchrun started, one per GPU.", rich_help_panel=_PANEL)
]


def check_workers(executor: str, spread: Mapping[str, Any]) -> None:
    """Raise `InputError` where other workers than this process are to load a model that is spread; `spread` is what `models.load` takes of it."""
    if executor != "local" and any(value is not None and value is not False for value in spread.values()):
        raise InputError(
            f"--device-map, --gpu-memory and --tensor-parallel spread the model of this process; with --executor {executor} each task loads its own"
        )


def by_all(model: "HFModel", function: Callable[..., Any], *given: Any, **how: Any) -> Any:
    """What a function of a model gives, which tells its progress. Of the processes that share the heads, the first goes on from here; the others end."""
    with show.progress() if is_first(model) else nullcontext(_silent) as progress:
        found = function(model, *given, **how, progress=progress)
    others_end(model)
    return found


def others_end(model: "HFModel") -> None:
    """Let all processes that share a model's heads end but the first, when all that takes them together is done."""
    if not is_first(model):
        raise typer.Exit


def is_first(model: "HFModel") -> bool:
    """Whether this process is the one that speaks, of those that share a model's heads."""
    return model.shards is None or not model.shards.rank


def _silent(what: str, done: int, total: int) -> None:
    """The progress of a process that does not speak."""
