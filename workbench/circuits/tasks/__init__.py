"""Which behaviours are there, and what does a model get of one? One file per task, each of which defines one `TASK`; this package finds them.

To add one, add a file that defines `TASK`, or give a file of JSON lines with the fields of `Item`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pkgutil import iter_modules
from types import MappingProxyType

import numpy as np

from workbench.circuits.tasks.encoding import UNEQUAL, Encoded, encode, sizes
from workbench.circuits.tasks.item import METRICS, Item, Keep, Task
from workbench.circuits.tasks.lines import is_file, load_items, shuffled
from workbench.circuits.tasks.pairs import Pairs, TaskSet
from workbench.errors import InputError, unknown
from workbench.models import HFModel

__all__ = ["METRICS", "TASKS", "Item", "Pairs", "Task", "TaskSet", "items_of", "load_items", "prepare", "task_of"]

PATIENCE = 200
"""Items that are tried before the first must fit; after it, so many for each that does."""

DUPLICATE = "a prompt that was drawn before"


def _discover() -> dict[str, Task]:
    modules = [import_module(f"{__name__}.{name}") for name in sorted(module.name for module in iter_modules(__path__))]
    tasks = [module.TASK for module in modules if hasattr(module, "TASK")]
    return {task.name: task for task in tasks}


TASKS: Mapping[str, Task] = MappingProxyType(_discover())
"""Every task by name."""


def task_of(source: str) -> Task:
    """The task of a source such as `ioi` or `ioi:corruption=swap`. Raises `InputError` listing the tasks, or the options, that exist."""
    name, _, options = source.partition(":")
    if name not in TASKS:
        raise unknown("task", name, [*TASKS, "FILE.jsonl"])
    TASKS[name].chosen(options)
    return TASKS[name]


def items_of(source: str, seed: int, size: Callable[[str], int] | None = None) -> Iterator[Item]:
    """Items in an order that `seed` decides: without end from a task, each once from a file of JSON lines.

    `source` is the name of a task, with options behind a colon (`knowledge_conflict:relation=capital,format=coherent`), or the path of a .jsonl file.
    `size` counts the tokens of a text; tasks that choose words by it draw others without it.
    Raises `InputError` for what does not exist, listing what does, and for a file that cannot be read, naming the line.
    """
    if is_file(source):
        return iter(shuffled(load_items(source), seed))
    return task_of(source).draw(seed, source.partition(":")[2], size)


def prepare(model: HFModel, source: str, count: int, seed: int = 0, keep: Keep | None = None) -> TaskSet:
    """`count` items of a task that fit the model's tokenizer, or as many of a file's as do, up to `count`. The rest is dropped and counted by reason.

    An item is dropped if an answer is not a single token, if a right and a wrong one are the same token, if clean and corrupted prompts differ in length,
    if its clean prompt was there before, and if `keep` (else the task's own: whether the model knows the fact) says so.
    Raises `InputError` for a file with an item of unequal lengths (naming its line), if a task runs out of items that fit, and if none does.
    """
    if count < 1:
        raise InputError(f"a number of items above 0, got {count}")
    from_file = is_file(source)
    if from_file:
        _refuse_unequal(model, source)
    chosen = keep or (None if from_file else task_of(source).keep)
    found, dropped = _collected(model, items_of(source, seed, sizes(model)), count, chosen)
    if not found or (len(found) < count and not from_file):
        reasons = "; ".join(f"{number} for {reason}" for reason, number in dropped.most_common())
        instead = "another task" if from_file else task_of(source).instead or "another task"
        mend = f"ask for {len(found)} or fewer" if found else f"choose {instead} or another model"
        raise InputError(f"{source}: {len(found)} of {count} items fit {model.name}, dropped {reasons or 'none'}; {mend}")
    metric = "logit_difference" if from_file else task_of(source).metric
    return TaskSet(source, _grouped(source, metric, found), MappingProxyType(dict(dropped)), seed)


def _collected(model: HFModel, stream: Iterator[Item], count: int, keep: Keep | None) -> tuple[list[Encoded], Counter[str]]:
    found: list[Encoded] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    tried = 0
    while len(found) < count and tried < PATIENCE * (1 + len(found)):
        batch = list(islice(stream, max(count - len(found), 8)))
        if not batch:
            break
        tried += len(batch)
        fitting = []
        for item in batch:
            encoded = DUPLICATE if item.clean in seen else encode(model, item)
            if isinstance(encoded, Encoded):
                seen.add(item.clean)
                fitting.append(encoded)
            else:
                dropped[encoded] += 1
        reasons = keep(model, [one.item for one in fitting]) if keep else [""] * len(fitting)
        dropped.update(reason for reason in reasons if reason)
        found.extend(one for one, reason in zip(fitting, reasons, strict=True) if not reason)
    return found[:count], dropped


def _refuse_unequal(model: HFModel, path: str) -> None:
    for item in load_items(path):
        if encode(model, item) == UNEQUAL:
            lengths = [len(model.tokenizer(text)["input_ids"]) for text in (item.clean, item.corrupted)]
            raise InputError(
                f"{item.where}: the clean prompt has {lengths[0]} tokens and the corrupted one {lengths[1]}; "
                f"positions are compared one by one, so that {model.name} needs prompts of one length"
            )


def _grouped(task: str, metric: str, found: list[Encoded]) -> tuple[Pairs, ...]:
    groups: dict[int, list[Encoded]] = {}
    for one in found:
        groups.setdefault(len(one.clean), []).append(one)
    pairs = [
        Pairs(
            task,
            metric,
            tuple(one.item for one in group),
            np.array([one.clean for one in group]),
            np.array([one.corrupted for one in group]),
            tuple(one.right for one in group),
            tuple(one.wrong for one in group),
        )
        for group in groups.values()
    ]
    return tuple(sorted(pairs, key=lambda one: (-len(one), one.length)))
