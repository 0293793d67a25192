"""Which models are made in memory for the page Circuits? Two whose circuits are known; as a program, this is `workbench` with one of them alone."""

import sys
from types import MappingProxyType

from test_ph3 import clashes, toy

from workbench.circuits import pruning_curve, tasks
from workbench.circuits.compiled_ioi import ioi_model
from workbench.circuits.name_prompts import name_pairs


def names(rng):
    """Two names, one of them again."""
    while True:
        yield from name_pairs(8, int(rng.integers(2**31))).items


NAMES = tasks.Task("names", "logit_difference", names, "here")
WITH_NAMES = MappingProxyType({**tasks.TASKS, "names": NAMES})


def prepared(_model, _source, count, seed):
    """Conflicts of the model of two answers, in place of a task's."""
    return clashes(count, seed)


if __name__ == "__main__":
    from workbench import models
    from workbench.cli import main

    made = {"compiled": lambda: ioi_model(20), "two answers": toy}[sys.argv.pop(1)]
    models.load = lambda name, **_: {"made": made}[name]()
    tasks.TASKS, pruning_curve.prepare = WITH_NAMES, prepared
    main()
