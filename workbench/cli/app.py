"""What do all commands share? The application, its way with errors, and the options of the commands that measure."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from workbench.cli import show
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from workbench.needles import NeedleTests


class Commands(TyperGroup):
    """Turns an `InputError` into one line on stderr and exit code 2; whatever else is raised is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            _check_alone()
            return super().invoke(ctx)
        except InputError as error:
            if "--verbose" in sys.argv:
                show.remark(traceback.format_exc())
            rank = os.environ.get("RANK", "0")  # torchrun's number of this process
            show.remark(f"workbench{f' (process {rank})' if rank != '0' else ''}: {error}", style="bold red")
            raise typer.Exit(2) from error


def _check_alone() -> None:
    """Raise `InputError` where torchrun started several processes that would all do the same."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if started > 1 and "--tensor-parallel" not in sys.argv:
        raise InputError(
            f"torchrun started {started} processes, and each would do all of this; to spread the heads of one model over them add --tensor-parallel, "
            "which label, score, generate and verify have; all else is started without torchrun"
        )


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> bool:
    if not asked:
        return asked
    try:
        typer.echo(f"workbench {version('attention-head-workbench')}")
    except PackageNotFoundError:
        typer.echo("workbench, run from a source tree that is not installed")
    raise typer.Exit


@app.callback()
def workbench(
    _version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """From a prompt to an attention-head classification: prompts → capture → scores → labels → files.

    Results go to stdout, progress and remarks to stderr. Exit codes: 0 it worked; 2 something given cannot be used, and the message says
    what would work; 1 a bug.

    Example: `workbench label --model smollm2-135m --out heads.json`
    """


def numbers(text: str | None, kind: Callable[[str], Any], option: str) -> tuple | None:
    """A comma-separated option such as `300,600` as a tuple, None if it was not given. Raises `InputError` naming the option."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} takes numbers separated by commas, such as {'300,600' if kind is int else '0.1,0.5'}; got {text!r}") from error


def needle_tests(usual: "NeedleTests", lengths: str | None, depths: str | None, per_cell: int, needles: Path | None, haystack: Path | None) -> "NeedleTests":
    """The usual tests of a command with what its options change. Raises `InputError` naming the option."""
    changed = {"lengths_": numbers(lengths, int, "--lengths"), "depths": numbers(depths, float, "--depths"), "needles": needles}
    return replace(usual, **{name: value for name, value in changed.items() if value}, per_cell=per_cell, haystack=haystack)


def _place(text: str | Path) -> Any:
    from workbench.storage import place

    return place(text)


_WHERE, _TESTS = "Model", "Tests"
_MODEL = "A name of `workbench models`, a hub id, a local folder, or a GGUF file."
ModelName = Annotated[str, typer.Option("--model", "-m", help=_MODEL, rich_help_panel=_WHERE)]
AnyModel = Annotated[str | None, typer.Option("--model", "-m", help=_MODEL, rich_help_panel=_WHERE, show_default=DEFAULT_MODEL)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=_WHERE)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=_WHERE)]
Dtype = Annotated[str, typer.Option(help="auto (float32 on the CPU, else bfloat16), float32, bfloat16 or float16.", rich_help_panel=_WHERE)]
Implementation = Annotated[
    str,
    typer.Option(help="How attention is read: reference, torch, triton, or auto (triton for long prompts on CUDA, else torch).", rich_help_panel=_WHERE),
]
Chunk = Annotated[
    int | None, typer.Option(help="Run prompts in pieces of so many tokens, if their activations do not fit into memory.", rich_help_panel=_WHERE)
]
SampleRows = Annotated[
    int | None, typer.Option(help="Read so many evenly strided rows instead of all; the evidence has the standard errors.", rich_help_panel=_TESTS)
]
Probes = Annotated[
    list[str] | None, typer.Option("--probe", "-p", help="A probe of `workbench probes`; may be given several times. All by default.", rich_help_panel=_TESTS)
]
Preset = Annotated[str, typer.Option(help="quick (minutes on a laptop) or paper (the papers' sizes).", rich_help_panel=_TESTS)]
Seed = Annotated[int, typer.Option(help="Seed of the prompts and of the bootstrap.", rich_help_panel=_TESTS)]
Lengths = Annotated[str | None, typer.Option(help="Lengths of needle tests in tokens, such as 300,600.", rich_help_panel=_TESTS)]
Length = Annotated[
    int | None, typer.Option(help="Length of every prompt in tokens, such as 32768; fewer prompts are made as they grow.", rich_help_panel=_TESTS)
]
Depths = Annotated[str | None, typer.Option(help="Depths of the needle, 0 (start) to 1 (end), such as 0.1,0.5,0.9.", rich_help_panel=_TESTS)]
Needles = Annotated[Path | None, typer.Option(help="A file of needles of your own, JSON lines with needle and question.", rich_help_panel=_TESTS)]
Haystack = Annotated[Path | None, typer.Option(help="A text file to hide the needles in.", rich_help_panel=_TESTS)]
Runs = Annotated[
    Path,
    typer.Option(
        envvar="WORKBENCH_RUNS",
        help="A folder, or an address such as s3://bucket/runs, that keeps finished parts: a killed or repeated run goes on from them. - keeps nothing.",
        parser=_place,
        metavar="PATH",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also show what libraries say, and the traceback of an error.")]
