"""Does the house keep its own measure? Sizes, docstrings, public names and the one door to TransformerLens."""

import ast
from pathlib import Path

import numpy as np
import pytest

import workbench

PACKAGE = Path(workbench.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

MAX_FILE = 250
MAX_FUNCTION = 60
MAX_FUNCTION_P90 = 25
MAX_PUBLIC_NAMES = 24

Function = ast.FunctionDef | ast.AsyncFunctionDef

each_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


def is_kernel(path: Path) -> bool:
    return "ops" in path.relative_to(PACKAGE).parts


def functions(path: Path) -> dict[str, int]:
    """The lines of every function and method of a file."""
    nodes = [node for node in ast.walk(TREES[path]) if isinstance(node, Function)]
    return {f"{path.name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1 for node in nodes}


def public(body: list[ast.stmt], prefix: str = ""):
    """Public functions, classes and their methods; not the members of a protocol, which its docstring tells."""
    for node in body:
        if not isinstance(node, (*Function.__args__, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef) and not any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            yield from public(node.body, f"{node.name}.")


@each_file
def test_no_file_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE


@each_file
def test_no_function_is_too_long(path):
    assert is_kernel(path) or not {name: lines for name, lines in functions(path).items() if lines > MAX_FUNCTION}


def test_most_functions_are_short():
    lines = [count for path in FILES if not is_kernel(path) for count in functions(path).values()]
    assert np.percentile(lines, 90) <= MAX_FUNCTION_P90


@each_file
def test_everything_public_says_what_it_is(path):
    assert ast.get_docstring(TREES[path]), "the module has no docstring"
    assert not [name for name, node in public(TREES[path].body) if not ast.get_docstring(node)]


@each_file
def test_nothing_prints(path):
    calls = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [node.lineno for node in calls if node.func.id == "print"]


def test_all_is_what_is_public():
    assert sorted(workbench.__all__) == sorted(name for names in workbench._HOME.values() for name in names)
    assert all(getattr(workbench, name) is not None for name in workbench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'heed'"):
        getattr(workbench, "he" + "ed")
    assert len(workbench.__all__) <= MAX_PUBLIC_NAMES


def test_one_file_knows_transformer_lens():
    assert [name for name, path in zip(NAMES, FILES, strict=True) if "transformer_lens" in path.read_text(encoding="utf-8")] == ["models.py"]
