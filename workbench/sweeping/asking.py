"""What is a sweep? Models × prompts × seeds × edits, each a cell in which all probes are asked; as a YAML file, or as options."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from workbench.batches import Asked
from workbench.edits import Ablate, Calibrate, Edit, Redistribute, SinkRule, Stream
from workbench.errors import InputError, unknown
from workbench.executors import Wanted
from workbench.groups import Way
from workbench.heads import Head
from workbench.implementations import IMPLEMENTATIONS
from workbench.options import Options
from workbench.runs import fingerprint_of, versions
from workbench.sweeping.named import identity, meant

KEYS = {
    "models": "names, or mappings with name, revision, device, dtype; a name such as run/step-* stands for all folders that it matches",
    "probes": "probes of `workbench probes`; all that suit a model if it is left out",
    "preset": "quick or paper",
    "prompts": "mappings with name, and length, lengths, depths, needles, haystack or template; the preset's own if it is left out",
    "seeds": "whole numbers; 0 if it is left out",
    "edits": "none, or mappings with name, and ablate, calibrate, stream or redistribute; none if it is left out",
    "way": "a mapping with implementation, chunk, sample: how passes are made",
}
"""The keys of a sweep's YAML, and what they hold."""

EDITS: Mapping[str, type[Edit]] = {"ablate": Ablate, "calibrate": Calibrate, "stream": Stream, "redistribute": Redistribute}
"""The edits by the names that a sweep has for them."""

_PLAIN = "as the preset has them"
_NONE = "none"


@dataclass(frozen=True)
class Cell:
    """One model, one kind of prompts, one seed, one set of edits: a question, and what its parts are called."""

    wanted: Wanted
    asked: Asked
    prompts: str
    edits: str
    files: Any
    """What tells the model's files from those that lay there before."""

    @property
    def what(self) -> str:
        """What it is, for people."""
        named = [part for part, usual in ((self.prompts, _PLAIN), (self.edits, _NONE)) if part != usual]
        return ", ".join([self.wanted.words, *named, f"seed {self.asked.seed}"])

    @property
    def told(self) -> dict[str, Any]:
        """What decides its results, as plain data: the weights themselves are known by the sizes and dates of their files."""
        asked = self.asked
        probes = None if asked.probes is None else list(map(str, asked.probes))
        options = None if asked.options is None else {one.name: getattr(asked.options, one.name) for one in fields(asked.options)}
        return {
            "model": {**_plain(self.wanted), "files": self.files},
            "probes": probes,
            "preset": asked.preset,
            "options": options,
            "seed": asked.seed,
            "way": _plain(asked.way),
            "edits": [edit.describe() for edit in asked.edits],
            "versions": versions(),
        }

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over `told`: the name of its files."""
        return fingerprint_of({**self.told, "named": [self.prompts, self.edits]})


@dataclass(frozen=True)
class Sweep:
    """What is swept: see `KEYS`. Raises `InputError` for an empty list, and where two parts have one name."""

    models: tuple[Wanted, ...] = (Wanted(),)
    probes: tuple[str, ...] | None = None
    preset: str = "quick"
    prompts: Mapping[str, Options | None] = field(default_factory=lambda: {_PLAIN: None})
    seeds: tuple[int, ...] = (0,)
    edits: Mapping[str, tuple[Edit, ...]] = field(default_factory=lambda: {_NONE: ()})
    way: Way = field(default_factory=Way)

    def __post_init__(self) -> None:
        for name in ("models", "probes", "prompts", "seeds", "edits"):
            if getattr(self, name) is not None and not getattr(self, name):
                raise InputError(f"a sweep needs one or more {name}")
        for name in ("models", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InputError(f"a sweep has each of its {name} once")
        if self.way.implementation not in ("auto", *IMPLEMENTATIONS):
            raise unknown("implementation", self.way.implementation, ["auto", *IMPLEMENTATIONS])
        for options in self.prompts.values():
            for edits in self.edits.values():
                _ = Asked(self.probes, self.preset, 0, options, self.way, edits).groups  # what cannot be asked shows before anything is loaded

    def cells(self) -> Iterator[Cell]:
        """Every cell, model by model."""
        for wanted in self.models:
            files = identity(wanted.name)
            for prompts, options in self.prompts.items():
                for edits, chosen in self.edits.items():
                    for seed in self.seeds:
                        yield Cell(wanted, Asked(self.probes, self.preset, seed, options, self.way, chosen), prompts, edits, files)

    @classmethod
    def load(cls, path: Path) -> "Sweep":
        """Read a YAML file. Raises `InputError` for what cannot be read, and for unknown keys, by name."""
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        try:
            return cls.parse({} if data is None else data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, data: Any) -> "Sweep":
        """A sweep from plain data with the keys of `KEYS`."""
        _check_keys("a sweep", data, KEYS)
        probes = data.get("probes")
        given: dict[str, Any] = {"probes": None if probes is None else tuple(map(str, _list("probes", probes)))}
        if "models" in data:
            given["models"] = tuple(one for named in _list("models", data["models"]) for one in _wanted(named))
        if "prompts" in data:
            given["prompts"] = _named("prompts", (_options(one) for one in _list("prompts", data["prompts"])))
        if "edits" in data:
            given["edits"] = _named("edits", (_edits(one) for one in _list("edits", data["edits"])))
        if "seeds" in data:
            given["seeds"] = tuple(_whole("seeds", one) for one in _list("seeds", data["seeds"]))
        if "preset" in data:
            given["preset"] = str(data["preset"])
        if "way" in data:
            given["way"] = _made("way", Way, data["way"])
        return cls(**given)


def _wanted(data: Any) -> list[Wanted]:
    if isinstance(data, Mapping):  # a revision may look like a number
        data = {name: value if value is None else str(value) for name, value in data.items()}
    one = Wanted(data) if isinstance(data, str) else _made("a model", Wanted, data)
    return [replace(one, name=name) for name in meant(one.name)]


def _options(data: Any) -> tuple[str, Options | None]:
    if data is None or data == _PLAIN:
        return _PLAIN, None
    _check_keys("prompts", data, ["name", *(one.name for one in fields(Options))])
    lists = ("lengths", "depths")
    given = {name: tuple(_list(name, value)) if name in lists else value for name, value in data.items() if name != "name"}
    for value in (*given.get("lengths", ()), *(given[name] for name in ("length",) if name in given)):
        _whole("lengths", value)
    given |= {name: Path(str(given[name])) for name in ("needles", "haystack") if name in given}
    words = ", ".join(f"{name} {_short(value)}" for name, value in given.items())
    return str(data.get("name") or words or _PLAIN), _made("prompts", Options, given) if given else None


def _edits(data: Any) -> tuple[str, tuple[Edit, ...]]:
    if data in (None, _NONE):
        return _NONE, ()
    _check_keys("edits", data, ["name", *EDITS])
    made = tuple(_edit(kind, settings) for kind, settings in data.items() if kind != "name")
    if not made:
        raise InputError(f"the edits {data.get('name')} change nothing; name {', '.join(EDITS)}, or write none")
    return str(data.get("name") or json.dumps({kind: settings for kind, settings in data.items() if kind != "name"}, default=str)), made


def _edit(kind: str, settings: Any) -> Edit:
    if kind == "ablate" and not isinstance(settings, Mapping):
        settings = {"heads": settings}
    given = dict(settings or {})
    for name in ("heads", "tokens", "spans", "dims"):
        if name in given and given[name] is not None:
            given[name] = tuple(_head(kind, one) if name == "heads" else one for one in _list(name, given[name]))
    if isinstance(given.get("rule"), Mapping):
        given["rule"] = _made("rule", SinkRule, given["rule"])
    return _made(kind, EDITS[kind], given)


def _head(kind: str, text: Any) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise InputError(f"{kind}: {error}") from error


def _made(what: str, kind: Any, data: Any) -> Any:
    """An object of plain settings. Raises `InputError` for unknown or missing ones, and for values of a wrong kind."""
    _check_keys(what, data, [one.name for one in fields(kind) if one.init])
    try:
        return kind(**data)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{what}: {error}") from error


def _named(what: str, pairs: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise InputError(f"two {what} are called {name}; give each a name of its own")
        made[name] = value
    return made


def _check_keys(what: str, data: Any, known: Sequence[str] | Mapping[str, Any]) -> None:
    if not isinstance(data, Mapping):
        raise InputError(f"{what} is a mapping with {', '.join(known)}; got {data!r}")
    for key in data:
        if key not in known:
            raise unknown(f"key of {what}", key, known)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name} is a list, got {value!r}")
    return list(value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} are whole numbers, got {value!r}")
    return value


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}
