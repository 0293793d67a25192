"""Does a head increment? The command that shows one head class by class."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show
from workbench.cli.app import Device, Dtype, Json, ModelName, Revision, app
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.table import Table


@app.command()
def successor(
    *,
    head: Annotated[str | None, typer.Option("--head", help="The head, such as L5H3; by default the strongest of all.")] = None,
    words: Annotated[str | None, typer.Option("--class", help="Show token by token what the head writes most within a class, such as days.")] = None,
    model: ModelName = DEFAULT_MODEL,
    raw: Annotated[bool, typer.Option("--raw", help="Without any norm, as in a re-implementation, instead of with all of them.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Draw the matrix of the class: .html, a page that works offline, .png or .svg.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Show how far a head writes the successor of what it looks at, for each class of words, from weights alone, with the controls.

    Example: `workbench successor --head L23H3 --class ordinals`
    """
    from workbench import models, views
    from workbench.heads import Head
    from workbench.successor import head_table, in_class, strongest
    from workbench.token_circuits import RAW, Norms
    from workbench.weights import Weights

    if out is not None and words is None:
        raise InputError("--out draws the matrix of a class; name it, such as --class days")
    if out is not None:
        views.check_ending(out)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    weights, norms = Weights(loaded.weights, loaded.shape, None, loaded.tokenizer), RAW if raw else Norms()
    chosen = Head.parse(head) if head is not None else strongest(weights, norms)
    table = head_table(weights, chosen, norms)
    seen = None if words is None else in_class(weights, chosen, words, norms=norms)
    title = f"{loaded.name} {chosen}: {words}, norms {norms.describe()}"
    page = None if out is None or seen is None else views.save_figure(views.class_figure(seen.logits_TC, seen.texts, title), out)
    pairs = (
        [] if seen is None else [dict(zip(("token", "writes", "successor"), row, strict=True)) for row in zip(seen.texts, seen.best, seen.right, strict=True)]
    )
    facts = {"model": loaded.name, "head": str(chosen), "norms": norms.describe(), "classes": table.to_dict("records")}
    files = {} if page is None else {"page": str(page)}
    if as_json:
        return show.as_json({**facts, **({"class": words, "tokens": pairs} if pairs else {}), **files})
    inside = ["", _tokens(pairs)] if pairs else []
    return show.result(
        f"{loaded.name} {chosen}, norms: {norms.describe()}", "", _classes(facts["classes"]), *inside, *(f"\nmatrix  {file}" for file in files.values())
    )


def _classes(rows: list[dict[str, Any]]) -> "Table":
    """A line for each class; held-out ones have a star."""
    from workbench.successor.table import MEASURES

    names = ("tokens", *MEASURES)
    words = ("tokens", "score", "itself", "before", "all tokens", "no MLP0", "raw", "shuffled", "chance")
    shown = show.table("class", *words, numbers=words)
    for row in rows:
        cells = (f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in names)
        shown.add_row(row["class"] + ("*" if row["held_out"] else ""), *cells)
    return shown


def _tokens(pairs: list[dict[str, Any]]) -> "Table":
    """A line for each token of a class."""
    shown, marks = show.table("looks at", "writes most", ""), {True: "successor", False: "", None: "has no successor"}
    for row in pairs:
        shown.add_row(repr(row["token"]), repr(row["writes"]), marks[row["successor"]])
    return shown
