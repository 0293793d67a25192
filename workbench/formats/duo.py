"""A folder with `full_attention_heads.tsv` and `config.json`, as DuoAttention and kvpress read it: how much a KV head needs all keys.

Both tools cut at a quantile, DuoAttention after adding random noise. Raw scores are mostly exact zeros, so that the noise would
choose the heads; therefore the ranks are written, evenly spaced over (0, 1], equal scores in order with the earlier head first.
Gates (`duo_gate`, trained or read from such a folder) are what these files are made for: they are written as they are.
"""

import json
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from workbench.errors import InputError
from workbench.files import write_text
from workbench.formats._format import Export, Format, chosen_probe, needed
from workbench.formats._reading import COUNT, agree_on_layers, card_of, matrix, read_json, read_text
from workbench.heads import ModelCard
from workbench.labels import HeadLabels

GATE = "duo_gate"
_TABLE, _CONFIG = "full_attention_heads.tsv", "config.json"
_SCHEMA = {
    "type": "object",
    "required": ["sink_size", "recent_size"],
    "properties": {"sink_size": COUNT, "recent_size": COUNT, "provenance": {"type": "object"}},
}


def ranks(score: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Ranks from 1/n (weakest) to 1 (strongest), all different; of equal scores the earlier one ranks higher."""
    order = np.argsort(-score, axis=None, kind="stable")
    rank = np.empty(score.size)
    rank[order] = np.arange(score.size, 0, -1) / score.size
    return rank.reshape(score.shape)


def _write(labels: HeadLabels, path: Path, export: Export) -> list[Path]:
    shape = labels.card.shape
    probe = chosen_probe(labels, export.probe, "retrieval" if "retrieval" in labels.scores or GATE not in labels.scores else GATE)
    reduction = export.reduction or "max"
    if min(shape.n_layers, shape.n_kv_heads) < 2:
        raise InputError(f"duo needs two layers and two KV heads or more: its loaders take one row or column for a list; {labels.card.name} is {shape}")
    score_LG = shape.to_kv(labels.scores[probe], reduction)
    known = labels.provenance if probe == GATE else {}
    config = {
        "model_name": labels.card.name,
        "sink_size": known.get("sink", 128) if export.sink is None else export.sink,
        "recent_size": known.get("recent", 256) if export.recent is None else export.recent,
        "scores": "gates in [0, 1]" if probe == GATE else f"ranks in (0, 1] of the {reduction} over each group of the probe {probe}",
        "model": labels.to_json()["model"],
        **({"provenance": dict(known)} if known else {}),
    }
    value_LG = score_LG.clip(0, 1) if probe == GATE else ranks(score_LG)
    rows = "".join("\t".join(f"{value:.18e}" for value in row) + "\n" for row in value_LG)
    told = json.dumps(config, indent=2, allow_nan=False) + "\n"
    return [write_text(path / _TABLE, rows), write_text(path / _CONFIG, told)]


def _read(path: Path, card: ModelCard | None, name: str) -> HeadLabels:
    config = read_json(path / _CONFIG, _SCHEMA)
    table = [[_number(path / _TABLE, cell) for cell in line.split("\t")] for line in read_text(path / _TABLE).splitlines()]
    card = card_of(path / _CONFIG, config["model"]) if "model" in config else needed(card, path)
    agree_on_layers(path / _TABLE, card, len(table))
    cells = [(layer, head, value) for layer, row in enumerate(table) for head, value in enumerate(row)]
    gate_LG = matrix(path / _TABLE, card, cells, per_kv=True).clip(0, 1)
    provenance = {**config.get("provenance", {}), "format": "duo", "file": path.name, "sink": int(config["sink_size"]), "recent": int(config["recent_size"])}
    return HeadLabels(card, {}, {name: card.shape.to_query(gate_LG)}, provenance=provenance)


def _number(path: Path, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: {cell[:40]!r} is not a finite number")
    return value


FORMAT = Format(
    name="duo",
    title="DuoAttention pattern",
    tools=("DuoAttention", "kvpress"),
    granularity="kv",
    loss="Keeps gates, or the order of the KV heads on one probe; loses the scores, which query head of a group was strong, other probes, labels and rules.",
    writes=_write,
    reads=_read,
    uses=("probe", "reduction", "sink", "recent"),
    reads_as=GATE,
    knows_shape=True,
)
