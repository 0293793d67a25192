"""Where does one head look on a long prompt? The command that makes the map which the dashboard shows, and keeps it."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Device, Dtype, Json, ModelName, Revision, app
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL


@app.command("long-map")
def long_map(
    *,
    head: Annotated[str, typer.Option("--head", help="The head, such as L17H3.")],
    model: ModelName = DEFAULT_MODEL,
    length: Annotated[int, typer.Option(help="About so many tokens: of a needle test, or of the text from its start.")] = 8192,
    depth: Annotated[float, typer.Option(help="The depth of the needle, 0 (start) to 1 (end).")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the needle and of its place in the haystack.")] = 0,
    text: Annotated[Path | None, typer.Option("--text", help="A text file, which is the prompt instead of a needle test.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, .npz.")] = Path("map.npz"),
    bare: Annotated[bool, typer.Option("--bare", help="Write a small file, which shows the whole map in blocks, no part of it larger.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Make the map of one head on a long prompt, of which the dashboard shows any part, down to single cells.

    Example: `workbench long-map --head L17H3 --length 8192 --depth 0.5 --out map.npz`
    """
    from workbench import kept_maps, long_maps, models
    from workbench.heads import Head

    content = "" if text is None else _text(text)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    asked = kept_maps.Asked(loaded.card.fingerprint, Head.parse(head), length, depth, seed, kept_maps.text_name(content) if content else "")
    with show.progress() as tell:
        kept = long_maps.long_map(loaded, asked, content, lambda share: tell("layers of the model, %", int(100 * share), 100))
    kept = kept.bare() if bare else kept
    path = kept.save(out)
    if as_json:
        show.as_json({**kept.facts, "map": str(path)})
        return
    if warning := kept.facts.get("warning"):
        show.remark(f"warning: {warning}", style="yellow")
    found = "" if (share := kept.facts.get("needle_share")) is None else f"; the rows that give the answer put {share:.3f} of their attention on the needle"
    show.result(f"{loaded.name} {kept.head}: {kept.length} tokens in blocks of {kept.block} × {kept.block}{found}; in {path}")


def _text(path: Path) -> str:
    from workbench.kept_maps import text_of

    try:
        return text_of(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read the text {path}: {error.strerror}") from error
