"""What is a circuit, as an object? Heads and edges with their effects, how faithful they are, and what made it; saved, loaded, exported."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from workbench.errors import InputError
from workbench.files import write_file, write_text
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels
from workbench.rules import Rule
from workbench.showing import Shown

SCHEMA = "workbench.circuit/1"
TABLES = {
    "effects": ("head", "effect", "low", "high", "normalised", "n"),
    "edges": ("edge", "exact"),
    "faithfulness": ("ablation", "faithfulness", "low", "high"),
    "minimality": ("head", "ablation", "drop"),
}
"""The tables of a circuit, and the columns without which it is none: of all heads (`effects.COLUMNS`), of edges measured (`verify.COLUMNS`), and of
`faithfulness.evaluate`."""

NAMES = ("head", "edge", "ablation")
"""Those of them that are text; the others are numbers."""

MOST_HEADS = 2**16
"""More heads than any model has."""


@dataclass(frozen=True, eq=False)
class Circuit(Shown):
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
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read a circuit from {path}: {error}") from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, name: str) -> "Circuit":
        """A circuit from the bytes of a file called `name`. Raises `InputError` for what is none, naming what is missing or does not fit its model."""
        try:
            data = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"cannot read a circuit from {name}: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise InputError(f"{name} is no circuit ({SCHEMA}); `workbench circuit find` writes one")
        try:
            card = ModelCard.from_json(data["model"])
            if card.shape.n_layers * card.shape.n_heads > MOST_HEADS:
                raise InputError(f"a model of {card.shape.n_layers} × {card.shape.n_heads} heads")
            tables = {table: _frame(data[table], columns) for table, columns in TABLES.items()}
            made = cls(card, str(data["task"]), tuple(map(Head.parse, data["heads"])), **tables, provenance=dict(data["provenance"]))
            made._check_nodes()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{name}: not a complete circuit: {type(error).__name__} {error}") from error
        return made

    def _check_nodes(self) -> None:
        """Raise `ValueError` unless every head and edge that the tables name is one of the model, and named once."""
        if len({*self.heads}) < len(self.heads) or self.effects["head"].duplicated().any() or self.minimality.duplicated(["head", "ablation"]).any():
            raise InputError("a head that is there twice")
        for head in {*self.effects["head"], *self.minimality["head"]}:
            self.card.shape.check(Head.parse(head))
        for node, facts in self.graph().nodes(data=True):
            if "H" in node:
                self.card.shape.check(Head.parse(node))
            elif not -1 <= facts["layer"] <= self.card.shape.n_layers:
                raise InputError(f"no {node} in a model of {self.card.shape.n_layers} layers")

    def check_model(self, card: ModelCard) -> None:
        """Raise `InputError` unless the circuit is of this very model."""
        HeadLabels(self.card, {}, {}).check_model(card)

    @property
    def table(self) -> pd.DataFrame:
        """One row for each of its heads, best first: its effect, and what its leaving costs the circuit under each ablation (`resample_drop`, …)."""
        names = pd.DataFrame({"head": pd.Series(map(str, self.heads), dtype=str)})
        drops = self.minimality.pivot_table(index="head", columns="ablation", sort=False).swaplevel(axis=1)
        drops = drops[[column for ablation in self.minimality["ablation"].unique() for column in drops if column[0] == ablation]]
        drops.columns = [f"{ablation}_{name}" for ablation, name in drops.columns]
        return names.merge(self.effects, how="left", on="head").merge(drops.reset_index(), how="left", on="head")

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


def _frame(rows: list[dict[str, Any]], needed: Sequence[str]) -> pd.DataFrame:
    """A table from plain data, in which numbers that are not finite are null. Raises `ValueError` for a table without the columns that are needed."""
    frame = pd.DataFrame(rows, columns=None if rows else list(needed))
    if missing := [name for name in needed if name not in frame]:
        raise InputError(f"a table without {', '.join(missing)}")
    if wrong := [name for name in needed if name in NAMES and not all(isinstance(cell, str) for cell in frame[name])]:
        raise InputError(f"{wrong[0]} is no text")
    blank = [name for name in frame if frame[name].isna().any() and not any(isinstance(cell, str) for cell in frame[name])]
    return frame.astype(dict.fromkeys({*blank, *(name for name in needed if name not in NAMES and not is_numeric_dtype(frame[name]))}, float))


def _layer(node: str) -> int:
    return int(node.removeprefix("L").partition("H")[0].partition("M")[0])
