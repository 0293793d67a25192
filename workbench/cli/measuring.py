"""What kind is each head? The commands that run a model."""

import time
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show, summary
from workbench.cli.app import (
    AnyModel,
    Chunk,
    Depths,
    Device,
    Dtype,
    Haystack,
    Implementation,
    Json,
    Length,
    Lengths,
    ModelName,
    Needles,
    Preset,
    Probes,
    Revision,
    Runs,
    SampleRows,
    Seed,
    Verbose,
    app,
    numbers,
)
from workbench.cli.publishing import taken
from workbench.cli.spreading import DeviceMap, GpuMemory, TensorParallel, by_all, check_workers, is_first
from workbench.cli.workers import Address, Cpus, ExecutorName, Gpus, threads, workers
from workbench.errors import InputError, unknown
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from workbench.models import HFModel
    from workbench.options import Options
    from workbench.scores import HeadScores

LONG = 60
"""Seconds from which on a run is announced with its cost."""


@app.command()
def label(
    *,
    from_: Annotated[str | None, typer.Option("--from", help="Take labels that were published, owner/name on the hub, or a folder; nothing is scored.")] = None,
    model: AnyModel = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The labels file; the heat map is written beside it.")] = Path("heads.json"),
    probe: Probes = None,
    preset: Preset = "quick",
    rule: Annotated[list[str] | None, typer.Option("--rule", help="Change a rule's value, such as retrieval=0.2; may be given several times.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    implementation: Implementation = "auto",
    chunk: Chunk = None,
    length: Length = None,
    lengths: Lengths = None,
    depths: Depths = None,
    needles: Needles = None,
    haystack: Haystack = None,
    sample_rows: SampleRows = None,
    runs: Runs = Path("runs"),
    executor: ExecutorName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    device_map: DeviceMap = None,
    gpu_memory: GpuMemory = None,
    tensor_parallel: TensorParallel = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find out what each attention head of a model does, and write the head classification as JSON with a heat map beside it.

    Example: `workbench label --model smollm2-135m --probe retrieval --probe induction --rule retrieval=0.2 --out heads.json`
    """
    asked = dict(locals())
    from workbench import labels as labelling
    from workbench import views
    from workbench.rules import rules_with

    if from_ is not None:
        return taken(asked, {name: parameter.default for name, parameter in signature(label).parameters.items()})
    begin = time.perf_counter()
    rules = rules_with(rule or ())
    _check_labels_file(out)
    for name in [change.partition("=")[0] for change in rule or () if probe and rules[change.partition("=")[0]].probe not in probe]:
        raise InputError(f"--rule {name} needs --probe {rules[name].probe}, which is not among the chosen ones")
    scores = _measure(asked, sample_rows, verbose)
    labels = labelling.label(scores, rules)
    files = {"labels": labels.save(out)}
    if labels.scores:
        files["heat_map"] = views.save_html(views.head_map(labels), out.with_suffix(".html"))
    seconds = time.perf_counter() - begin
    if as_json:
        return show.as_json(summary.as_data(scores, labels, files, seconds))
    return summary.as_text(scores, labels, files, seconds)


@app.command()
def score(
    *,
    model: ModelName = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A .parquet or .csv file; without it the table goes to stdout as CSV.")] = None,
    probe: Probes = None,
    preset: Preset = "quick",
    agreement: Annotated[bool, typer.Option("--agreement", help="Show how far each two probes agree about the heads.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    implementation: Implementation = "auto",
    chunk: Chunk = None,
    length: Length = None,
    lengths: Lengths = None,
    depths: Depths = None,
    needles: Needles = None,
    haystack: Haystack = None,
    sample_rows: SampleRows = None,
    runs: Runs = Path("runs"),
    executor: ExecutorName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    device_map: DeviceMap = None,
    gpu_memory: GpuMemory = None,
    tensor_parallel: TensorParallel = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score every head and give the tidy table: model, layer, head, probe, score, n, spread, 95% interval, null.

    Example: `workbench score --model smollm2-135m --probe induction --probe previous_token --out scores.parquet`
    """
    asked, begin = dict(locals()), time.perf_counter()
    if out is not None and out.suffix not in summary.TABLES:
        raise unknown("kind of table", out.suffix or out.name, summary.TABLES)
    scores = _measure(asked, sample_rows, verbose)
    if out is not None:
        summary.TABLES[out.suffix](scores, out)
    if as_json:
        show.as_json(summary.scores_as_data(scores, out, agreement, time.perf_counter() - begin))
    else:
        summary.scores_as_text(scores, out, agreement)


def options_of(length: int | None, lengths: str | None, depths: str | None, needles: Path | None, haystack: Path | None) -> "Options":
    """What the options of the command line change about the prompts."""
    from workbench.options import Options

    return Options(length, numbers(lengths, int, "--lengths"), numbers(depths, float, "--depths"), needles, haystack)


def _check_labels_file(out: Path) -> None:
    if out.suffix == ".html":
        raise InputError(f"--out is the labels file, {out.with_suffix('.json')} say; the heat map goes beside it, with the ending .html")
    if out.is_dir():
        raise InputError(f"{out} is a folder; --out is the labels file, {out / 'heads.json'} say")


def _measure(asked: Mapping[str, Any], sample_rows: int | None, verbose: bool) -> "HeadScores":
    """Load the model and score it, as a command's options ask; a wrong probe or preset is found before anything is loaded.

    Of the processes that a model's heads are spread over, the first goes on from here; the others are done.
    """
    from workbench import groups as grouping
    from workbench import implementations, measure, models
    from workbench.batches import Asked
    from workbench.executors import Wanted
    from workbench.groups import Way
    from workbench.sweeping.tasks import runs_for, score_on

    name, probes, preset, seed, runs = asked["model"] or DEFAULT_MODEL, asked["probe"], asked["preset"], asked["seed"], asked["runs"]
    options = options_of(*(asked[key] for key in ("length", "lengths", "depths", "needles", "haystack")))
    way = Way(asked["implementation"], asked["chunk"], sample_rows)
    groups = grouping.plan(probes, preset, options)
    if not verbose:
        show.hush_libraries()
    spread = {key: asked[key] for key in ("device_map", "gpu_memory", "tensor_parallel")}
    check_workers(asked["executor"], spread)
    place = {key: asked[key] for key in ("revision", "device", "dtype")}
    chosen = tuple(asked[key] for key in ("executor", "address", "cpus", "gpus"))
    if chosen[0] != "local":
        question = Asked(None if probes is None else tuple(probes), preset, seed, options, way)
        with workers(*chosen) as executor, show.progress() as progress:
            return score_on(executor, Wanted(name, **place), question, runs_for(runs, chosen[0]), progress)
    threads(chosen)
    model = models.load(name, **place, **spread, say=show.remark)
    implementations.choose(way.implementation, model.device, 1)  # what cannot run shows before prompts are built
    how: dict[str, Any] = {"preset": preset, "seed": seed, "runs": None if str(runs) == "-" else runs, "options": options, "way": way}
    if is_first(model):
        _announce(model, groups)
    return by_all(model, measure.score, probes, **how)


def _announce(model: "HFModel", groups: list) -> None:
    """Say on stderr what a long run will cost, and that it may not fit into memory."""
    import psutil

    from workbench import plan as planning

    kind, away = model.devices[0].type if model.devices else model.device.type, planning.away(model)
    cost = planning.estimate(planning.size_of(model), planning.passes_of(model, groups), device=kind, dtype_bytes=model.dtype.itemsize, offloaded=away)
    if cost.seconds > LONG:
        show.remark(f"{model.name}: {cost.words}")
    if model.device.type == "cpu" and cost.bytes > (free := psutil.virtual_memory().available):
        show.remark(f"this machine has {free / 2**30:.1f} GiB free; shorter --lengths or fewer --probe take less", style="yellow")
