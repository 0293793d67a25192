"""Which probes can share a pass? Those that put the same prompts."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from workbench.errors import InputError
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


def plan(names: Iterable[str] | None = None, preset: str = "quick", options: Options | None = None) -> list[Group]:
    """The groups of the asked probes (all by default). Raises `InputError` for an unknown probe or preset."""
    groups: dict[Recipe | None, list[Probe]] = {}
    asked = [probe(name) for name in dict.fromkeys(PROBES if names is None else names)]
    heard = {option for chosen in asked if chosen.recipes for option in concerned(chosen.recipe(preset))}
    for option in [name for name, value in asdict(options or Options()).items() if value is not None and name not in heard]:
        raise InputError(f"--{option} concerns none of the chosen probes: {', '.join(chosen.name for chosen in asked)}")
    for chosen in asked:
        recipe = (options or Options()).apply(chosen.recipe(preset)) if chosen.recipes else None
        groups.setdefault(recipe, []).append(chosen)
    return [Group(tuple(members), recipe) for recipe, members in groups.items()]
