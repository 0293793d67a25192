"""What a user can mend: `InputError`. Everything else that is raised is a bug in the workbench."""

from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what is wrong and what would work; the CLI exits with 2."""


def unknown(kind: str, name: object, known: Iterable[object]) -> InputError:
    """The error for a name that does not exist, listing those that do."""
    return InputError(f"unknown {kind} {str(name)!r}; there are: {', '.join(sorted(map(str, known)))}")
