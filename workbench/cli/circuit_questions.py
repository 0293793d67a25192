"""What do patching, codes and pruning tell of a task's heads? The commands behind three views of the dashboard: each writes a file that the page reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Device, Dtype, Json, ModelName, Revision
from workbench.cli.circuit_pages import page_table
from workbench.cli.circuits import Metric, Seed, TaskName, circuit
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 15
"""Rows on the page; the files have all."""

Out = Annotated[Path, typer.Option("--out", "-o", help="The answer, .json, as the dashboard shows it; its table goes beside it as .csv.")]


@circuit.command()
def patch(
    *,
    kind: Annotated[str, typer.Option(help="path: what a head sends straight to a receiver; activation: what a component of a head carries.")] = "path",
    task: TaskName = "ioi",
    prompts: Annotated[int, typer.Option(help="Pairs of prompts, 1 to 64.")] = 4,
    receiver: Annotated[str, typer.Option(help="Where paths end: logits, or parts of heads such as L20H0.q, joined by +.")] = "logits",
    component: Annotated[str, typer.Option(help="What activation patching exchanges: z, q, k, v or pattern.")] = "z",
    ablation: Annotated[str, typer.Option(help="What takes its place: resample, mean or zero.")] = "resample",
    direction: Annotated[str, typer.Option(help="noising: clean prompts run, and get of the corrupted; denoising: the other way round.")] = "noising",
    positions: Annotated[str, typer.Option(help="all, or last: where something is exchanged.")] = "all",
    metric: Metric = None,
    seed: Seed = 0,
    model: ModelName = DEFAULT_MODEL,
    out: Out = Path("patched.json"),
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Patch every head of a model in turn, along its path to a receiver or one component of it, and tell what the metric loses.

    Example: `workbench circuit patch --task ioi --receiver L23H3.q --positions last --prompts 4`
    """
    from workbench import models
    from workbench.circuits.patch_question import PatchQuestion, patched
    from workbench.views.patching import patched_text

    asked = PatchQuestion(kind, task, prompts, receiver, component, ablation, direction, positions, metric, seed)
    _check(out)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    with show.progress() as say:
        say("patching", 0, 1)
        found = patched(loaded, asked, lambda done, total: say("patching", done, total))
    rows = found.table
    written = [found.save(out), _table(rows, out)]
    if as_json:
        return show.as_json({"facts": found.facts, "table": rows.to_dict("records"), "files": written})
    return _shown(patched_text(found, shades=False), rows, written)


@circuit.command()
def codes(
    *,
    task: TaskName = "ioi",
    prompts: Annotated[int, typer.Option(help="Pairs of prompts, 5 or more: the autoencoder learns from ten prompts.")] = 10,
    seed: Seed = 0,
    model: ModelName = DEFAULT_MODEL,
    out: Out = Path("codes.json"),
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Score heads by the codes of a small sparse autoencoder, beside chance, the size of what they write, and its variety.

    Example: `workbench circuit codes --task ioi --prompts 10`
    """
    from workbench import models
    from workbench.circuits.coded import coded
    from workbench.circuits.tasks import prepare

    _check(out)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    with show.progress() as say:
        found = coded(loaded, prepare(loaded, task, prompts, seed), seed, say)
    written = [found.save(out), _table(found.table, out)]
    if as_json:
        return show.as_json({"pairs": found.pairs, "agreement": found.agreement, "table": found.table.to_dict("records"), "files": written})
    agreed = ", ".join(f"{name} {measures['spearman']:.2f}" for name, measures in found.agreement.items())
    said = f"{loaded.name}, {found.task}: codes of {found.pairs} pairs of prompts. Rank correlation with the controls (Spearman): {agreed}"
    return _shown(said, found.table.sort_values("codes", ascending=False), written)


@circuit.command()
def prune(
    *,
    labels: Annotated[Path | None, typer.Option("--labels", help="A file of `workbench ph3`, whose scores rank the heads; without, they are measured.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the scores on these conflicts all the same.")] = False,
    relation: Annotated[str, typer.Option(help="The facts that conflicts are about: capital, language, continent, …")] = "capital",
    items: Annotated[int, typer.Option(help="Conflicts to answer.")] = 8,
    model: ModelName = DEFAULT_MODEL,
    out: Out = Path("pruned.json"),
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Answer conflicts of memory and context with 0, 1, 2, … heads of either side pruned.

    Example: `workbench circuit prune --labels ph3.json --relation capital --items 8`
    """
    import pandas as pd

    from workbench import models
    from workbench.circuits.pruned import prune as pruned
    from workbench.labels import HeadLabels

    _check(out)
    given = None if labels is None else HeadLabels.load(labels)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    with show.progress() as say:
        found = pruned(loaded, relation, items, given, measure=measure, told=say)
    rows = pd.concat([curve.assign(pruned=side) for side, curve in found.curves.items()], ignore_index=True)
    rows.insert(0, "pruned", rows.pop("pruned"))
    written = [found.save(out), _table(rows, out)]
    if as_json:
        return show.as_json({"items": len(found.items), "origin": found.origin, "measured": found.now, "table": rows.to_dict("records"), "files": written})
    said = f"{loaded.name}: {len(found.items)} conflicts about {relation}, {found.origin}; shares of answers"
    return _shown(said, rows[["pruned", "heads", "memory", "context", "other", "clean"]], written, len(rows))


def _check(out: Path) -> None:
    if out.suffix != ".json":
        raise InputError(f"--out takes a .json file, got {out}")


def _table(rows: "pd.DataFrame", out: Path) -> Path:
    from workbench.files import write_text

    return write_text(out.with_suffix(".csv"), rows.to_csv(index=False))


def _shown(said: str, rows: "pd.DataFrame", written: list[Path], count: int = SHOWN) -> None:
    show.result(said, "", page_table(rows.head(count)))
    for path in written:
        show.remark(f"written: {path}")
