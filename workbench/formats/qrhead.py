"""A set of query heads in YAML, `attn_head_set: "layer-head,…"`, with the model's name, as QRHead's retriever reads it."""

import json
import re
from pathlib import Path

import yaml

from workbench.errors import InputError
from workbench.files import write_text
from workbench.formats._format import Export, Format, needed
from workbench.formats._reading import INDEX, checked, read_text
from workbench.heads import Head, ModelCard
from workbench.labels import HeadLabels

_ALL = "full_heads"
_TEXT = {"type": "string", "minLength": 1}
_SCHEMA = {
    "type": "object",
    "required": ["attn_head_set"],
    "properties": {"attn_head_set": _TEXT, "model_base_class": _TEXT, "model_name_or_path": _TEXT},
}


def _write(labels: HeadLabels, path: Path, export: Export) -> list[Path]:
    label = export.label or "query_focused_retrieval"
    heads = labels.heads(label)
    if not heads:
        raise InputError(f"qrhead needs one head or more, and no head of {labels.card.name} is labelled {label}")
    config = {
        "attn_head_set": ",".join(f"{head.layer}-{head.index}" for head in heads),
        "model_base_class": labels.card.name.rsplit("/", 1)[-1],
        "model_name_or_path": labels.card.name,
    }
    return [write_text(path, "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items()))]


def _read(path: Path, card: ModelCard | None, name: str) -> HeadLabels:
    try:
        config = yaml.load(read_text(path), Loader=yaml.BaseLoader)  # noqa: S506 - the safe loader without its conversions: texts only
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path} is not YAML that can be read: {error}") from error
    chosen = checked(config, _SCHEMA, path)["attn_head_set"]
    card = needed(card, path)
    provenance = {"format": "qrhead", "file": path.name, "model_name_or_path": config.get("model_name_or_path")}
    return HeadLabels(card, dict.fromkeys(_heads(path, card, chosen), (name,)), {}, provenance=provenance)


def _heads(path: Path, card: ModelCard, chosen: str) -> list[Head]:
    if chosen == _ALL:
        return list(card.shape.heads())
    names = [name.strip() for name in chosen.split(",")]
    if wrong := [name for name in names if not re.fullmatch(f"{INDEX}-{INDEX}", name)]:
        raise InputError(f"{path}: {wrong[0]!r} in attn_head_set names no head; it is {_ALL!r} or a list such as 13-18,13-21")
    heads = [Head.parse(name) for name in names]
    if beyond := [head for head in heads if head.layer >= card.shape.n_layers or head.index >= card.shape.n_heads]:
        raise InputError(f"{path} has {beyond[0]}; {card.name} has {card.shape.n_layers} layers × {card.shape.n_heads} query heads")
    return heads


FORMAT = Format(
    name="qrhead",
    title="QRHead configuration",
    tools=("QRHead",),
    granularity="query",
    loss="Keeps which heads have one label; loses the scores, the other labels and the rules.",
    writes=_write,
    reads=_read,
    uses=("label",),
    reads_as="query_focused_retrieval",
    suffix=".yaml",
)
