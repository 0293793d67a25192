"""What is a circuit, as an object? Heads and edges with their effects, how faithful they are, and what made it; saved, loaded, exported."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from workbench.errors import InputError
from workbench.files import write_file, write_text
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels
from workbench.rules import Rule

SCHEMA = "workbench.circuit/1"
TABLES = ("effects", "edges", "faithfulness", "minimality")
"""The tables of a circuit: of all heads (`effects.COLUMNS`), of edges measured (`verify.COLUMNS`), and of `faithfulness.evaluate`."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """The `heads` that make a behaviour of one model, best first, with the evidence.

    `effects` has a row for every head of the model, in the circuit or not; `edges` those between its heads, the input and the logits that were measured.
    `faithfulness` and `minimality` were measured on prompts that the circuit was not found on. `provenance` says task, method, prompts, seed, versions, device.
    """

    card: ModelCard
    task: str
    heads: tuple[Head, ...]
    effects: pd.DataFrame
    edges: pd.DataFrame
    faithfulness: pd.DataFrame
    minimality: pd.DataFrame
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for head in self.heads:
            self.card.shape.check(head)

    def to_json(self) -> dict[str, Any]:
        """The circuit as plain data."""
        tables = {name: json.loads(getattr(self, name).to_json(orient="records", double_precision=10)) for name in TABLES}
        heads = [str(head) for head in self.heads]
        return {"schema": SCHEMA, "model": asdict(self.card), "task": self.task, "heads": heads, **tables, "provenance": dict(self.provenance)}

    def save(self, path: str | Path) -> Path:
        """Write it as JSON; an older file stays intact until the new one is complete."""
        return write_text(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read a circuit. Raises `InputError` for a file that is none, naming what is missing."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read a circuit from {path}: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise InputError(f"{path} is no circuit ({SCHEMA}); `workbench circuit find` writes one")
        try:
            tables = {name: _frame(data[name]) for name in TABLES}
            return cls(ModelCard.from_json(data["model"]), data["task"], tuple(map(Head.parse, data["heads"])), **tables, provenance=data["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a complete circuit: {type(error).__name__} {error}") from error

    def check_model(self, card: ModelCard) -> None:
        """Raise `InputError` unless the circuit is of this very model."""
        HeadLabels(self.card, {}, {}).check_model(card)

    def graph(self) -> nx.DiGraph:
        """Heads, input and logits as nodes (layer, effect), measured edges as edges (branch, effect); heads without edges are there too."""
        graph = nx.DiGraph(model=self.card.name, task=self.task)
        effect = dict(zip(self.effects["head"], self.effects["effect"], strict=True)) if len(self.effects) else {}
        for head in self.heads:
            graph.add_node(str(head), layer=head.layer, effect=float(effect.get(str(head), np.nan)))
        for row in self.edges.to_dict("records"):
            sender, _, receiver = row["edge"].partition("->")
            name, _, branch = receiver.partition(".")
            for target in self._receiving(name):
                weight, strength = float(row["exact"]), abs(float(row["exact"]))
                if not graph.has_edge(sender, target):
                    graph.add_edge(sender, target, branch=branch or "input", effect=weight, strength=strength)
                    continue
                known = graph.edges[sender, target]
                known["branch"] += f"+{branch}"
                if strength > known["strength"]:
                    known["effect"], known["strength"] = weight, strength
        for node in graph:
            graph.nodes[node].setdefault("layer", -1 if node == "input" else self.card.shape.n_layers if node == "logits" else _layer(node))
        return graph

    def _receiving(self, name: str) -> list[str]:
        """The heads that a receiver belongs to: those of the circuit, where it is a KV head."""
        if "G" not in name:
            return [name]
        layer, _, group = name.removeprefix("L").partition("G")
        return [str(head) for head in sorted(self.heads) if head.layer == int(layer) and self.card.shape.kv_head(head) == int(group)]

    def to_graphml(self, path: str | Path) -> Path:
        """Write `graph()` as GraphML, which Gephi, Cytoscape and yEd read."""
        return write_file(path, lambda part: nx.write_graphml(self.graph(), part))

    def labels(self, given: HeadLabels | None = None) -> HeadLabels:
        """Head labels: `circuit_TASK` for the heads, with the score of that name, 0 and more.

        The score is |effect| as a share of the metric's difference, 0 where there is none; of codes, how many.
        With `given` labels of the same model these are kept and the new ones added. Raises `InputError` for those of another model.
        """
        task = Path(self.task).stem if self.task.endswith(".jsonl") else self.task
        name = "circuit_" + "".join(letter if letter.isalnum() else "_" for letter in task)
        score_LH = np.zeros((self.card.shape.n_layers, self.card.shape.n_heads))
        column = "normalised" if self.effects["normalised"].notna().any() else "effect"
        for row in self.effects.to_dict("records"):
            head = Head.parse(row["head"])
            score_LH[head.layer, head.index] = abs(row[column]) if np.isfinite(row[column]) else 0.0
        least = min((score_LH[head.layer, head.index] for head in self.heads), default=0.0)
        rule = Rule(name, name, float(least), f"the circuit found for {self.task}: {self.provenance.get('method', '')}", "see the circuit's random rivals")
        count = int(self.effects["n"].iloc[0]) if len(self.effects) else 0
        evidence = {"status": "ok", **dict.fromkeys(("tests", "valid", "counted"), count), "dead": 0}
        mine = dict.fromkeys(self.heads, (name,))
        if given is None:
            return HeadLabels(self.card, mine, {name: score_LH}, {name: rule}, {name: evidence}, dict(self.provenance))
        given.check_model(self.card)
        merged = {head: (*(label for label in names if label != name), *mine.get(head, ())) for head, names in given.labels.items()}
        return replace(
            given,
            labels=merged,
            scores={**given.scores, name: score_LH},
            rules={**given.rules, name: rule},
            evidence={**given.evidence, name: evidence},
            provenance={**given.provenance, name: dict(self.provenance)},
        )


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table from plain data, in which numbers that are not finite are null."""
    frame = pd.DataFrame(rows)
    blank = [name for name in frame if frame[name].isna().any() and not any(isinstance(cell, str) for cell in frame[name])]
    return frame.astype(dict.fromkeys(blank, float))


def _layer(node: str) -> int:
    return int(node.removeprefix("L").partition("H")[0].partition("M")[0])
