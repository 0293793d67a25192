"""Which heads are what? `RULES` turns scores into labels; `HeadLabels` is what the command line exports."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jsonschema
import numpy as np
import pandas as pd

from workbench.errors import InputError, unknown
from workbench.files import write_text
from workbench.heads import Head, ModelCard, Shape
from workbench.rules import RULES, Rule
from workbench.scores import HeadScores
from workbench.showing import Shown

SCHEMA = "workbench.head-labels/1"


@dataclass(frozen=True, eq=False)
class HeadLabels(Shown):
    """What each head is: labels by head, the scores behind them, the rules, the evidence, and the model they hold for.

    `labels` has every head of the model, in order, with its labels (several or none). `scores` holds one array of
    layers × query heads per probe, NaN nowhere. `evidence` says per probe how many tests were valid, `provenance` which
    versions, seed, dtype, device and implementation made it. `policy` is that of `HeadPolicy.to_json`, if one was saved with the labels.
    `measured` are the scores with intervals and nulls that `label` made them from; the file has them not. Values are not to be written to.
    """

    card: ModelCard
    labels: Mapping[Head, tuple[str, ...]]
    scores: Mapping[str, np.ndarray]
    rules: Mapping[str, Rule] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] | None = None
    measured: HeadScores | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = self.card.shape
        frozen = {probe: _checked(probe, score, shape, self.card) for probe, score in self.scores.items()}
        for head in self.labels:
            shape.check(head)
        complete = {head: tuple(self.labels.get(head, ())) for head in shape.heads()}
        for name, value in {"scores": frozen, "labels": complete, "rules": self.rules, "evidence": self.evidence, "provenance": self.provenance}.items():
            object.__setattr__(self, name, MappingProxyType(dict(value)))

    def heads(self, label: str) -> tuple[Head, ...]:
        """The heads with a label. Raises `InputError` if no rule makes it and no head has it."""
        known = set(self.rules) | {name for names in self.labels.values() for name in names}
        if label not in known:
            raise unknown("label", label, known)
        return tuple(head for head, names in self.labels.items() if label in names)

    def counts(self) -> dict[str, int]:
        """How many heads carry each label, every rule's label included."""
        return {name: len(self.heads(name)) for name in (*self.rules, *sorted({n for names in self.labels.values() for n in names} - set(self.rules)))}

    @property
    def table(self) -> pd.DataFrame:
        """One row per head, layer by layer: `head` (such as L17H3), `layer`, `index`, `kv_head`, `labels` in one text, and the score of every probe."""
        shape = self.card.shape
        rows = [(str(head), head.layer, head.index, shape.kv_head(head), ", ".join(names)) for head, names in self.labels.items()]
        frame = pd.DataFrame(rows, columns=["head", "layer", "index", "kv_head", "labels"])
        return frame.assign(**{probe: score_LH.ravel() for probe, score_LH in self.scores.items()})

    def backed_by(self, scores: HeadScores) -> bool:
        """Whether the labels were made from these scores: the same model, and equal numbers for every probe of the labels."""
        same = scores.card.fingerprint == self.card.fingerprint and scores.card.shape == self.card.shape
        return same and all(probe in scores.probes and np.allclose(scores.matrix(probe), score_LH) for probe, score_LH in self.scores.items())

    def check_model(self, card: ModelCard) -> None:
        """Raise `InputError` unless these labels were made for this very model (same shape, same fingerprint where both are known)."""
        ours, theirs = self.card, card
        if ours.shape != theirs.shape or (ours.fingerprint and theirs.fingerprint and ours.fingerprint != theirs.fingerprint):
            raise InputError(
                f"these labels were made for {ours.name} (fingerprint {ours.fingerprint or 'unknown'}, {ours.shape}), "
                f"not for {theirs.name} (fingerprint {theirs.fingerprint or 'unknown'}, {theirs.shape})"
            )

    def to_json(self) -> dict[str, Any]:
        """The labels as plain data, as the published JSON Schema describes it."""
        shape = self.card.shape
        return {
            "schema": SCHEMA,
            "model": asdict(self.card),
            "provenance": dict(self.provenance),
            "rules": {name: asdict(rule) for name, rule in self.rules.items()},
            "evidence": {name: dict(facts) for name, facts in self.evidence.items()},
            **({"policy": dict(self.policy)} if self.policy is not None else {}),
            "heads": [
                {
                    "head": str(head),
                    "layer": head.layer,
                    "index": head.index,
                    "kv_head": shape.kv_head(head),
                    "labels": list(names),
                    "scores": {probe: float(score[head.layer, head.index]) for probe, score in self.scores.items()},
                }
                for head, names in self.labels.items()
            ],
        }

    def save(self, path: str | Path) -> Path:
        """Write the labels as JSON; an older file stays intact until the new one is complete."""
        return write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    @classmethod
    def from_json(cls, data: Any) -> "HeadLabels":
        """Labels from plain data. Raises `InputError` naming the place where it departs from the JSON Schema."""
        try:
            jsonschema.validate(data, schema())
        except jsonschema.ValidationError as error:
            why = error.message if len(error.message) < 200 else f"…{error.message[-100:]}"  # it begins with all that stands there
            other = "; `workbench convert` reads the files of other tools" if error.json_path == "$" else ""
            raise InputError(f"not head labels ({SCHEMA}): at {error.json_path}: {why}{other}") from error
        card = ModelCard.from_json(data["model"])
        shape = card.shape
        if len(data["heads"]) != shape.n_layers * shape.n_heads:
            raise InputError(f"{len(data['heads'])} heads for {shape.n_layers} layers × {shape.n_heads} query heads")
        probes = list(data["heads"][0]["scores"])
        scores = {probe: np.full((shape.n_layers, shape.n_heads), np.nan) for probe in probes}
        labels: dict[Head, tuple[str, ...]] = {}
        for row in data["heads"]:
            head = Head(int(row["layer"]), int(row["index"]))
            if str(head) != row["head"] or head in labels or shape.kv_head(head) != row["kv_head"] or set(row["scores"]) != set(probes):
                raise InputError(f"head {row['head']}: its layer, index, KV head or scores contradict the rest of the file")
            labels[head] = tuple(row["labels"])
            for probe, score in row["scores"].items():
                scores[probe][head.layer, head.index] = score
        rules = {name: Rule(**rule) for name, rule in data["rules"].items()}
        return cls(card, labels, scores, rules, data["evidence"], data["provenance"], data.get("policy"))

    @classmethod
    def load(cls, path: str | Path) -> "HeadLabels":
        """Read a labels file. Raises `InputError` for a file that is missing, no JSON, or not of the schema."""
        try:
            return cls.parse(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error

    @classmethod
    def parse(cls, content: bytes, name: str) -> "HeadLabels":
        """Labels from the bytes of a labels file called `name`. Raises `InputError` for what is no JSON, or not of the schema."""
        try:
            data = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name} is not JSON that can be read: {error}") from error
        try:
            return cls.from_json(data)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


def label(scores: HeadScores, rules: Mapping[str, Rule] | None = None) -> HeadLabels:
    """Label every head by the rules (default `RULES`); a rule whose probe was not scored, or lacked evidence, labels nothing."""
    rules = dict(RULES if rules is None else rules)
    usable = {name: rule for name, rule in rules.items() if rule.probe in scores.probes}
    shape = scores.card.shape
    chosen = {name: rule.select(scores.matrix(rule.probe), scores.matrix(rule.probe, "null"), shape) for name, rule in usable.items()}
    labels = {head: tuple(name for name, mask in chosen.items() if mask[head.layer, head.index]) for head in shape.heads()}
    matrices = {probe: scores.matrix(probe) for probe in scores.probes}
    return HeadLabels(scores.card, labels, matrices, usable, scores.evidence, scores.provenance, measured=scores)


@cache
def schema() -> dict[str, Any]:
    """The published JSON Schema of a labels file."""
    return json.loads(files("workbench").joinpath("data/head-labels-1.schema.json").read_text(encoding="utf-8"))


def _checked(probe: str, score: np.ndarray, shape: Shape, card: ModelCard) -> np.ndarray:
    array = np.array(score, float)
    if array.shape != (shape.n_layers, shape.n_heads):
        raise InputError(f"{probe}: scores of shape {array.shape} for {shape.n_layers} layers × {shape.n_heads} query heads")
    if not np.isfinite(array).all():
        layer, index = np.argwhere(~np.isfinite(array))[0].tolist()
        raise InputError(f"{card.name}, {Head(layer, index)}: the {probe} score is {array[layer, index]}; such scores are never exported")
    array.setflags(write=False)
    return array


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that a score can have")
