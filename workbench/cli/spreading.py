"""How is a model spread that does not fit? The options that say so, and what they do not go together with."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from workbench.errors import InputError

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


def check_workers(asked: Mapping[str, Any]) -> None:
    """Raise `InputError` where other workers than this process are to load a model that is spread."""
    if asked["executor"] != "local" and (asked["device_map"] is not None or asked["tensor_parallel"]):
        raise InputError(f"--device-map and --tensor-parallel spread the model of this process; with --executor {asked['executor']} each task loads its own")
