"""What do the heads of many models do? The commands that sweep over models, prompts, seeds and edits, and compare what came of it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show
from workbench.cli.app import Json, Probes, app
from workbench.cli.workers import Address, Cpus, ExecutorName, Gpus, workers
from workbench.errors import InputError
from workbench.jobs.job import spent

if TYPE_CHECKING:
    import pandas as pd

    from workbench.sweeping import Dataset, Sweep

_SWEPT = "Swept"


@app.command()
def sweep(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A YAML file with models, probes, preset, prompts, seeds, edits, way.")] = None,
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model, or a pattern such as 'run/step-*' for several; may be given several times.", rich_help_panel=_SWEPT),
    ] = None,
    probe: Probes = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="A seed of prompts; may be given several times.", rich_help_panel=_SWEPT)] = None,
    length: Annotated[list[int] | None, typer.Option("--length", help="Tokens of every prompt; may be given several times.", rich_help_panel=_SWEPT)] = None,
    preset: Annotated[str | None, typer.Option(help="quick or paper.", rich_help_panel=_SWEPT)] = None,
    ablate: Annotated[
        list[str] | None, typer.Option("--ablate", help="Heads to take away, such as L5H1,L7H2; may be given several times.", rich_help_panel=_SWEPT)
    ] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="A folder, or an address that fsspec knows; what is finished there is not done again.")] = "sweep",
    plan: Annotated[bool, typer.Option("--plan", help="Say what it takes, and do nothing.")] = False,
    executor: ExecutorName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    as_json: Json = False,
) -> None:
    """Score many models, under many prompts, seeds and edits; the result is one table in a folder of Parquet files.

    What it takes is said first. Interrupted or killed, it goes on from what is finished when the same command is given again; a model or prompt that fails is
    written down with its error, and stops nothing else: then the exit code is 3.

    Example: `workbench sweep --model smollm2-135m --probe induction --probe previous_token --seed 0 --seed 1 --out sweep`
    """
    from workbench.storage import lasting, place
    from workbench.sweeping import Dataset, planned, run

    asked, dataset = _asked(file, model, probe, seed, length, preset, ablate), Dataset(place(lasting(out)))
    show.hush_libraries()
    costs = planned(asked, dataset.finished(), _device(executor, gpus), show.remark)
    if plan:
        return show.as_json({"plan": costs.to_dict("records")}) if as_json else show.result(_plan_page(costs))
    show.remark(_sum(costs))
    dataset = Dataset(place(str(place(out).absolute()) if "://" not in out else out))
    with workers(executor, address, cpus, gpus) as chosen, show.progress() as progress:
        done = run(asked, dataset, chosen, progress)
    _tell(dataset, done.found, done.made, done.failed, as_json)
    if done.failed:
        raise typer.Exit(3)
    return None


@app.command()
def compare(
    source: Annotated[str, typer.Argument(metavar="SWEEP", help="The folder or address of a sweep.")],
    *,
    probe: Annotated[str, typer.Option("--probe", "-p", help="The probe to compare by.")],
    base: Annotated[str | None, typer.Option(help="The version that the others are compared with; by default the first by name.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the table of heads, .csv or .parquet.")] = None,
    as_json: Json = False,
) -> None:
    """Compare the versions of a model in a sweep, head by head: base, instruct, quantised, checkpoints, precisions.

    Example: `workbench compare sweep --probe induction --base smollm2-135m --out versions.csv`
    """
    from workbench import views
    from workbench.storage import place
    from workbench.sweeping import Dataset
    from workbench.sweeping import compare as compared

    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out is a .csv or .parquet file, not {out}")
    heads, pairs = compared(Dataset(place(source)).table(), probe, base)
    written = None if out is None else views.save_table(heads, out)
    if as_json:
        return show.as_json({"pairs": pairs.to_dict("records"), "heads": heads.to_dict("records"), "file": written})
    table = show.table(*pairs.columns, numbers=("seed", "spearman", "top10_overlap", "largest", "apart"))
    for row in pairs.to_dict("records"):
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    apart = heads[heads["apart"]]
    strongest = apart.reindex(apart["difference"].abs().sort_values(ascending=False).index).head(10)
    lines = [f"L{row['layer']}H{row['head']}: {row['base']:.3f} → {row['score']:.3f} in {row['version']}" for row in strongest.to_dict("records")]
    return show.result(
        table, "", "heads whose 95% intervals are apart, the largest differences first:" if lines else "no head's 95% intervals are apart", *lines
    )


def _asked(
    file: Path | None,
    model: list[str] | None,
    probe: list[str] | None,
    seed: list[int] | None,
    length: list[int] | None,
    preset: str | None,
    ablate: list[str] | None,
) -> "Sweep":
    """The sweep of a file, with what options change of it."""
    from workbench.sweeping import Sweep

    given: dict[str, Any] = {}
    if model:
        given["models"] = model
    if probe:
        given["probes"] = probe
    if seed:
        given["seeds"] = seed
    if length:
        given["prompts"] = [{"length": one} for one in length]
    if preset:
        given["preset"] = preset
    if ablate:
        given["edits"] = ["none", *({"name": f"without {heads}", "ablate": heads.split(",")} for heads in ablate)]
    options = Sweep.parse(given)
    if file is None:
        return options
    return replace(Sweep.load(file), **{name: getattr(options, name) for name in given})


def _device(executor: str, gpus: float | None) -> str | None:
    """The kind of device that a plan is made for: with Ray, what its tasks take."""
    return None if executor == "local" or gpus is None else "cuda" if gpus else "cpu"


def _plan_page(costs: "pd.DataFrame") -> Any:
    from workbench.sweeping.planning import COLUMNS

    names = [name if name != "hours" else "time" for name in COLUMNS]
    table = show.table(*names, numbers=tuple(names[1:]))
    for row in [*costs.to_dict("records"), {"model": "in all", **costs.drop(columns=["model", "gib"]).sum().to_dict(), "gib": costs["gib"].max()}]:
        table.add_row(
            row["model"], f"{row['cells']:,.0f}", f"{row['tasks']:,.0f}", f"{row['tokens']:,.2f}", f"{row['gib']:.1f}", spent(float(row["hours"]) * 3600)
        )
    return table


def _sum(costs: "pd.DataFrame") -> str:
    cells, tasks, hours = (costs[name].sum() for name in ("cells", "tasks", "hours"))
    todo = f"{cells:,} cell{'' if cells == 1 else 's'} to do, {tasks:,} tasks"
    return f"{todo}, about {spent(hours * 3600)} of one worker, {costs['gib'].max():.1f} GiB each; --plan tells it by model"


def _tell(dataset: "Dataset", found: int, made: int, failed: dict[str, str], as_json: bool) -> None:
    if as_json:
        return show.as_json({"found": found, "made": made, "failed": failed, "scores": str(dataset.root / "scores")})
    lines = [f"{what}: {error}" for what, error in failed.items()]
    there = [f"scores    {dataset.root / 'scores'}: pandas.read_parquet opens it as one table"] if found or made else []
    return show.result(f"cells     {found:,} found, {made:,} made, {len(failed):,} failed", *lines, *there)
