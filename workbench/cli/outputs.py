"""What can be done with a labels file? Show it as a map, convert it to another tool's format, check it."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Json, Revision, app
from workbench.errors import InputError
from workbench.heads import ModelCard

LabelsFile = Annotated[Path, typer.Argument(metavar="HEADS.JSON", help="A labels file that `workbench label` wrote.")]


@app.command("show")
def show_map(
    labels_file: LabelsFile,
    probe: Annotated[str | None, typer.Option("--probe", "-p", help="The probe to show first; retrieval by default.")] = None,
    label: Annotated[str | None, typer.Option("--label", "-l", help="Show the scores behind a label and mark just its heads.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figure: .html, a page that works offline, .png or .svg.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Draw in the terminal even with --out.")] = False,
) -> None:
    """Draw the layer × head map: as text in the terminal, or with --out as an HTML page with all probes to choose from.

    Example: `workbench show heads.json --probe induction --out induction.html`
    """
    from workbench import views
    from workbench.labels import HeadLabels

    labels = HeadLabels.load(labels_file)
    panel = views.panel(labels, probe, label)
    if out is not None:
        show.result(f"heat map  {views.save_figure(views.head_map(labels, probe, label), out)}")
    if out is None or text:
        title = f"{labels.card.name}: {panel.title}"
        show.result(views.text_map(panel.score_LH, title=title, marked=panel.marked, meaning=panel.meaning, width=show.width()))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The file or folder to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write.")],
    *,
    from_format: Annotated[str, typer.Option("--from", help="A format of `workbench formats`.")] = "workbench",
    to_format: Annotated[str, typer.Option("--to", help="A format of `workbench formats`.")] = "workbench",
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model, where the file does not tell its shape; no weights are loaded.")] = None,
    revision: Revision = None,
    name: Annotated[str | None, typer.Option(help="What the scores or labels that are read shall be called.")] = None,
    probe: Annotated[str | None, typer.Option("--probe", "-p", help="Whose scores to write.")] = None,
    label: Annotated[str | None, typer.Option("--label", "-l", help="Which heads to write.")] = None,
    reduction: Annotated[str | None, typer.Option(help="How query heads become a KV head: max, mean or min.")] = None,
    sink: Annotated[int | None, typer.Option(help="First tokens that a streaming head keeps.")] = None,
    recent: Annotated[int | None, typer.Option(help="Last tokens that a streaming head keeps.")] = None,
) -> None:
    """Turn head labels into another tool's file, or another tool's file into head labels. What gets lost is said on stderr.

    Example: `workbench convert heads.json duo/ --to duo --reduction max`
    """
    from workbench.formats import FORMATS, Export, read, write

    export = Export(probe=probe, label=label, reduction=reduction, sink=sink, recent=recent)
    labels = read(source, from_format, _card(model, revision), name)
    written = write(labels, target, to_format, export)
    for kind, loss in ((from_format, FORMATS[from_format].loss), (to_format, FORMATS[to_format].loss)):
        if kind != "workbench":
            show.remark(f"{kind}: {loss}", style="yellow")
    for path in written[:4]:
        show.result(str(path))
    if len(written) > 4:
        show.result(f"… and {len(written) - 4} more in {target}")


@app.command()
def validate(
    labels_file: LabelsFile,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Also check that the labels were made for this very model.")] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Check a labels file: schema, shape, every score a number; with --model also that it was made for that model. Exit code 0 or 2.

    Example: `workbench validate heads.json --model smollm2-135m`
    """
    from workbench.labels import SCHEMA, HeadLabels

    labels = HeadLabels.load(labels_file)
    if model is not None:
        from workbench.models import load

        show.hush_libraries()
        labels.check_model(load(model, device="cpu", revision=revision, say=show.remark).card)
    facts = {"file": str(labels_file), "schema": SCHEMA, "model": labels.card.name, "fingerprint": labels.card.fingerprint}
    counts = {"heads": len(labels.labels), "probes": len(labels.scores), "rules": len(labels.rules)}
    if as_json:
        return show.as_json({"valid": True, **facts, **counts, "checked_model": model})
    made_for = f", made for this {labels.card.name}" if model else f" of {labels.card.name}"
    return show.result(f"{labels_file} is valid: {', '.join(f'{count} {name}' for name, count in counts.items())}{made_for} ({SCHEMA})")


def _card(model: str | None, revision: str | None) -> ModelCard | None:
    if model is None:
        if revision is not None:
            raise InputError("--revision belongs to --model, which is missing")
        return None
    from workbench.plan import sketch
    from workbench.sources import locate

    return sketch(locate(model, revision=revision, say=show.remark)).card
