"""Which heads make a behaviour? The commands that find circuits, evaluate, compare and show them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Commands, Device, Dtype, Json, ModelName, Revision, app
from workbench.cli.circuit_pages import by_ablation, circuit_page, page_table
from workbench.cli.workers import Address, Cpus, ExecutorName, Gpus, called, threads
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from workbench.circuits.circuit import Circuit

circuit = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode="markdown", help="Find the heads that make a behaviour, and test how far to believe it."
)
app.add_typer(circuit, name="circuit")

TaskName = Annotated[str, typer.Option("--task", "-t", help="A task of `workbench circuit tasks`, with options as in ioi:corruption=swap, or a .jsonl file.")]
Items = Annotated[int, typer.Option(help="Pairs of prompts to search on.")]
HeldOut = Annotated[int, typer.Option("--held-out", help="Further pairs to evaluate on.")]
Seed = Annotated[int, typer.Option(help="Seed of prompts, bootstrap and random rivals.")]
Metric = Annotated[str | None, typer.Option(help="logit_difference, probability_difference, log_probability or kl; by default the task's own.")]
CircuitFile = Annotated[Path, typer.Argument(help="A circuit, as workbench circuit find writes it.")]


@circuit.command()
def tasks(as_json: Json = False) -> None:
    """List the behaviours that ship with the package.

    Example: `workbench circuit tasks`
    """
    from workbench.circuits.tasks import TASKS

    rows = [{"task": task.name, "what": task.title, "metric": task.metric, "options": dict(task.options), "source": task.source} for task in TASKS.values()]
    if as_json:
        return show.as_json({"tasks": rows})
    made = show.table("task", "what", "options")
    for task in TASKS.values():
        made.add_row(task.name, task.title, "; ".join(f"{name}={'|'.join(values)}" for name, values in task.options.items()))
    return show.result(made)


@circuit.command()
def find(
    *,
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="patching, path, direct, attribution, ig-inputs, ig-activations or codes: how heads are ranked.")] = "patching",
    size: Annotated[int | None, typer.Option(help="So many heads; by default as many as --target takes.")] = None,
    target: Annotated[float, typer.Option(help="The faithfulness to reach on the prompts of the search.")] = 0.8,
    edges: Annotated[int, typer.Option(help="Edges between these heads to measure exactly, the best by first-order score; 0 for none.")] = 40,
    items: Items = 32,
    held_out: HeldOut = 32,
    by: Annotated[str, typer.Option(help="What is held out: item, template, or a fact such as relation.")] = "template",
    metric: Metric = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Search even if the model does the task no better than chance.")] = False,
    labels: Annotated[Path | None, typer.Option("--labels", help="A labels file of this model to add the label circuit_TASK to.")] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="The circuit, .json; its picture goes beside it as .html, its graph as .graphml.")] = Path(
        "circuit.json"
    ),
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    executor: ExecutorName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    as_json: Json = False,
) -> None:
    """Find a circuit on some prompts and evaluate it on others: faithfulness, completeness, minimality under three ablations.

    Example: `workbench circuit find --task ioi --method patching --size 12 --out ioi.json`
    """
    from workbench import models
    from workbench.circuits.asked import find_on
    from workbench.circuits.finding import Search
    from workbench.executors import Wanted
    from workbench.labels import HeadLabels

    how = Search(method, size, target, edges, metric, anyway, seed)
    _check_out(out, items, held_out)
    given = None if labels is None else HeadLabels.load(labels)
    show.hush_libraries()
    how_many = {"task": task, "how": how, "items": items, "held_out": held_out, "by": by}
    if executor != "local":
        made, remarks = called((executor, address, cpus, gpus), Wanted(model, revision, device, dtype), task, find_on, [how_many])[0]
    else:
        threads((executor, address, cpus, gpus))
        loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
        if given is not None:
            given.check_model(loaded.card)
        with show.progress() as say:
            made, remarks = find_on(loaded, **how_many, progress=lambda done, total: say("scoring edges", done, total))
    for remark in remarks:
        show.remark(remark)
    written = _write(made, out)
    if labels is not None:
        written.append(made.labels(given).save(labels))
    return show.as_json({**made.to_json(), "files": written}) if as_json else circuit_page(made, written)


@circuit.command()
def evaluate(
    file: CircuitFile,
    *,
    task: Annotated[str | None, typer.Option("--task", "-t", help="Another task, to see whether the circuit carries it too; by default its own.")] = None,
    model: ModelName = DEFAULT_MODEL,
    items: Annotated[int, typer.Option(help="Pairs of prompts to evaluate on.")] = 32,
    metric: Metric = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts; by default others than the search took.")] = 1000,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    executor: ExecutorName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    as_json: Json = False,
) -> None:
    """Evaluate a circuit on new prompts, or on another task.

    Example: `workbench circuit evaluate ioi.json --task colored_objects --items 32`
    """
    from workbench import models
    from workbench.circuits.asked import evaluate_on
    from workbench.circuits.circuit import Circuit
    from workbench.executors import Wanted

    given = Circuit.load(file)
    show.hush_libraries()
    how = {"circuit": given, "task": task, "items": items, "seed": seed, "metric": metric}
    if executor != "local":
        found, count = called((executor, address, cpus, gpus), Wanted(model, revision, device, dtype), task or given.task, evaluate_on, [how])[0]
    else:
        threads((executor, address, cpus, gpus))
        found, count = evaluate_on(models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark), **how)
    if count < items:
        show.remark(f"{count} of {items} items were not in the search")
    if as_json:
        return show.as_json({"task": task or given.task, "table": found.table.to_dict("records"), "minimality": found.minimality.to_dict("records")})
    return show.result(
        f"{given.card.name}, the circuit for {given.task} ({len(found.heads)} heads) on {count} items of {task or given.task}", by_ablation(found.table)
    )


@circuit.command()
def compare(
    files: Annotated[list[Path], typer.Argument(help="Circuits of one model.")],
    *,
    published: Annotated[
        list[str] | None, typer.Option("--published", help="A published circuit of this model to compare each with, such as ioi; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the permutations.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare circuits of one model, with each other or with published ones: the heads they share, against chance.

    Example: `workbench circuit compare ioi.json colored.json`
    """
    from workbench.circuits.circuit import Circuit
    from workbench.circuits.faithfulness import mask
    from workbench.circuits.published import published as known
    from workbench.circuits.reuse import overlaps

    circuits = [Circuit.load(path) for path in files]
    for other in circuits[1:]:
        other.check_model(circuits[0].card)
    names = [made.task for made in circuits]
    if len(set(names)) < len(names):  # of one task, they are told apart by their files
        names = [f"{made.task} ({path})" for made, path in zip(circuits, files, strict=True)]
    sets = {name: mask(made.card.shape, made.heads) for name, made in zip(names, circuits, strict=True)}
    for one in map(known, published or ()):
        one.check(circuits[0].card)
        sets[f"published: {one.name}"] = one.truth_LH
    table = overlaps(sets, seed=seed)
    return show.as_json({"pairs": table.to_dict("records")}) if as_json else show.result(page_table(table))


@circuit.command(name="show")
def show_circuit(
    file: CircuitFile,
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", "--html", help="Write the picture: .html, a page that works offline, .png or .svg.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the graph as GraphML.")] = None,
    as_json: Json = False,
) -> None:
    """Show a circuit: its heads, edges and faithfulness; as a picture or a graph file on demand.

    Example: `workbench circuit show ioi.json --out ioi.html`
    """
    from workbench.circuits.circuit import Circuit
    from workbench.views.circuit import circuit_figure
    from workbench.views.export import save_figure

    made = Circuit.load(file)
    written = []
    if out is not None:
        written.append(save_figure(circuit_figure(made), out))
    if graphml is not None:
        written.append(made.to_graphml(graphml))
    return show.as_json({**made.to_json(), "files": written}) if as_json else circuit_page(made, written)


def _check_out(out: Path, items: int, held_out: int) -> None:
    if out.suffix != ".json":
        raise InputError(f"--out takes a .json file, got {out}")
    if min(items, held_out) < 1:
        raise InputError("--items and --held-out take 1 or more")


def _write(made: "Circuit", out: Path) -> list[Path]:
    from workbench.views.circuit import circuit_figure
    from workbench.views.page import save_html

    return [made.save(out), save_html(circuit_figure(made), out.with_suffix(".html")), made.to_graphml(out.with_suffix(".graphml"))]
