"""The KV heads that keep their whole cache, `{"layer": [KV head, …]}`, as RazorAttention in MindSpore's golden-stick reads it.

The other file of RazorAttention, msmodelslim's `.pt`, is a pickle: reading one can run any code, so that it is refused.
"""

import json
from pathlib import Path

from workbench.errors import InputError
from workbench.files import write_text
from workbench.formats._format import Export, Format, full_heads, needed
from workbench.formats._reading import COUNT, INDEX, read_json
from workbench.heads import ModelCard
from workbench.labels import HeadLabels

_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"pattern": f"^{INDEX}$"},
    "additionalProperties": {"type": "array", "uniqueItems": True, "items": COUNT},
}


def _write(labels: HeadLabels, path: Path, export: Export) -> list[Path]:
    _refuse_pickle(path)
    full = full_heads(labels, [export.label] if export.label else ["razor_echo", "razor_induction"])
    shape = labels.card.shape
    kept = {str(layer): sorted({shape.kv_head(head) for head in full if head.layer == layer}) for layer in range(shape.n_layers)}
    return [write_text(path, json.dumps(kept) + "\n")]


def _read(path: Path, card: ModelCard | None, name: str) -> HeadLabels:
    _refuse_pickle(path)
    kept = read_json(path, _SCHEMA)
    card = needed(card, path)
    shape = card.shape
    if beyond := [f"{layer}: {heads}" for layer, heads in kept.items() if int(layer) >= shape.n_layers or max(heads, default=0) >= shape.n_kv_heads]:
        raise InputError(f"{path} has KV heads {{{beyond[0]}}}; {card.name} has {shape.n_layers} layers × {shape.n_kv_heads} KV heads")
    labels = {head: (name,) for head in shape.heads() if shape.kv_head(head) in kept.get(str(head.layer), ())}
    return HeadLabels(card, labels, {}, provenance={"format": "razor", "file": path.name})


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in (".pt", ".pth", ".pkl", ".bin"):
        raise InputError(f"{path} would be a pickle, which can run any code when read; razor files are JSON (MindSpore's golden-stick), not msmodelslim's .pt")


FORMAT = Format(
    name="razor",
    title="RazorAttention head set",
    tools=("MindSpore golden-stick RazorAttention",),
    granularity="kv",
    loss="Keeps which KV heads have a labelled query head; loses which of the group it was, the two sets' difference, the scores and the rules.",
    writes=_write,
    reads=_read,
    uses=("label",),
    reads_as="razor",
)
