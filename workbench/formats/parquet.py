"""One tidy Parquet table, a row per head and probe, for pandas, polars, DuckDB and R; the rest stands in its metadata as JSON."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import InputError
from workbench.files import write_file
from workbench.formats._format import Export, Format
from workbench.formats._reading import checked
from workbench.heads import ModelCard
from workbench.labels import SCHEMA, HeadLabels

_COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("fingerprint", pa.string()),
        ("layer", pa.int64()),
        ("head", pa.int64()),
        ("kv_head", pa.int64()),
        ("probe", pa.string()),
        ("score", pa.float64()),
        ("labels", pa.list_(pa.string())),
    ]
)
_METADATA = {"type": "object", "required": ["schema", "model", "provenance", "rules", "evidence"]}


def _write(labels: HeadLabels, path: Path, _export: Export) -> list[Path]:
    data = labels.to_json()
    model, fingerprint = labels.card.name, labels.card.fingerprint
    rows = [
        dict(zip(_COLUMNS.names, (model, fingerprint, head["layer"], head["index"], head["kv_head"], probe, score, head["labels"]), strict=True))
        for head in data.pop("heads")
        for probe, score in (head["scores"] or {None: None}).items()
    ]
    schema = _COLUMNS.with_metadata({SCHEMA: json.dumps(data, allow_nan=False)})
    return [write_file(path, lambda part: pq.write_table(pa.Table.from_pylist(rows, schema), part))]


def _read(path: Path, _card: ModelCard | None, _name: str) -> HeadLabels:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        facts = json.loads((table.schema.metadata or {}).get(SCHEMA.encode(), b"null"))
        rows = table.to_pylist()
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {error}") from error
    if not table.schema.equals(_COLUMNS):
        raise InputError(f"{path} needs the columns {', '.join(_COLUMNS.names)} as written by the workbench; it has {', '.join(table.schema.names)}")
    if facts is None:
        raise InputError(f"{path} lacks the metadata {SCHEMA}; it was not written by the workbench")
    checked(facts, _METADATA, path)
    try:
        return HeadLabels.from_json({**facts, "heads": _heads(rows)})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _heads(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    heads: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        layer, index = row["layer"], row["head"]
        fresh = {"head": f"L{layer}H{index}", "layer": layer, "index": index, "kv_head": row["kv_head"], "labels": row["labels"], "scores": {}}
        head = heads.setdefault((layer, index), fresh)
        if row["probe"] in head["scores"] or head["labels"] != row["labels"] or head["kv_head"] != row["kv_head"]:
            raise InputError(f"two rows for L{layer}H{index} and {row['probe']} contradict each other")
        if row["probe"] is not None:
            head["scores"][row["probe"]] = row["score"]
    return list(heads.values())


FORMAT = Format(
    name="parquet",
    title="Tidy Parquet table",
    tools=("pandas", "polars", "DuckDB", "R"),
    granularity="query",
    loss="Nothing.",
    writes=_write,
    reads=_read,
    knows_shape=True,
    suffix=".parquet",
)
