"""Which probes can share a pass, and how is it made? Those that put the same prompts share one."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workbench.captures import SAMPLES
from workbench.errors import InputError
from workbench.models import Model
from workbench.options import Options, concerned
from workbench.probes import PROBES, Probe, probe
from workbench.reads import Read
from workbench.recipes import Recipe


@dataclass(frozen=True)
class Group:
    """Probes that share prompts: one pass for each batch of `recipe`."""

    probes: tuple[Probe, ...]
    recipe: Recipe | None

    @property
    def reads(self) -> tuple[Read, ...]:
        """All reads of the group, each once."""
        return tuple(dict.fromkeys(read for probe in self.probes for read in probe.reads))

    @property
    def name(self) -> str:
        """The probes' names."""
        return ", ".join(probe.name for probe in self.probes)


def plan(probes: Iterable[str | Probe] | None = None, preset: str = "quick", options: Options | None = None) -> list[Group]:
    """The groups of the asked probes (all by default), by name or as they are.

    Raises `InputError` for an unknown probe or preset, and for a probe with the name of another.
    """
    groups: dict[Recipe | None, list[Probe]] = {}
    given = list(PROBES if probes is None else probes)
    asked = list(dict.fromkeys(probe(one) if isinstance(one, str) else one for one in given))
    names = [one.name for one in asked]
    if taken := [one.name for one in given if isinstance(one, Probe) and (PROBES.get(one.name, one) is not one or names.count(one.name) > 1)]:
        raise InputError(f"there is another probe that is called {taken[0]}; give yours a name of its own")
    heard = {option for chosen in asked if chosen.recipes for option in concerned(chosen.recipe(preset))}
    for option in [name for name, value in asdict(options or Options()).items() if value is not None and name not in heard]:
        raise InputError(f"--{option} concerns none of the chosen probes: {', '.join(chosen.name for chosen in asked)}")
    for chosen in asked:
        recipe = (options or Options()).apply(chosen.recipe(preset)) if chosen.recipes else None
        groups.setdefault(recipe, []).append(chosen)
    return [Group(tuple(members), recipe) for recipe, members in groups.items()]


def check_listed(groups: Sequence[Group]) -> None:
    """Raise `InputError` for a probe that is no file of `workbench/probes/`: results on disk would not tell that its code has changed."""
    if own := [member.name for group in groups for member in group.probes if member.name not in PROBES]:
        raise InputError(
            f"results of {own[0]} cannot be kept, as they would not tell when its code changes; score it without runs, or make it a file of the package"
        )


def suited(groups: Sequence[Group], model: Model, names: Iterable[str | Probe] | None) -> tuple[list[Group], dict[str, dict[str, Any]]]:
    """The groups whose prompts can be made for a model, and why the probes of the others are not asked, as evidence.

    Raises `InputError` with the reason if the probes were chosen by name.
    """
    reasons = [getattr(group.recipe, "lacks", lambda _: None)(model) for group in groups]
    if names is not None and any(reasons):
        raise InputError(next(filter(None, reasons)))
    left = {member.name: {"status": f"not asked: {reason}"} for group, reason in zip(groups, reasons, strict=True) if reason for member in group.probes}
    return [group for group, reason in zip(groups, reasons, strict=True) if not reason], left


@dataclass(frozen=True)
class Way:
    """How passes are made: see `captures.capture`. `chunk` and `sample` are tokens and rows."""

    implementation: str = "auto"
    chunk: int | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"--chunk is at least one token, got {self.chunk}")
        if self.sample is not None and self.sample < 2:
            raise InputError(f"--sample-rows takes at least two rows, got {self.sample}")

    def check(self, groups: Sequence[Group]) -> None:
        """Raise `InputError` for what concerns none of the groups."""
        reads = [read for group in groups for read in group.reads]
        if self.chunk is not None and all(group.recipe is None for group in groups):
            raise InputError("--chunk concerns none of the chosen probes: they look at weights")
        if self.sample is not None and not any(isinstance(read, SAMPLES) and read.rows is None for read in reads):
            raise InputError("--sample-rows concerns none of the chosen probes: they read chosen rows, or what keys receive")
