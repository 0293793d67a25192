"""What is a file format? `Format`, one per module of this package, and the choices that a writer may be given."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from workbench.errors import InputError, unknown
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to write, where a format leaves a choice. `None` takes the format's default; a choice that it does not use raises.

    `probe`: whose scores. `label`: which heads are in the set. `reduction`: how query heads become a KV head (`max`, `mean`,
    `min`). `sink`, `recent`: how many first and last tokens a streaming head keeps.
    """

    probe: str | None = None
    reduction: str | None = None
    label: str | None = None
    sink: int | None = None
    recent: int | None = None

    def __post_init__(self) -> None:
        for name in ("sink", "recent"):
            if (size := getattr(self, name)) is not None and size < 0:
                raise InputError(f"{name} is a number of tokens, 0 or more; got {size}")

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the choices that were made."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One tool's file: how to write and read it, and what is lost on the way.

    `granularity`: whether its rows are query heads or KV heads. `loss`: what of `HeadLabels` the file cannot hold. `uses`: the
    fields of `Export` that its writer heeds. `reads_as`: the name that scores or labels get when read, `None` where the file has
    the names itself. `knows_shape`: whether a file of ours tells the model's shape; otherwise reading needs a `ModelCard`. `suffix`: the usual ending of
    the file's name, where it is one file.
    """

    name: str
    title: str
    tools: tuple[str, ...]
    granularity: Literal["query", "kv"]
    loss: str
    writes: Callable[[HeadLabels, Path, Export], list[Path]]
    reads: Callable[[Path, ModelCard | None, str], HeadLabels]
    uses: tuple[str, ...] = ()
    reads_as: str | None = None
    knows_shape: bool = False
    suffix: str = ".json"


def chosen_probe(labels: HeadLabels, probe: str | None, default: str) -> str:
    """The probe to write: the one asked for, else the format's usual one. Raises `InputError` listing those that have scores."""
    name = probe or default
    if name not in labels.scores:
        raise unknown("probe", name, labels.scores)
    return name


def full_heads(labels: HeadLabels, names: Iterable[str]) -> set[Head]:
    """The heads that have any of the labels. Raises `InputError` for a label that no rule makes and no head has."""
    return {head for name in names for head in labels.heads(name)}


def needed(card: ModelCard | None, path: Path) -> ModelCard:
    """The card, or an `InputError` saying that the file alone does not do."""
    if card is None:
        raise InputError(f"{path} does not tell the model's shape; say which model it belongs to with --model")
    return card
