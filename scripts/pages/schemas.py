"""What is in the files that the workbench writes and takes? From the JSON Schema of labels, the columns of scores, and the classes of lines."""

import inspect
import json
from collections.abc import Iterator
from typing import Any

from pages.markdown import code, fields_table, language, link, table
from workbench.circuits.tasks import Item, load_items
from workbench.labels import SCHEMA, schema
from workbench.needle_files import Needle, load_needles
from workbench.questions import Question, load_questions
from workbench.scores import MEANINGS, HeadScores

GIVEN = (
    ("Needles", Needle, load_needles, "JSON lines, for `--needles` of the commands with needle tests."),
    ("Questions", Question, load_questions, "JSON lines, for `--task FILE.jsonl` of `workbench calibrate`."),
    ("Items", Item, load_items, "JSON lines, for `--task FILE.jsonl` of `workbench circuit find` and `evaluate`."),
)
"""The files of JSON lines, each with the class of a line, its reader, and where it is given."""


def labels() -> str:
    """Every field of a labels file."""
    found = schema()
    rows = [(code(path), kind, needed, words) for path, kind, needed, words in fields(found)]
    parts = [
        "# The labels file",
        f"`workbench label` writes it, `HeadLabels.save` and `HeadLabels.load` too. Its format is called {code(SCHEMA)}. {found['description']}",
        "In the names below, `[]` is any entry of a list, `*` any name.",
        table(("field", "type", "needed", "meaning"), rows),
        "## The JSON Schema",
        language("json", json.dumps(found, indent=1, ensure_ascii=False)),
    ]
    return "\n\n".join(parts)


def fields(part: dict[str, Any], before: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Each field by its path, with its type, whether it is needed, and what it means."""
    for name, field in part.get("properties", {}).items():
        path = f"{before}.{name}" if before else name
        yield path, kind_of(field), "yes" if name in part.get("required", ()) else "no", field.get("description", "")
        yield from fields(field, path)
        if isinstance(field.get("items"), dict):
            yield from fields(field["items"], f"{path}[]")
        if isinstance(field.get("additionalProperties"), dict):
            yield from fields(field["additionalProperties"], f"{path}.*")


def kind_of(field: dict[str, Any]) -> str:
    """The type of a field in words, or the values that it can have."""
    if "const" in field:
        return code(field["const"])
    if "enum" in field:
        return " or ".join(code(value) for value in field["enum"])
    kinds = field.get("type", "any")
    return " or ".join([kinds] if isinstance(kinds, str) else kinds)


def scores() -> str:
    """Every column of a table of scores, and what its metadata hold."""
    facts = inspect.getdoc(HeadScores.facts) or ""
    parts = [
        "# The table of scores",
        "`workbench score --out scores.parquet` writes it, `HeadScores.save` and `HeadScores.load` too; a `.csv` has the columns alone.",
        "There is one row per head and probe.",
        table(("column", "meaning"), [(code(name), words) for name, words in MEANINGS.items()]),
        f"The metadata of the Parquet file hold more, as JSON under `PANDAS_ATTRS`. {facts}",
        'A probe without enough valid evidence has no rows; `evidence[probe]["status"]` then says `insufficient evidence`.',
    ]
    return "\n\n".join(parts)


def given() -> str:
    """The files that a user may give: what each line holds, and what is refused."""
    parts = ["# Files that you may give", "All are UTF-8. A line that cannot be used is refused by its number, with what would do."]
    for title, kind, load, options in GIVEN:
        parts += [f"## {title}", options, inspect.getdoc(kind) or "", fields_table(kind), f"{link(load)}: {inspect.getdoc(load)}"]
    return "\n\n".join(parts)
