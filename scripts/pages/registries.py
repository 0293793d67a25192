"""What can be chosen? Rules, file formats, reads, edits and tasks, each as a page made of its registry."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pages.markdown import WIDE, after_first_line, code, fields_table, language, link, table
from pages.probes import named
from workbench.circuits.tasks import METRICS, TASKS
from workbench.edits import FIND, KINDS, PHASES, RULES, Edit
from workbench.formats import FORMATS, Format
from workbench.reads import BLOCK_READS, READS
from workbench.rules import RULES as LABELS
from workbench.rules import rule_text


def rules() -> str:
    """Every threshold."""
    rows = [(code(rule.label), named(rule.probe), rule_text(rule), rule.source, rule.chance) for rule in LABELS.values()]
    intro = (
        "A rule says when a score makes a label. A head must also score above its own null. `workbench label --rule retrieval=0.2` changes a value, and the "
        "labels file records that it was changed. What the kinds of rules mean: [`Rule`][workbench.rules.Rule]."
    )
    return f"{WIDE}# Rules\n\n{intro}\n\n{table(('label', 'probe', 'rule', 'source', 'what a random head gets'), rows)}\n"


def formats() -> str:
    """Every file format: which tools read it, what it takes, what it loses."""
    intro = "`workbench convert` writes and reads them, and the dashboard offers them for download."
    return "\n\n".join(["# File formats of other tools", intro, *(_format(form) for form in FORMATS.values())])


def _format(form: Format) -> str:
    facts = [
        ("read by", ", ".join(form.tools)),
        ("its rows are", {"query": "query heads", "kv": "KV heads"}[form.granularity]),
        ("options", ", ".join(code(f"--{use}") for use in form.uses) or "none"),
        ("what is lost", form.loss),
        ("as head labels again", _read_back(form)),
    ]
    about = inspect.getdoc(inspect.getmodule(form.writes)) or ""
    examples = [f"workbench convert heads.json TARGET --to {form.name}"] if form.name != "workbench" else []
    return "\n\n".join(
        [f"## {code(form.name)}: {form.title} {{ #format-{form.name} }}", about, table(("", ""), facts), *(language("sh", line) for line in examples)]
    )


def _read_back(form: Format) -> str:
    shape = "the file tells the model's shape" if form.knows_shape else "needs `--model`, as the file does not tell the model's shape"
    return shape if form.reads_as is None else f"{shape}; called {code(form.reads_as)} unless `--name` says otherwise"


def reads() -> str:
    """Every read: its shape, range and unit, and what it takes."""
    layer = [_kind(read, "read") for read in READS]
    block = [_kind(read, "read") for read in BLOCK_READS]
    intro = (
        "A read says what to observe in a forward pass, as data. [`capture`][workbench.captures.capture] takes any number of them. "
        "Shapes: B prompts, L layers, H query heads, G KV heads, R chosen rows, K keys, E head size, D model size."
    )
    return "\n\n".join(["# Reads", intro, "## Of attention and predictions", *layer, "## Of the residual stream", *block])


def edits() -> str:
    """Every edit: what it changes, and what it takes."""
    meanings = {
        "Ablate": [("kind", KINDS), ("phase", PHASES)],
        "Calibrate": [("find", FIND), ("kind of `SinkRule`", {name: words for name, (_, words) in RULES.items()})],
    }
    parts = [_kind(edit, "edit", meanings.get(edit.__name__, ())) for edit in get_args(Edit)]
    return "\n\n".join(["# Edits", "An edit says what to change in a forward pass, as data. `capture` and `generate` take any number of them.", *parts])


def _kind(kind: type, what: str, meanings: Iterable[tuple[str, Mapping[str, str]]] = ()) -> str:
    about = inspect.getdoc(kind) or ""
    tables = [
        f"{name if '`' in name else code(name)}:\n\n{table(('', ''), [(code(one), words) for one, words in words_of.items()])}" for name, words_of in meanings
    ]
    heading = f"### {code(kind.__name__)} {{ #{what}-{kind.__name__.lower()} }}"
    return "\n\n".join([heading, about, fields_table(kind), *tables, f"Everything it can do: {link(kind)}."])


def tasks() -> str:
    """Every task of the circuits: what its prompts are, how they are corrupted, and one of them."""
    intro = "A task gives pairs of prompts, one of which shows a behaviour. `workbench circuit find --task NAME` takes them; a file of JSON lines works too."
    return "\n\n".join(["# Tasks", intro, f"Metrics: {', '.join(map(code, METRICS))}.", *(_task(task) for task in TASKS.values())])


def _task(task: Any) -> str:
    options = [(f"option {code(name)}", f"{code(values[0])} by default; {', '.join(map(code, values[1:]))}") for name, values in task.options.items()]
    item = next(task.draw(0, "", (lambda text: len(text.split())) if task.sized else None))
    facts = [
        ("metric", task.metric),
        *options,
        ("source", task.source),
        ("a clean prompt", _one_line(item.clean)),
        ("its corrupted one", _one_line(item.corrupted)),
        ("right", ", ".join(map(_one_line, item.right))),
        ("wrong", _few([_one_line(text) for text in item.wrong])),
    ]
    return "\n\n".join([f"## {code(task.name)} {{ #task-{task.name} }}", f"**{task.title}**", after_first_line(task.about), table(("", ""), facts)])


def _one_line(text: str) -> str:
    return code(text.replace("\n", "⏎"))


def _few(words: list[str], most: int = 6) -> str:
    return ", ".join(words) if len(words) <= most else f"{', '.join(words[:most])} and {len(words) - most} more"
