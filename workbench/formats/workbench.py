"""Our own JSON: everything that `HeadLabels` holds, by the published JSON Schema."""

from pathlib import Path

from workbench.formats._format import Export, Format
from workbench.heads import ModelCard
from workbench.labels import HeadLabels


def _write(labels: HeadLabels, path: Path, _export: Export) -> list[Path]:
    return [labels.save(path)]


def _read(path: Path, _card: ModelCard | None, _name: str) -> HeadLabels:
    return HeadLabels.load(path)


FORMAT = Format(
    name="workbench",
    title="Head labels as JSON",
    tools=("attention-head workbench",),
    granularity="query",
    loss="Nothing.",
    writes=_write,
    reads=_read,
    knows_shape=True,
)
