"""How do labels get to others? The command that publishes a labels file on the Hugging Face hub, or writes the same folder to this disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import show
from workbench.cli.app import Json, app
from workbench.cli.outputs import LabelsFile
from workbench.errors import InputError


@app.command()
def publish(
    labels_file: LabelsFile,
    *,
    to: Annotated[str, typer.Option("--to", help="The repository on the hub, owner/name.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder only; nothing leaves this machine.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder, new or empty; by default the second part of --to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository, if it has to be made.")] = False,
    as_json: Json = False,
) -> None:
    """Publish head labels: a page that explains them, their report, and the files of every tool, as a repository of the Hugging Face hub.

    Scores that lie beside the labels as scores.parquet, and are the same, go along. `workbench label --from owner/name` reads the labels again.

    Example: `workbench publish heads.json --to owner/heads-of-my-model --dry-run`
    """
    from workbench import publishing

    if private and dry_run:
        raise InputError("--private is for a repository that is made; --dry-run makes none")
    made = publishing.folder_of(labels_file, to, out or Path(to.rpartition("/")[2]))
    if not dry_run:
        made = publishing.push(made, to, private=private)
    if as_json:
        return show.as_json({"folder": str(made.folder), "files": list(made.files), "left_out": made.left_out, "address": made.address or None})
    for name, reason in made.left_out.items():
        show.remark(f"not written: {name}: {reason}", style="yellow")
    return show.result(f"folder    {made.folder}: {', '.join(made.files)}", *([f"published {made.address}"] if made.address else []))


TAKES = ("from_", "out", "model", "revision", "as_json", "verbose", "runs")
"""The options of `label` that may be given with --from."""


def taken(asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Write the labels that somebody published to `out`, after a look whether they are of the model, if one is named; `asked` are the options of `label`.

    Raises `InputError` for those that are not `TAKES` and differ from their defaults.
    """
    from workbench import publishing

    if unused := [name for name, value in asked.items() if name not in TAKES and value != defaults[name]]:
        raise InputError(f"labels that are fetched are not made anew, so that --{unused[0].replace('_', '-')} has no use with --from")
    labels = publishing.fetch(asked["from_"], asked["revision"])
    if asked["model"] is not None:
        from workbench.models import load

        show.hush_libraries()
        labels.check_model(load(asked["model"], device="cpu", say=show.remark).card)
    path, card = labels.save(asked["out"]), labels.card
    if asked["as_json"]:
        return show.as_json({"labels": str(path), "from": asked["from_"], "model": card.name, "fingerprint": card.fingerprint, "counts": labels.counts()})
    told = ", ".join(f"{count} {label}" for label, count in labels.counts().items())
    return show.result(f"labels    {path}, of {card.name}: {told}")
