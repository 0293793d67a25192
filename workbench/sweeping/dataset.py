"""Where does a sweep lie? In a folder, or behind an address: one table of scores in a file per cell, which pandas and DuckDB read as one.

- `scores/<cell>.parquet`: a row for every head and probe, with the cell's model, prompts, seed and edits (`COLUMNS`)
- `cells/<cell>.json`: what was asked, what became of it, where, and how long it took
- `parts/`: the finished batches, from which an interrupted sweep goes on
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import InputError, unknown
from workbench.scores import MEANINGS, HeadScores
from workbench.storage import Place, names, read, write
from workbench.sweeping.asking import Cell

OWN = {
    "cell": "the cell: 16 hexadecimal digits of what was asked",
    "version": "the model with its revision, device and precision, where these were given",
    "prompts": "the prompts' name",
    "seed": "the seed of the prompts",
    "edits": "the name of what was changed in every pass, none if nothing was",
    "fingerprint": "16 hexadecimal digits of the model's settings and weights",
}
COLUMNS = {**OWN, **MEANINGS}
"""The columns of a sweep's table, and what they mean."""

_WHOLE = ("seed", "layer", "head", "kv_head", "n")
_REAL = ("score", "std", "ci_low", "ci_high", "null")
_SCHEMA = pa.schema([(name, pa.int64() if name in _WHOLE else pa.float64() if name in _REAL else pa.string()) for name in COLUMNS])


@dataclass(frozen=True)
class Dataset:
    """The results of a sweep under `root`; `patience` are seconds for which a storage that refuses is waited for."""

    root: Place
    patience: float = 0

    @property
    def parts(self) -> Place:
        """Where finished batches lie."""
        return self.root / "parts"

    def finished(self) -> set[str]:
        """The cells that have their scores."""
        return names(self.root / "scores", ".parquet", self.patience)

    def save(self, cell: Cell, scores: HeadScores) -> None:
        """Keep the scores of a cell."""
        own = {"cell": cell.fingerprint, "version": cell.wanted.words, "prompts": cell.prompts, "seed": cell.asked.seed, "edits": cell.edits}
        table = scores.table.assign(**own, fingerprint=scores.card.fingerprint)[list(COLUMNS)]
        table.attrs = scores.facts
        made = io.BytesIO()
        whole = pa.Table.from_pandas(table, _SCHEMA, preserve_index=False)
        pq.write_table(whole, made, write_page_checksum=True)
        write(self.root / "scores" / f"{cell.fingerprint}.parquet", made.getvalue(), self.patience)

    def tell(self, cell: Cell, facts: Mapping[str, Any]) -> None:
        """Write down what became of a cell."""
        told = {"cell": cell.fingerprint, "what": cell.what, **facts, "asked": cell.told}
        write(self.root / "cells" / f"{cell.fingerprint}.json", (json.dumps(told, indent=1, default=str) + "\n").encode(), self.patience)

    def scores(self, cell: str) -> HeadScores:
        """The scores of a cell by its name, with evidence and provenance. Raises `InputError` if they are not there."""
        content = read(self.root / "scores" / f"{cell}.parquet", self.patience)
        if content is None:
            raise unknown("cell of this sweep", cell, sorted(self.finished()))
        return HeadScores.parse(content, f"{self.root}, cell {cell}")

    def table(self, cells: Iterable[str] | None = None) -> pd.DataFrame:
        """The scores of all cells, or of some, as one table (`COLUMNS`). Raises `InputError` where none is finished."""
        chosen = sorted(self.finished() if cells is None else cells)
        if not chosen:
            raise InputError(f"{self.root} has no finished cell of a sweep; workbench sweep --out makes them")
        made = []
        for cell in chosen:
            content = read(self.root / "scores" / f"{cell}.parquet", self.patience)
            if content is None:
                raise unknown("cell of this sweep", cell, sorted(self.finished()))
            made.append(pq.read_table(pa.BufferReader(content), schema=_SCHEMA))
        return pa.concat_tables(made).to_pandas().reset_index(drop=True)

    def named(self) -> dict[str, str]:
        """The finished cells by what they are: model, prompts, edits and seed in words, in the order of these."""
        told = self.overview()
        done = told[told["cell"].isin(self.finished())]
        return dict(sorted(zip(done["what"], done["cell"], strict=True)))

    def overview(self) -> pd.DataFrame:
        """One row per cell that was begun: `cell`, `what`, `state` (done or failed), `error`, `seconds` of work, `batches`, `nodes`."""
        rows = []
        for cell in sorted(names(self.root / "cells", ".json", self.patience)):
            content = read(self.root / "cells" / f"{cell}.json", self.patience)
            rows.append(json.loads(content) if content is not None else {"cell": cell})
        return pd.DataFrame(rows, columns=["cell", "what", "state", "error", "seconds", "batches", "nodes"])
