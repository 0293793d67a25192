"""How do facts become Markdown? Tables, the text of a docstring, the source of a function, and the names of things that are data."""

import ast
import dataclasses
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


WIDE = "---\nhide:\n  - toc\n---\n\n"
"""What stands in front of a page that is one wide table."""


@cache
def readme() -> ModuleType:
    """`scripts/docs`, which writes the tables of the documents."""
    loader = SourceFileLoader("docs_script", str(ROOT / "scripts" / "docs"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, as `scripts/docs` makes them."""
    return readme().table(columns, rows)


def code(text: object) -> str:
    """A few words as code."""
    return f"`{text}`"


def language(name: str, text: str) -> str:
    """A block of code."""
    return f"```{name}\n{text.rstrip()}\n```"


def after_first_line(docstring: str) -> str:
    """A docstring without its first line, which stands elsewhere."""
    return "\n".join(docstring.splitlines()[1:]).strip()


def source(function: Callable[..., Any]) -> str:
    """The code of a function without its docstring, which stands elsewhere."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    (node,) = ast.parse("\n".join(lines)).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines)


def written(value: Any, defaults: bool = False) -> str:
    """A dataclass as the call that makes it: `Mass(at='previous')`; with `defaults`, also with the fields that have theirs, unless that is None."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    every = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    usual = {field.name: default(field) for field in dataclasses.fields(value)}
    told = {name: one for name, one in every.items() if (one is not None if defaults else one != usual[name])}
    return f"{type(value).__name__}({', '.join(f'{name}={written(one)}' for name, one in told.items())})"


def default(field: dataclasses.Field) -> Any:
    """The default of a field; what it has none of equals nothing."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def fields_table(kind: type) -> str:
    """The fields of a dataclass with their types and defaults; a sentence where it has none."""
    fields = [field for field in dataclasses.fields(kind) if field.init]
    if not fields:
        return "It has no fields."
    rows = [
        (code(field.name), code(type_name(field.type)), "needed" if default(field) is dataclasses.MISSING else code(repr(default(field)))) for field in fields
    ]
    return table(("field", "type", "default"), rows)


def type_name(kind: Any) -> str:
    """A type as it is written in code, without the modules that it comes from."""
    text = kind if isinstance(kind, str) else kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text)


def found(path: str) -> Any:
    """What a dotted path such as `workbench.circuits.ph3.importance` leads to. Raises `ValueError` where it leads nowhere."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no {path}") from error


def link(kind: type | Callable[..., Any], text: str | None = None) -> str:
    """A link to where the Python reference tells about a class or function."""
    return f"[{code(text or kind.__name__)}][{kind.__module__}.{kind.__qualname__}]"
