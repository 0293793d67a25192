"""A folder that HeadVis and Neuronpedia's front end open: `config.json`, `scatter_data.json` and a file per head.

Only metrics that we measured are written; the front end takes its axes from `config.json`. Our entropy is a share of a uniform
head's, not Shannon entropy, so that it is called `entropy_score` and never HeadVis's `pattern_entropy`.
"""

import json
from pathlib import Path

from workbench.errors import InputError
from workbench.files import write_text
from workbench.formats._format import Export, Format, needed
from workbench.formats._reading import COUNT, NUMBER, card_of, matrix, read_json
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels

_CONFIG, _SCATTER = "config.json", "scatter_data.json"
_PROBES = {"induction_score": "induction", "prev_token_score": "previous_token", "previous_token_score": "previous_token"}
_METRICS = {"induction": "induction_score", "previous_token": "prev_token_score"}
_THEIRS = {
    *("self_attention_score", "pattern_entropy", "qk_distance", "qk_distance_variance"),
    *("logit_std", "top_logit_margin", "logit_z_score", "query_token_entropy", "key_token_entropy"),
}
_ROW = {
    "type": "object",
    "required": ["layer", "head"],
    "properties": {"layer": COUNT, "head": COUNT},
    "additionalProperties": {**NUMBER, "type": ["number", "null"]},
}
_ROWS = {"type": "array", "minItems": 1, "items": _ROW}
_CONFIG_SCHEMA = {"type": "object", "properties": {"pipeline_config": {"type": "object"}}}


def metric(probe: str) -> str:
    """What HeadVis calls a probe; its own metrics keep their names."""
    return _METRICS.get(probe) or (probe if probe in _THEIRS else f"{probe}_score")


def probe(name: str) -> str:
    """What we call a metric of HeadVis; metrics that we do not measure keep their names."""
    return _PROBES.get(name) or (name if name in _THEIRS else name.removesuffix("_score"))


def _write(labels: HeadLabels, path: Path, _export: Export) -> list[Path]:
    if not labels.scores:
        raise InputError("headvis shows scores, and these labels have none")
    if len({metric(name) for name in labels.scores}) < len(labels.scores):
        raise InputError(f"headvis has one metric for two of these probes: {', '.join(labels.scores)}")
    config = json.dumps(_config(labels), indent=1, allow_nan=False)
    rows = {head: {metric(name): float(score[head.layer, head.index]) for name, score in labels.scores.items()} for head in labels.labels}
    heads = [write_text(path / "heads" / f"{head}.json", json.dumps(_head(labels, head, row))) for head, row in rows.items()]
    scatter = [{"layer": head.layer, "head": head.index, **row} for head, row in rows.items()]
    return [*heads, write_text(path / _SCATTER, json.dumps(scatter)), write_text(path / _CONFIG, config)]


def _head(labels: HeadLabels, head: Head, row: dict[str, float]) -> dict[str, object]:
    return {"sequences": [], "histogram": {}, "statistics": row, "layer": head.layer, "head": head.index, "labels": list(labels.labels[head])}


def _config(labels: HeadLabels) -> dict[str, object]:
    data, shape = labels.to_json(), labels.card.shape
    return {
        "model_name": labels.card.name,
        "heads": [[head.layer, head.index] for head in labels.labels],
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "metrics": [metric(name) for name in labels.scores],
        "metric_descriptions": {metric(name): f"probe {name} of the attention-head workbench" for name in labels.scores},
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "pipeline_config": {"model": data["model"], "rules": data["rules"], "provenance": data["provenance"]},
    }


def _read(path: Path, card: ModelCard | None, _name: str) -> HeadLabels:
    rows = read_json(path / _SCATTER, _ROWS)
    pipeline = read_json(path / _CONFIG, _CONFIG_SCHEMA).get("pipeline_config", {})
    card = card_of(path / _CONFIG, pipeline["model"]) if "model" in pipeline else needed(card, path)
    names = dict.fromkeys(key for row in rows for key, value in row.items() if key not in ("layer", "head") and value is not None)
    if not names:
        raise InputError(f"{path / _SCATTER} has no metric")
    if len({probe(key) for key in names}) < len(names):
        raise InputError(f"{path / _SCATTER} has two metrics for one probe: {', '.join(names)}")
    scores = {probe(key): matrix(path / _SCATTER, card, _column(path, rows, key)) for key in names}
    return HeadLabels(card, {}, scores, provenance={"format": "headvis", "file": path.name})


def _column(path: Path, rows: list[dict[str, float]], key: str) -> list[tuple[int, int, float]]:
    if missing := [Head(int(row["layer"]), int(row["head"])) for row in rows if row.get(key) is None]:
        raise InputError(f"{path / _SCATTER}: {missing[0]} has no {key}, other heads have")
    return [(int(row["layer"]), int(row["head"]), row[key]) for row in rows]


FORMAT = Format(
    name="headvis",
    title="HeadVis folder",
    tools=("HeadVis", "Neuronpedia"),
    granularity="query",
    loss="Keeps all scores; labels stand in the head files but are not read back; without HeadVis's own metrics (self attention, QK distance, "
    "Shannon entropy) and sequences, which are not measured here.",
    writes=_write,
    reads=_read,
    knows_shape=True,
)
