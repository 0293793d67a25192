"""Which attention sinks hurt? The command that searches the heads to calibrate, and shows what that does on held-out questions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show
from workbench.cli.app import Device, Dtype, Json, ModelName, Revision, app, numbers
from workbench.cli.spreading import by_all
from workbench.cli.workers import Address, Cpus, ExecutorName, Gpus, calling, threads
from workbench.errors import InputError, unknown
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from workbench.calibration import Calibration
    from workbench.executors import Wanted
    from workbench.labels import HeadLabels

RULE_NAMES = {"alpha": "share", "absolute": "absolute", "uniform": "uniform"}
"""The rules for sinks as the command calls them (`workbench.edits.RULES`); alpha is the paper's α/N."""

TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        "--task", help="category, follows, recall (all three by default); a .jsonl file with prompt, options, answer; or hf:owner/name:split?…; repeatable."
    ),
]
RuleName = Annotated[str, typer.Option(help="What is a sink: alpha (more than α/N, the paper), absolute, or uniform (a multiple of a uniform head's).")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The labels file; the tables go beside it as .heads.csv and .heldout.csv.")]


@app.command()
def calibrate(
    *,
    model: ModelName = DEFAULT_MODEL,
    task: TaskNames = None,
    examples: Annotated[int, typer.Option(help="Questions of each task to search on.")] = 100,
    held_out: Annotated[int, typer.Option("--held-out", help="Further questions of each task to evaluate on.")] = 100,
    beta: Annotated[float, typer.Option(help="The share of their attention that sinks keep, 0–1.")] = 0.4,
    rule: RuleName = "alpha",
    threshold: Annotated[float | None, typer.Option(help="α, the share, or the multiple; by default 5, 0.1, 5.")] = None,
    screen: Annotated[float, typer.Option(help="The share of the candidates that is measured, chosen by first-order effect; 1.0 for all.")] = 0.15,
    sample: Annotated[int, typer.Option(help="Heads measured beside these, at random, to see how good the screening is.")] = 8,
    layers: Annotated[str | None, typer.Option(help="Layers of the candidates, such as 4,5,6; by default all but the first two and the last.")] = None,
    random_sets: Annotated[int, typer.Option("--random-sets", help="Sets of random heads to compare with.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the split, of the order of questions, and of the sample.")] = 0,
    labels: Annotated[Path | None, typer.Option("--labels", help="A labels file of this model, which --out will add to.")] = None,
    out: Out = Path("calibrated.json"),
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    executor: ExecutorName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    as_json: Json = False,
) -> None:
    """Find the heads that answer better with their attention sinks calibrated (ACT), and evaluate them on held-out questions.

    One head at a time, screened by first-order effect, each left when enough is known. The labels file marks the kept heads with the label `calibrate`.

    Example: `workbench calibrate --task category --task recall --examples 40 --held-out 40 --out calibrated.json`
    """
    from workbench import calibration
    from workbench.edits import Calibrate, SinkRule
    from workbench.executors import Wanted
    from workbench.labels import HeadLabels
    from workbench.questions import TASKS, questions_of

    if out.suffix != ".json":
        raise InputError(f"--out is a .json file, not {out}")
    if rule not in RULE_NAMES:
        raise unknown("rule", rule, RULE_NAMES)
    if random_sets < 0:
        raise InputError(f"--random-sets is 0 or more, got {random_sets}")
    edit = Calibrate(beta=beta, rule=SinkRule(RULE_NAMES[rule], threshold))
    setting = calibration.Setting(edit, screen, sample, numbers(layers, int, "--layers"), seed=seed)
    asked = calibration.Asked(tuple(task or TASKS), examples, held_out, seed)
    for source in asked.tasks:
        if not source.startswith("hf:"):
            questions_of(source)  # what cannot be used shows before anything is loaded
    given = None if labels is None else HeadLabels.load(labels)
    show.hush_libraries()
    how = {"asked": asked, "setting": setting, "seeds": tuple(range(random_sets))}
    found = _found((executor, address, cpus, gpus), Wanted(model, revision, device, dtype), how, given)
    _show(found, _written(found, given, out), as_json)


def _found(chosen: tuple[str, str | None, int | None, float | None], wanted: "Wanted", how: dict[str, Any], given: "HeadLabels | None") -> "Calibration":
    """The calibration, made here, or by the workers that were chosen."""
    from workbench import calibration, models

    if chosen[0] == "local":
        threads(chosen)
        loaded = models.load(wanted.name, device=wanted.device, dtype=wanted.dtype, revision=wanted.revision, say=show.remark)
        if given is not None:
            given.check_model(loaded.card)
        return by_all(loaded, calibration.calibrate, **how)
    with calling(chosen, wanted) as (each, room):
        crew = calibration.Crew.there(each, room)
        if given is not None:
            given.check_model(crew.card)
        return calibration.calibrate_by(crew, **how)


def _written(found: "Calibration", given: "HeadLabels | None", out: Path) -> dict[str, Path]:
    """The labels, and beside them the tables."""
    from workbench.files import write_text

    return {
        "labels": found.labels(given).save(out),
        "heads": write_text(out.with_suffix(".heads.csv"), found.search.table.to_csv(index=False)),
        "held_out": write_text(out.with_suffix(".heldout.csv"), found.held_out.to_csv(index=False)),
    }


def _show(found: "Calibration", files: dict[str, Path], as_json: bool) -> None:
    """Kept heads, the held-out table, the cost."""
    if as_json:
        measured, held = (table.to_dict("records") for table in (found.search.table, found.held_out))
        kept = [str(head) for head in found.search.kept]
        return show.as_json({"kept": kept, "heads": measured, **found.told(), "held_out": held, "provenance": found.provenance, "files": files})
    columns = ("heads", "task", "n", "accuracy", "difference", "95%", "fixed", "broken", "p")
    table = show.table(*columns, numbers=columns[2:])
    for row in found.held_out.to_dict("records"):
        name = f"random {row['seed']:.0f} ({row['count']})" if row["heads"] == "random" else f"{row['heads']} ({row['count']})"
        interval = f"{row['difference_low']:+.1%} – {row['difference_high']:+.1%}"
        counts = (str(row["n"]), f"{row['accuracy']:.1%}", f"{row['difference']:+.1%}", interval, str(row["fixed"]), str(row["broken"]), f"{row['p']:.3f}")
        table.add_row(name, row["task"], *counts)
    search, cost = found.search, found.search.cost
    kept = ", ".join(map(str, search.kept)) or "none"
    agreement = search.agreement.get("measured", {})
    spearman = f"; screening and exact effects agree with Spearman {agreement['spearman']:.2f}" if agreement else ""
    return show.result(
        f"{found.card.name}: {len(search.table)} of {len(search.candidates)} candidates measured{spearman}",
        f"kept ({len(search.kept)}): {kept}",
        table,
        f"search {cost['screening_seconds'] + cost['measuring_seconds']:.0f} s; the full search would take about {_hours(cost['full_seconds'])}, "
        f"and as single passes {_hours(cost['naive_seconds'])}",
        *found.remarks,
        f"labels {files['labels']}, heads {files['heads']}, held out {files['held_out']}",
    )


def _hours(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
