"""How strongly does each head show each behaviour? `HeadScores`: one tidy table with n, spread, interval and null."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.errors import InputError, unknown
from workbench.files import write_file
from workbench.heads import Head, ModelCard
from workbench.showing import Shown

MEANINGS = {
    "model": "the model's name",
    "layer": "the layer, from 0",
    "head": "the query head within the layer, from 0",
    "kv_head": "the KV head within the layer that the query head reads, from 0",
    "probe": "the probe",
    "score": "the mean over samples",
    "n": "how many samples counted",
    "std": "the standard deviation of the samples; NaN where n < 2",
    "ci_low": "the lower end of the 95% bootstrap interval of the mean; NaN where n < 2",
    "ci_high": "its upper end",
    "null": "the mean score where the behaviour cannot show, by the probe's null",
}
"""What the columns of a table of scores mean."""

COLUMNS = tuple(MEANINGS)
"""The columns in their order."""


@dataclass(frozen=True, eq=False)
class HeadScores(Shown):
    """Scores of every head on some probes: a tidy table (`COLUMNS`), the evidence behind each probe, and the provenance.

    A probe without enough valid evidence has no rows; `evidence[probe]["status"]` then says `insufficient evidence`.
    """

    card: ModelCard
    rows: pd.DataFrame
    evidence: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        if missing := set(COLUMNS) - set(self.rows.columns):
            raise InputError(f"a score table needs the columns {', '.join(COLUMNS)}; missing: {', '.join(sorted(missing))}")
        bad = self.rows[~np.isfinite(self.rows["score"].to_numpy(float))]
        if len(bad):
            row = bad.iloc[0]
            raise InputError(f"{self.card.name}, {Head(int(row.layer), int(row['head']))}: the {row.probe} score is {row.score}")
        object.__setattr__(self, "rows", self.rows.copy())
        for name in ("evidence", "provenance"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def table(self) -> pd.DataFrame:
        """A copy of the tidy table, one row per head and probe."""
        return self.rows.copy()

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes that have scores, in the order in which they were made."""
        return tuple(self.rows["probe"].unique())

    def matrix(self, probe: str, column: str = "score") -> Float[np.ndarray, "L H"]:
        """One column of the table (`score`, `null`, `std`, `ci_low`, …) for one probe, as layers × query heads."""
        if column not in COLUMNS[5:]:
            raise unknown("column", column, COLUMNS[5:])
        rows = self._of(probe)
        matrix_LH = np.full((self.card.shape.n_layers, self.card.shape.n_heads), np.nan)
        matrix_LH[rows["layer"], rows["head"]] = rows[column]
        return matrix_LH

    def top(self, k: int = 10, probe: str = "retrieval") -> pd.DataFrame:
        """The k strongest heads of a probe, strongest first, ties in layer order, with a column `name` such as `L18H7`."""
        rows = self._of(probe).sort_values(["score", "layer", "head"], ascending=[False, True, True]).head(k)
        names = [str(Head(layer, head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)]
        return rows.assign(name=names).reset_index(drop=True)

    def agreement(self, k: int = 10) -> pd.DataFrame:
        """How far each two probes rank the heads alike: Spearman's rho and the shared part of their top k (0–1)."""
        return agreement({probe: self.matrix(probe) for probe in self.probes}, k)

    @property
    def facts(self) -> dict[str, Any]:
        """Whose scores they are, from which evidence, made how; plain data."""
        evidence = {name: dict(facts) for name, facts in self.evidence.items()}
        return {"schema_version": 1, "model": asdict(self.card), "evidence": evidence, "provenance": dict(self.provenance)}

    def save(self, path: str | Path) -> Path:
        """Write the table as Parquet, `facts` in its metadata; an older file stays intact until the new one is complete."""
        table = self.table
        table.attrs = {**self.facts}
        return write_file(path, lambda part: table.to_parquet(part, index=False))

    @classmethod
    def load(cls, path: str | Path) -> "HeadScores":
        """Read what `save` wrote. Raises `InputError` for a file that is missing or is something else."""
        try:
            return cls.parse(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error

    @classmethod
    def parse(cls, content: bytes, name: str) -> "HeadScores":
        """Scores from the bytes of a file called `name`. Raises `InputError` for what `save` did not write, or if not every probe has one row per head."""
        try:
            table = pd.read_parquet(io.BytesIO(content))
            facts, table.attrs = table.attrs, {}  # pandas would copy them with every column
            found = cls(ModelCard.from_json(facts["model"]), table, facts["evidence"], facts["provenance"])
            heads = [(head.layer, head.index) for head in found.card.shape.heads()]
            partial = [probe for probe, rows in table.groupby("probe") if sorted(zip(rows["layer"], rows["head"], strict=True)) != heads]
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"it does not tell its {error}; labels as Parquet are read by `workbench convert`" if isinstance(error, KeyError) else error
            raise InputError(f"{name} is no table of scores as `workbench score --out scores.parquet` writes it: {why}") from error
        if partial:
            raise InputError(f"{name}: {partial[0]} has not one row for each head of {found.card.name}")
        return found

    def _of(self, probe: str) -> pd.DataFrame:
        if probe not in self.probes:
            status = self.evidence.get(probe, {}).get("status")
            raise InputError(f"{probe}: {status}") if status else unknown("probe", probe, self.probes)
        return self.rows[self.rows["probe"] == probe]


def agreement(scores: Mapping[str, np.ndarray], k: int = 10) -> pd.DataFrame:
    """`rank_agreement` of each two probes of scores [L, H] by name: the columns `probe`, `other`, `spearman` and `top{k}_overlap`."""
    return pd.DataFrame([{"probe": a, "other": b, **rank_agreement(scores[a], scores[b], k)} for a, b in combinations(scores, 2)])


def rank_agreement(a: np.ndarray, b: np.ndarray, k: int = 10) -> dict[str, float]:
    """Spearman's rank correlation of two score arrays (NaN if one is constant) and the overlap of their top k, 0–1."""
    ranks = pd.DataFrame({"a": np.ravel(a), "b": np.ravel(b)}).rank()
    k = min(k, len(ranks))
    top = [set(np.argsort(-np.ravel(values), kind="stable")[:k]) for values in (a, b)]
    constant = ranks["a"].nunique() < 2 or ranks["b"].nunique() < 2
    return {"spearman": float("nan") if constant else float(ranks["a"].corr(ranks["b"])), f"top{k}_overlap": len(top[0] & top[1]) / k}


def summarise(probe: str, card: ModelCard, score_NLH: Float[np.ndarray, "N L H"], null_LH: Float[np.ndarray, "L H"], seed: int = 0) -> pd.DataFrame:
    """The tidy rows of one probe from its samples: mean, n, standard deviation, 95% bootstrap interval, null."""
    n = len(score_NLH)
    low_LH, high_LH = bootstrap_interval(score_NLH, seed=seed)
    std_LH = score_NLH.std(axis=0, ddof=1) if n > 1 else np.full(score_NLH.shape[1:], np.nan)
    heads = list(card.shape.heads())
    return pd.DataFrame(
        {
            "model": card.name,
            "layer": [head.layer for head in heads],
            "head": [head.index for head in heads],
            "kv_head": [card.shape.kv_head(head) for head in heads],
            "probe": probe,
            "score": score_NLH.mean(axis=0).ravel(),
            "n": n,
            "std": std_LH.ravel(),
            "ci_low": low_LH.ravel(),
            "ci_high": high_LH.ravel(),
            "null": null_LH.ravel(),
        }
    )


def bootstrap_interval(score_NLH: Float[np.ndarray, "N L H"], *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bootstrap interval of the mean over samples, as (low, high), each layers × heads; NaN where N < 2.

    The percentile interval of few samples is too narrow (at N = 4 a "95%" one covers 79%), so its distances from the mean are stretched by
    sqrt(N / (N − 1)) · t / z, Student's over the normal quantile. Samples that share a needle are treated as independent.
    """
    from scipy.stats import norm as normal
    from scipy.stats import t as student_t

    n = len(score_NLH)
    if n < 2:
        nothing = np.full(score_NLH.shape[1:], np.nan)
        return nothing, nothing.copy()
    weight_DN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) / n
    mean_DLH = np.tensordot(weight_DN, score_NLH, axes=1)
    tail = (1 - level) / 2
    low_LH, high_LH = np.quantile(mean_DLH, [tail, 1 - tail], axis=0)
    mean_LH = score_NLH.mean(axis=0)
    stretch = float(np.sqrt(n / (n - 1)) * student_t.ppf(1 - tail, n - 1) / normal.ppf(1 - tail))
    return mean_LH + stretch * (low_LH - mean_LH), mean_LH + stretch * (high_LH - mean_LH)
