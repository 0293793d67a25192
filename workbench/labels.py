"""Which heads are what? `RULES` turns scores into labels; `HeadLabels` is what the command line exports."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jsonschema
import numpy as np

from workbench.errors import InputError, unknown
from workbench.files import write_text
from workbench.heads import Head, ModelCard, Shape
from workbench.scores import HeadScores

SCHEMA = "workbench.head-labels/1"

KINDS = ("at_least", "top_share", "top_per_layer")


@dataclass(frozen=True)
class Rule:
    """When a head gets a label: by its score on one probe.

    `kind` is `at_least` (score ≥ value), `top_share` (the best `value` of all heads, 0–1; of all KV heads if `per_kv_head`,
    whose query heads then all get the label) or `top_per_layer` (the best `value` heads of each layer). By any rule the
    score must also be above the head's own null. `source` says where the value comes from; `chance` what a random head gets.
    """

    label: str
    probe: str
    value: float
    source: str
    chance: str
    kind: str = "at_least"
    per_kv_head: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of rule", self.kind, KINDS)
        if not np.isfinite(self.value):
            raise InputError(f"the rule for {self.label} needs a finite value, got {self.value}")
        if self.kind == "top_share" and not 0 <= self.value <= 1:
            raise InputError(f"the rule for {self.label} takes a share of the heads, 0 to 1, got {self.value:g}")
        if self.kind == "top_per_layer" and (self.value < 0 or self.value != int(self.value)):
            raise InputError(f"the rule for {self.label} takes a whole number of heads, got {self.value:g}")

    def select(self, score_LH: np.ndarray, null_LH: np.ndarray, shape: Shape) -> np.ndarray:
        """Which heads the rule labels: a boolean array of layers × query heads. Ties go to the earlier head."""
        if self.kind == "at_least":
            chosen = score_LH >= self.value
        elif self.kind == "top_per_layer":
            chosen = _best(score_LH, int(self.value))
        else:
            pool = shape.to_kv(score_LH) if self.per_kv_head else score_LH
            chosen = _best(pool.reshape(1, -1), round(self.value * pool.size)).reshape(pool.shape)
            chosen = shape.to_query(chosen) if self.per_kv_head else chosen
        return chosen & (score_LH > np.nan_to_num(null_LH, nan=-np.inf))


def _best(score_RC: np.ndarray, count: int) -> np.ndarray:
    """True at the `count` largest entries of each row."""
    order = np.argsort(-score_RC, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(score_RC.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


_HOUSE = "house default (spec 6.12), not from a paper"
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.label: rule
        for rule in (
            Rule("retrieval", "retrieval", 0.1, "Wu et al. 2024 (2404.15574): copies ≥ 10% of the needle's tokens", "0; control: another needle in its place"),
            Rule("semantic_retrieval", "semantic_retrieval", 4, "Lin et al. 2025 (2508.02401), CompressKV: best four of each layer", "rank only", "top_per_layer"),
            Rule("reasoning_retrieval", "reasoning_retrieval", 0.1, "HeadKV-R2 (2410.19258) states no cut; its authors' files have 6–7% of heads ≥ 0.1", "control: needle absent"),
            Rule("query_focused_retrieval", "query_focused_retrieval", 0.02, "Zhang et al. 2025 (2506.09944), QRHead: 1–2% of heads", "control: gold document absent", "top_share"),
            Rule("razor_echo", "razor_echo", 0.01, "RazorAttention (2407.15891): best 1% of KV heads", "number of copies / position", "top_share", True),
            Rule("razor_induction", "razor_induction", 0.14, "RazorAttention (2407.15891): best 14% of KV heads", "number of copies / position", "top_share", True),
            Rule("induction", "induction", 0.4, "Olsson et al. 2022; customary cut", "control: second half not repeated"),
            Rule("previous_token", "previous_token", 0.5, _HOUSE, "uniform attention"),
            Rule("duplicate_token", "duplicate_token", 0.3, _HOUSE, "control: second half not repeated"),
            Rule("copying", "copying", 0.5, _HOUSE, "0 in expectation: eigenvalues of a random matrix"),
            Rule("attention_sink", "attention_sink", 0.3, "Gu et al. 2024 (2410.10781): ε = 0.3 at 64 tokens", "0.074: uniform attention over 64 tokens"),
            Rule("sink_anywhere", "sink_anywhere", 0.3, "Gu et al. 2024 (2410.10781): ε = 0.3, any position", "0.074: uniform attention over 64 tokens"),
            Rule("local", "local", 0.9, "house default", "uniform attention"),
            Rule("streaming", "streaming", 0.95, "house default: at most 5% of the mass is lost", "uniform attention"),
            Rule("diffuse", "entropy", 0.8, "house default: 80% of a uniform head's entropy", "control: none above it"),
        )
    }
)
"""Every threshold of the project, each with its source and with what a random head gets."""


def rules_with(changes: Iterable[str]) -> dict[str, Rule]:
    """`RULES` with some values changed, from texts such as `retrieval=0.2`. Raises `InputError` for an unknown rule or no number."""
    rules = dict(RULES)
    for change in changes:
        name, _, value = change.partition("=")
        if name not in rules:
            raise unknown("rule", name, rules)
        try:
            number = float(value)
        except ValueError as error:
            raise InputError(f"a rule is changed as in {name}=0.2, not {change!r}") from error
        rules[name] = replace(rules[name], value=number, source=f"set by the user (default {rules[name].value:g})")
    return rules


@dataclass(frozen=True, eq=False)
class HeadLabels:
    """What each head is: labels by head, the scores behind them, the rules, the evidence, and the model they hold for.

    `labels` has every head of the model, in order, with its labels (several or none). `scores` holds one array of
    layers × query heads per probe, NaN nowhere. `evidence` says per probe how many tests were valid, `provenance` which
    versions, seed, dtype, device and implementation made it. Values are not to be written to.
    """

    card: ModelCard
    labels: Mapping[Head, tuple[str, ...]]
    scores: Mapping[str, np.ndarray]
    rules: Mapping[str, Rule] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

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
            raise InputError(f"not head labels ({SCHEMA}): at {error.json_path}: {error.message[:200]}") from error
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
        return cls(card, labels, scores, rules, data["evidence"], data["provenance"])

    @classmethod
    def load(cls, path: str | Path) -> "HeadLabels":
        """Read a labels file. Raises `InputError` for a file that is missing, no JSON, or not of the schema."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON that can be read: {error}") from error
        try:
            return cls.from_json(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def label(scores: HeadScores, rules: Mapping[str, Rule] | None = None) -> HeadLabels:
    """Label every head by the rules (default `RULES`); a rule whose probe was not scored, or lacked evidence, labels nothing."""
    rules = dict(RULES if rules is None else rules)
    usable = {name: rule for name, rule in rules.items() if rule.probe in scores.probes}
    shape = scores.card.shape
    chosen = {name: rule.select(scores.matrix(rule.probe), scores.matrix(rule.probe, "null"), shape) for name, rule in usable.items()}
    labels = {head: tuple(name for name, mask in chosen.items() if mask[head.layer, head.index]) for head in shape.heads()}
    matrices = {probe: scores.matrix(probe) for probe in scores.probes}
    return HeadLabels(scores.card, labels, matrices, usable, scores.evidence, scores.provenance)


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
