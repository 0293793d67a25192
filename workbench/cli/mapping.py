"""Where does one head look? The command that draws a map of its attention."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Chunk, Device, Dtype, Implementation, Json, ModelName, Revision, app
from workbench.cli.spreading import DeviceMap, GpuMemory
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

Range = Annotated[str | None, typer.Option(help="Tokens begin:end, such as 4096:5120; all by default.")]


@app.command("map")
def attention_map(
    *,
    text: Annotated[Path, typer.Option("--text", help="A text file, which is the prompt.")],
    head: Annotated[str, typer.Option("--head", help="The head, such as L17H3.")],
    model: ModelName = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="The figure to write: .html, a page that works offline, .png or .svg.")] = Path("map.html"),
    queries: Range = None,
    keys: Range = None,
    cells: Annotated[int, typer.Option(help="The most cells along a side; a smaller rectangle shows more of itself, down to single tokens.")] = 1024,
    tokens: Annotated[int | None, typer.Option(help="Use so many tokens of the text, from its start.")] = None,
    reducer: Annotated[str, typer.Option(help="max or sum of the probabilities in a block.")] = "max",
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    implementation: Implementation = "auto",
    chunk: Chunk = None,
    device_map: DeviceMap = None,
    gpu_memory: GpuMemory = None,
    as_json: Json = False,
) -> None:
    """Draw where one head looks on a long text, as a page: pooled where there are more tokens than cells, exact where there are not.

    Example: `workbench map --text book.txt --head L17H3 --queries 4000:5000 --keys 0:1000 --out map.html`
    """
    from workbench import mapping, models, views
    from workbench.prompts import Prompts
    from workbench.recipes import haystack_text

    shown = _range(queries, "--queries"), _range(keys, "--keys")
    views.check_ending(out)
    content, digest = haystack_text(text)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, device_map=device_map, gpu_memory=gpu_memory, say=show.remark)
    prompts = Prompts.from_text(loaded, content)
    if tokens is not None:
        if not 0 < tokens <= prompts.length:
            raise InputError(f"--tokens takes 1 to {prompts.length}, which the text has; got {tokens}")
        prompts = Prompts(prompts.ids_BT[:, :tokens])
    options = {"cells": cells, "reducer": reducer, "implementation": implementation, "chunk": chunk}
    made = mapping.attention_map(loaded, prompts, head, queries=shown[0], keys=shown[1], **options)
    page = views.save_figure(views.attention_figure(made, loaded.name), out)
    facts = {"head": str(made.head), "tokens": made.tokens, "block": made.block, "exact": made.exact, "cells": list(made.value_UV.shape), "text": digest}
    if as_json:
        show.as_json({**facts, **made.provenance, "map": str(page)})
    else:
        if warning := made.provenance.get("warning"):
            show.remark(f"warning: {warning}", style="yellow")
        kind = "exact cells" if made.exact else f"the {reducer} of blocks of {made.block} × {made.block}"
        show.result(f"{loaded.name} {made.head}, {made.tokens} tokens: {made.value_UV.shape[0]} × {made.value_UV.shape[1]} cells, {kind}, in {page}")


def _range(text: str | None, option: str) -> tuple[int, int] | None:
    """A range such as 4096:5120. Raises `InputError` naming the option."""
    if text is None:
        return None
    begin, colon, end = text.partition(":")
    if not (colon and begin.isdecimal() and end.isdecimal() and int(begin) < int(end)):
        raise InputError(f"{option} takes a range of tokens begin:end, such as 4096:5120; got {text!r}")
    return int(begin), int(end)
