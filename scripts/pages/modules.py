"""Which modules are there? A page of the Python reference for each part of the package, in the order of the layers."""

import ast
import re
import tomllib
from pathlib import Path

import workbench
from pages.markdown import ROOT, code, table

PACKAGE = ROOT / "workbench"
FOLDER = "reference/python"
LEFT_OUT = ("cli",)
"""Parts whose users do not import them: the commands have a page of their own."""


def parts() -> list[str]:
    """The parts of the package that users import, upper layers first, as the contract of the layers has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    return [name for layer in layers for name in re.findall(r"\w+", layer) if name not in LEFT_OUT]


def path_of(part: str) -> Path:
    """The file of a part, or that of a package's names."""
    return PACKAGE / part / "__init__.py" if (PACKAGE / part).is_dir() else PACKAGE / f"{part}.py"


def question(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def modules(part: str) -> list[str]:
    """The public modules of a part by their dotted names, the part itself first."""
    inside = sorted(path for path in (PACKAGE / part).rglob("*.py") if not any(name.startswith("_") for name in path.relative_to(PACKAGE).parts))
    return [f"workbench.{part}", *(".".join(("workbench", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in inside)]


def page(part: str) -> str:
    """The reference of a part; a package with all of its public modules."""
    first, *inside = modules(part)
    return "\n\n".join(
        [
            f"# {code(first)}",
            f"::: {first}\n    options:\n      heading_level: 2",
            *(f"## {code(name)}\n\n::: {name}\n    options:\n      heading_level: 3" for name in inside),
        ]
    )


def index() -> str:
    """The public names, and all parts with the question that each answers."""
    names = [
        (code(f"wb.{name}"), f"[{code(f'workbench.{home}.{name}')}][workbench.{home}.{name}]") for home, names in workbench._HOME.items() for name in names
    ]
    every = [(f"[{code(f'workbench.{part}')}]({part}.md)", question(path_of(part))) for part in parts()]
    return "\n\n".join(
        [
            "# Python",
            "`import workbench as wb` gives the public names; what lies deeper is imported from its module.",
            table(("name", "where it is told about"), sorted(names)),
            "Also `wb.kernels`, with [`apply`](kernels.md).",
            "## All parts, upper layers first",
            "A part imports what stands below it, never the reverse.",
            table(("part", "the question that it answers"), every),
        ]
    )


def navigation() -> list[str | dict[str, str]]:
    """The pages of the Python reference in the order of the layers."""
    return [f"{FOLDER}/index.md", *({part: f"{FOLDER}/{part}.md"} for part in parts())]
