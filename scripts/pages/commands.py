"""Which commands are there? Every one with its arguments and options, from the command line itself."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from pages.markdown import code, language, table
from workbench.cli import app

EXAMPLE = re.compile(r"^Example: `(.+)`$", re.MULTILINE)


def all_of(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command by its words, such as `circuit find`; a group stands before its commands."""
    for name, command in group.commands.items():
        yield " ".join((*before, name)), command
        if hasattr(command, "commands"):
            yield from all_of(command, (*before, name))


def reference() -> str:
    """The page of the command line."""
    root = typer.main.get_command(app)
    return "\n\n".join(["# Command line", _text(root.help), *(section(words, command) for words, command in all_of(root))])


def section(words: str, command: Any) -> str:
    """A command with what it says of itself, its examples, its arguments, and its options by panel."""
    level = "##" if " " not in words else "###"
    parts = [f"{level} {code(f'workbench {words}')} {{ #command-{words.replace(' ', '-')} }}", _text(command.help)]
    if hasattr(command, "commands"):
        return "\n\n".join([*parts, f"Its commands: {', '.join(f'[{code(name)}](#command-{words}-{name})' for name in command.commands)}."])
    panels: dict[str, list[Any]] = {}
    for one in command.params:
        panels.setdefault("Arguments" if one.param_type_name == "argument" else one.rich_help_panel or "Options", []).append(one)
    ordered = sorted(panels, key=lambda panel: (panel != "Arguments", panel != "Options"))
    return "\n\n".join([*parts, *(table((panel.lower(), "", "default"), [_line(one) for one in panels[panel]]) for panel in ordered)])


def _line(one: Any) -> tuple[str, str, str]:
    names = ", ".join(code(name) for name in (*one.opts, *one.secondary_opts))
    names = code(one.name.upper()) if one.param_type_name == "argument" else names
    env = f" Also the variable {code(one.envvar)}." if one.envvar else ""
    return names, (one.help or "") + env, _default(one)


def _default(one: Any) -> str:
    if one.required:
        return "needed"
    if one.default is None or callable(one.default):
        return ""
    return {True: "on", False: "off"}[one.default] if isinstance(one.default, bool) else code(one.default)


def _text(words: str) -> str:
    """What a command says of itself; its examples as blocks that can be copied."""
    return EXAMPLE.sub(lambda found: language("sh", found[1]), words)
