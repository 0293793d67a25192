"""Memory or context? The command that finds both kinds of heads (PH3), prunes one to steer the model, and tells what it costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Device, Dtype, Json, ModelName, Revision, app
from workbench.cli.circuit_pages import page_table
from workbench.errors import InputError, unknown
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from workbench.circuits.ph3 import Ph3


@app.command()
def ph3(
    *,
    steer: Annotated[str, typer.Option(help="context: prune memory heads, so that the text counts; memory: prune context heads.")] = "context",
    model: ModelName = DEFAULT_MODEL,
    relation: Annotated[str, typer.Option(help="The facts to find heads on: capital, language, continent, … (`workbench circuit tasks`).")] = "capital",
    format_: Annotated[str, typer.Option("--format", help="substitution or coherent: how the text states another object.")] = "substitution",
    corruption: Annotated[str, typer.Option(help="What the other prompt changes: both, subject or context.")] = "both",
    score: Annotated[str, typer.Option(help="logits or probabilities: what ranks the heads.")] = "logits",
    items: Annotated[int, typer.Option(help="Conflicts to find heads on.")] = 40,
    validation: Annotated[int, typer.Option(help="Conflicts to choose the number of heads on.")] = 24,
    test: Annotated[int, typer.Option(help="Conflicts to evaluate on, each here and in every relation and format that it is transferred to.")] = 32,
    transfer: Annotated[bool, typer.Option("--transfer/--no-transfer", help="Also evaluate on all other relations and formats.")] = True,
    text_tokens: Annotated[int, typer.Option("--text-tokens", help="Tokens of text for perplexity.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the items.")] = 0,
    labels: Annotated[Path | None, typer.Option("--labels", help="A labels file of this model, which --out will add to.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The labels file; the tables go beside it as .test.csv, .sizes.csv, .transfer.csv.")] = Path(
        "ph3.json"
    ),
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Find memory heads and context heads by path patching on knowledge conflicts, and steer the model by pruning one side (PH3).

    The labels file gets the labels memory and context; `workbench generate PROMPT --labels ph3.json --prune memory` runs without the memory heads.

    Example: `workbench ph3 --steer context --relation capital --out ph3.json`
    """
    from workbench import models
    from workbench.circuits.conflicts import conflict_sets
    from workbench.circuits.ph3 import SCORES, SIDES, choose_side, find
    from workbench.labels import HeadLabels
    from workbench.prompts import Prompts
    from workbench.recipes import haystack_text

    if score not in SCORES:
        raise unknown("score", score, SCORES)
    if min(items, validation, test, text_tokens - 1) < 1:
        raise InputError("--items, --validation and --test take 1 or more, --text-tokens 2 or more")
    side, given = choose_side(steer), None if labels is None else HeadLabels.load(labels)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    if given is not None:
        given.check_model(loaded.card)
    text_T = Prompts.from_text(loaded, haystack_text(None)[0][: 20 * text_tokens]).ids_BT[0, :text_tokens]
    with show.progress() as say:
        say("finding conflicts that the model knows", 0, 4)
        data = conflict_sets(loaded, relation, format_, corruption, counts=(items, validation, test), transfer=transfer, seed=seed)
        found = find(loaded, data, text_T=text_T, score=score, told=say)
    written = [found.labels(given).save(out), *_tables(found, out)]
    if as_json:
        return show.as_json({**found.told(), "edit": {"kind": "zero", "phase": "both", "heads": [str(head) for head in found.heads[side]]}, "files": written})
    _page(found, steer)
    show.result("", f'steer to {steer}: workbench generate "…" --labels {out} --prune {SIDES[steer]}')
    for path in written:
        show.remark(f"written: {path}")
    return None


def _tables(found: "Ph3", out: Path) -> list[Path]:
    from workbench.files import write_text

    tables = {"test": found.table, "sizes": found.sizes, "transfer": found.transfer}
    return [write_text(out.with_suffix(f".{name}.csv"), table.to_csv(index=False)) for name, table in tables.items() if len(table)]


def _page(found: "Ph3", steer: str) -> None:
    from workbench.views.circuit_tables import with_intervals

    facts = found.provenance
    show.result(f"{found.card.name}, {facts['task']}: {', '.join(f'{name} {count}' for name, count in facts['items'].items() if name != 'dropped')} conflicts")
    for side, heads in found.heads.items():
        show.result(f"{side} heads: {', '.join(map(str, heads))}")
    rows = found.table[found.table["steer"] == steer]
    show.result("", f"held-out conflicts, steered to {steer} (shares of answers)", page_table(with_intervals(rows.drop(columns="steer"))))
    for name, reason in facts["left_out"].items():
        show.remark(f"left out: {name}: {reason}")
    if len(found.transfer):
        show.result("", "other relations and formats", page_table(with_intervals(found.transfer)))
