"""What is there? The commands that list models, probes and file formats."""

from typing import Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Json, app


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be fetched by name. A hub id, a local folder or a GGUF file works as well.

    Example: `workbench models`
    """
    from dataclasses import asdict

    from workbench.sources import CATALOGUE, DEFAULT_MODEL
    from workbench.weights import FAMILIES

    if as_json:
        return show.as_json({"default": DEFAULT_MODEL, "models": [asdict(known) for known in CATALOGUE.values()], "architectures": sorted(FAMILIES)})
    table = show.table("name", "what it is", "licence")
    for known in CATALOGUE.values():
        table.add_row(known.name + (" (default)" if known.name == DEFAULT_MODEL else ""), known.about, known.licence)
    return show.result(table, "", f"Also a hub id, a local folder or a GGUF file of: {', '.join(sorted(FAMILIES))}.")


@app.command()
def probes(name: Annotated[str | None, typer.Argument(help="Tell all about one probe.")] = None, as_json: Json = False) -> None:
    """List the probes, one for each kind of head, with what they ask, what they look at and their source.

    Example: `workbench probes retrieval`
    """
    from workbench.probes import PROBES, probe

    chosen = list(PROBES.values()) if name is None else [probe(name)]
    keys = ("name", "question", "evidence", "citation", "null", "about")
    if as_json:
        return show.as_json([{key: getattr(one, key) for key in keys} for one in chosen])
    if name is not None:
        (one,) = chosen
        return show.result(one.about, "", f"evidence  {one.evidence}", f"null      {one.null}", f"source    {one.citation}")
    table = show.table("probe", "question", "evidence", "source")
    for one in chosen:
        table.add_row(one.name, one.question, one.evidence, one.citation)
    return show.result(table)


@app.command()
def formats(as_json: Json = False) -> None:
    """List the file formats that `convert` reads and writes, with what each of them loses.

    Example: `workbench formats`
    """
    from workbench.formats import FORMATS

    keys = ("name", "title", "tools", "granularity", "loss", "uses")
    if as_json:
        return show.as_json([{key: getattr(form, key) for key in keys} for form in FORMATS.values()])
    table = show.table("format", "read by", "heads", "options", "what is lost")
    for form in FORMATS.values():
        table.add_row(form.name, ", ".join(form.tools), form.granularity, " ".join(f"--{use}" for use in form.uses), form.loss)
    return show.result(table)
