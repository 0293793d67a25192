"""Where are a text's sinks? The command that shows them, with what makes them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from workbench.cli import show
from workbench.cli.app import Chunk, Device, Dtype, Implementation, Json, ModelName, Revision, app
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    import pandas as pd

    from workbench.sinks import Sinks

SHOWN = 8
"""Rows of each part of the page; the JSON has all."""


@app.command()
def sinks(
    *,
    model: ModelName = DEFAULT_MODEL,
    text: Annotated[Path | None, typer.Option("--text", help="A text file; by default the language reference that every Python carries.")] = None,
    tokens: Annotated[int, typer.Option(help="Use so many tokens of the text, from its start.")] = 256,
    sink_rule: Annotated[
        list[str] | None, typer.Option("--sink-rule", help="Change the value of alpha_n, absolute or uniform, such as alpha_n=3; may be given several times.")
    ] = None,
    tail: Annotated[float, typer.Option(help="The share of last positions that are not looked at, as few rows see them; 0 takes all, as papers do.")] = 0.25,
    top: Annotated[int, typer.Option(help="How many of the largest activations of each layer to show.")] = 3,
    conversation: Annotated[
        Path | None,
        typer.Option("--conversation", help="Score a conversation's answers by their attention to the user instead: a JSON list of role and content."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    implementation: Implementation = "auto",
    chunk: Chunk = None,
    as_json: Json = False,
) -> None:
    """Show where sinks are on a text, rule by rule, with massive activations, no-op heads and norms; or who looks at a conversation's user.

    Example: `workbench sinks --model smollm2-135m --text book.txt --tokens 512 --sink-rule alpha_n=3`
    """
    from workbench import models
    from workbench.conversations import load_conversation
    from workbench.prompts import Prompts
    from workbench.recipes import haystack_text
    from workbench.sink_rules import counted, sink_rules_with
    from workbench.sinks import find_sinks, turns

    if conversation is not None and (text is not None or sink_rule):
        raise InputError("--conversation takes neither --text nor --sink-rule: it shows attention to the user, no sinks")
    rules, messages = sink_rules_with(sink_rule or ()), None if conversation is None else load_conversation(conversation)
    counted(1, tail)
    content, digest = haystack_text(text)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    way: dict[str, Any] = {"implementation": implementation, "chunk": chunk}
    if messages is not None:
        return _show_turns(turns(loaded, messages, **way), loaded.name, as_json)
    prompts = Prompts.from_text(loaded, content[: 20 * max(tokens, 1)])
    if not 2 <= tokens <= prompts.length:
        raise InputError(f"--tokens takes 2 to {prompts.length}, which the text has; got {tokens}")
    found = find_sinks(loaded, Prompts(prompts.ids_BT[:, :tokens]), rules=rules, tail=tail, top=top, **way)
    return _show_json(found, digest) if as_json else _show_page(found)


def _show_json(found: "Sinks", digest: str) -> None:
    tables = {"positions": found.positions(), "massive_dimensions": found.dimensions()}
    tables |= {"sinks": found.sinks, "layers": found.layers, "heads": found.heads, "massive": found.massive}
    every = [
        {"position": position, "token": token, "received_mean": float(mean), "received_max": float(most)}
        for position, (token, mean, most) in enumerate(zip(found.tokens, found.received_LHK.mean((0, 1)), found.received_LHK.max((0, 1)), strict=True))
    ]
    show.as_json({"model": found.card.name, "text": digest, "received": every, **{k: v.to_dict("records") for k, v in tables.items()}, **found.provenance})


def _show_page(found: "Sinks") -> None:
    heads = found.card.shape.n_layers * found.card.shape.n_heads
    show.result(f"{found.card.name}, {len(found.tokens)} tokens, {heads} heads")
    positions = found.positions()
    for name in ("first", *found.provenance["rules"]):
        part = positions[positions["rule"] == name]
        show.result("", f"sinks by the rule {name}: {len(found.sinks[found.sinks['rule'] == name])} on {len(part)} positions")
        if len(part):
            show.result(_table(part.drop(columns="rule").head(SHOWN)))
    dimensions = found.dimensions()
    show.result("", f"massive activations: {len(dimensions)} places")
    show.result(_table(dimensions.head(SHOWN) if len(dimensions) else found.massive.nlargest(SHOWN, "ratio")))
    no_ops, numbers = found.heads[found.heads["no_op"]], found.heads[["mass", "update", "value_first", "value_rest", "key_first", "key_rest", "cosine"]]
    show.result("", f"no-op heads: {len(no_ops)} of {heads}; means over all heads:", _table(numbers.mean().to_frame().T))
    shown = found.layers[[name for name in found.layers if not name.startswith("mean ")]]
    show.result("", "by layer: shares of heads with sinks, and of the block's output", _table(shown.rename(columns=lambda name: name.removeprefix("sinks "))))


def _show_turns(found: "pd.DataFrame", model: str, as_json: bool) -> None:
    if as_json:
        return show.as_json({"model": model, "turns": found.to_dict("records")})
    chosen = found[found["paper"]]
    words = [f"turn {row.turn}: {row.score:.3f}, {'' if row.context_dependent else 'not '}context-dependent (layer {row.layer})" for row in chosen.itertuples()]
    return show.result(model, *words, "", _table(found.drop(columns="paper")))


def _table(frame: "pd.DataFrame") -> Table:
    made = show.table(*map(str, frame.columns), numbers=tuple(name for name in map(str, frame.columns) if name not in ("token", "layers")))
    for row in frame.itertuples(index=False):
        made.add_row(
            *(f"{cell:.3g}" if isinstance(cell, float) else repr(cell) if name == "token" else str(cell) for name, cell in zip(frame, row, strict=True))
        )
    return made
