"""Each layer's query heads from strongest to weakest, `{"layer": [head, …]}`, as CompressKV reads it; ranks, no scores."""

import json
from pathlib import Path

import numpy as np

from workbench.errors import InputError
from workbench.files import write_text
from workbench.formats._format import Export, Format, chosen_probe, needed
from workbench.formats._reading import COUNT, INDEX, agree_on_layers, matrix, read_json
from workbench.heads import ModelCard
from workbench.labels import HeadLabels

_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"pattern": f"^{INDEX}$"},
    "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True, "items": COUNT},
}


def _write(labels: HeadLabels, path: Path, export: Export) -> list[Path]:
    score_LH = labels.scores[chosen_probe(labels, export.probe, "semantic_retrieval")]
    order_LH = np.argsort(-score_LH, axis=1, kind="stable")
    return [write_text(path, json.dumps({str(layer): order.tolist() for layer, order in enumerate(order_LH)}, indent=2) + "\n")]


def _read(path: Path, card: ModelCard | None, name: str) -> HeadLabels:
    orders = read_json(path, _SCHEMA)
    card = needed(card, path)
    agree_on_layers(path, card, len(orders))
    if odd := [layer for layer, order in orders.items() if len(order) != card.shape.n_heads]:
        raise InputError(f"{path} ranks {len(orders[odd[0]])} heads in layer {odd[0]}; {card.name} has {card.shape.n_heads} query heads")
    ranks = [(int(layer), int(head), 1 - place / len(order)) for layer, order in orders.items() for place, head in enumerate(order)]
    provenance = {"format": "compresskv", "file": path.name, "scores": "ranks within the layer: 1 is the strongest head, 1/H the weakest"}
    return HeadLabels(card, {}, {name: matrix(path, card, ranks)}, provenance=provenance)


FORMAT = Format(
    name="compresskv",
    title="CompressKV head order",
    tools=("CompressKV",),
    granularity="query",
    loss="Keeps the order within each layer on one probe, equal scores in order of the heads; loses the scores, other probes, labels and rules.",
    writes=_write,
    reads=_read,
    uses=("probe",),
    reads_as="semantic_retrieval",
)
