"""One sparse pattern per query head, `[{"head": [pattern, a, b, score], …}, … layers]`, as MInference reads it.

A head of the label is written as `vertical_and_slash` (1000 verticals, 6096 slashes, its own default and the nearest to full
attention), every other head as `stream_llm` (`sink` first and `recent` last tokens, 100 and 800 unless given). The score is that of the probe behind
the label; MInference does not use it, and a set of heads without any scores gets its default, 1.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.files import write_text
from workbench.formats._format import Export, Format, chosen_probe, needed
from workbench.formats._reading import COUNT, INDEX, NUMBER, agree_on_layers, matrix, read_json
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels

_DEFAULT: list[Any] = ["vertical_and_slash", 1000, 6096, 1]
_PATTERN = {
    "type": "array",
    "minItems": 4,
    "maxItems": 4,
    "prefixItems": [{"enum": ["vertical_and_slash", "stream_llm", "block_sparse"]}, COUNT, COUNT, NUMBER],
}
_LAYER = {"type": "object", "propertyNames": {"pattern": f"^{INDEX}$"}, "additionalProperties": _PATTERN}
_SCHEMA = {"type": "array", "minItems": 1, "items": _LAYER}


def _write(labels: HeadLabels, path: Path, export: Export) -> list[Path]:
    shape, label = labels.card.shape, export.label or "retrieval"
    full, score_LH = labels.heads(label), _scores(labels, label, export.probe)
    stream = ["stream_llm", 100 if export.sink is None else export.sink, 800 if export.recent is None else export.recent]
    layers = [
        {str(head): [*(_DEFAULT[:3] if Head(layer, head) in full else stream), float(score_LH[layer, head])] for head in range(shape.n_heads)}
        for layer in range(shape.n_layers)
    ]
    return [write_text(path, json.dumps(layers) + "\n")]


def _scores(labels: HeadLabels, label: str, probe: str | None) -> Float[np.ndarray, "L H"]:
    if probe is None and not labels.scores:
        return np.ones((labels.card.shape.n_layers, labels.card.shape.n_heads))
    return labels.scores[chosen_probe(labels, probe, labels.rules[label].probe if label in labels.rules else label)]


def _read(path: Path, card: ModelCard | None, name: str) -> HeadLabels:
    layers = read_json(path, _SCHEMA)
    card = needed(card, path)
    agree_on_layers(path, card, len(layers))
    default = {str(head): _DEFAULT for head in range(card.shape.n_heads)}
    patterns = {Head(layer, int(head)): pattern for layer, heads in enumerate(layers) for head, pattern in {**default, **heads}.items()}
    score_LH = matrix(path, card, ((head.layer, head.index, pattern[3]) for head, pattern in patterns.items()))
    labels = {head: (pattern[0],) for head, pattern in patterns.items()}
    missing = sum(card.shape.n_heads - len(heads) for heads in layers)
    return HeadLabels(card, labels, {name: score_LH}, provenance={"format": "minference", "file": path.name, "heads_by_default": missing})


FORMAT = Format(
    name="minference",
    title="MInference best patterns",
    tools=("MInference",),
    granularity="query",
    loss="Says only full or streaming; MInference has no full heads, the nearest is vertical_and_slash, and some of its kernels ignore stream_llm.",
    writes=_write,
    reads=_read,
    uses=("label", "probe", "sink", "recent"),
    reads_as="minference",
)
