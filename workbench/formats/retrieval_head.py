"""Score lists as one line of JSON, `{"layer-head": [score, …]}`, as Retrieval_Head, HeadKV and KVCache-Factory read them.

Their loaders take the values in the order of the file, so that the keys stand layer by layer.
"""

import json
from pathlib import Path
from statistics import fmean

import numpy as np

from workbench.errors import InputError
from workbench.files import write_text
from workbench.formats._format import Export, Format, chosen_probe, needed
from workbench.formats._reading import INDEX, NUMBER, matrix, read_json
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels

_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"pattern": f"^{INDEX}-{INDEX}$"},
    "additionalProperties": {"type": "array", "minItems": 1, "items": {**NUMBER, "minimum": 0}},
}


def _write(labels: HeadLabels, path: Path, export: Export) -> list[Path]:
    probe = chosen_probe(labels, export.probe, "retrieval")
    score_LH = labels.scores[probe]
    if (score_LH < 0).any():
        worst = Head(*map(int, np.argwhere(score_LH < 0)[0]))
        raise InputError(f"retrieval_head holds no negative scores; {probe} has {score_LH[worst.layer, worst.index]} at {worst}")
    lists = {f"{head.layer}-{head.index}": [float(score_LH[head.layer, head.index])] for head in labels.labels}
    return [write_text(path, json.dumps(lists) + "\n")]


def _read(path: Path, card: ModelCard | None, name: str) -> HeadLabels:
    lists = read_json(path, _SCHEMA)
    if len(lengths := {len(samples) for samples in lists.values()}) > 1:
        raise InputError(f"{path}: every head needs the same number of scores, there are lists of {min(lengths)} to {max(lengths)}")
    card = needed(card, path)
    means = {Head.parse(key): fmean(samples) for key, samples in lists.items()}
    score_LH = matrix(path, card, ((head.layer, head.index, mean) for head, mean in means.items()))
    return HeadLabels(card, {}, {name: score_LH}, provenance={"format": "retrieval_head", "file": path.name, "samples": max(lengths)})


FORMAT = Format(
    name="retrieval_head",
    title="Retrieval_Head score lists",
    tools=("Retrieval_Head", "HeadKV", "KVCache-Factory"),
    granularity="query",
    loss="Keeps one probe's mean score; loses its single samples, the other probes, the labels, the rules and which model it was.",
    writes=_write,
    reads=_read,
    uses=("probe",),
    reads_as="retrieval",
)
