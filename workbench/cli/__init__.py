"""The command line: each command parses, makes one call, and shows. Results go to stdout, everything else to stderr."""

from workbench import jobs
from workbench.cli import (
    calibrating,
    circuit_questions,
    circuits,
    conflict,
    lists,
    long_map,
    mapping,
    measuring,
    needle,
    outputs,
    planning,
    policy,
    publishing,
    reporting,
    sinks,
    successor,
    sweeping,
    verifying,
)
from workbench.cli.app import app

__all__ = [
    "app",
    "calibrating",
    "circuit_questions",
    "circuits",
    "conflict",
    "lists",
    "long_map",
    "main",
    "mapping",
    "measuring",
    "needle",
    "outputs",
    "planning",
    "policy",
    "publishing",
    "reporting",
    "sinks",
    "successor",
    "sweeping",
    "verifying",
]


def main() -> None:
    """Run the command line. Exit codes: 0 it worked, 2 the user gave something that cannot be used, 1 a bug of the workbench."""
    with jobs.running():
        app(prog_name="workbench")
