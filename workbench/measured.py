"""What was measured of policies, and of the kernels that run them? Tables on disk, read and checked, with the machine that they are of."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from workbench.errors import InputError

POLICIES = ["policy", "budget", "seed", "full_heads", "kv_share", "recall", "kept", "kept_low", "kept_high", "perplexity", "agreement"]
"""The columns of a table of `workbench verify` that are read; `verification.COLUMNS` says what they mean."""

CONTROLS = ("full", "random", "window", "saved")
"""Ways of `verification` that are no ranking."""

SPEEDS = ["what", "shape", "tokens", "full", "variant", "time", "unit", "low", "high", "times"]
"""The columns of a table of speeds: what was timed, the attention's shape, the context, the share of full KV heads (0–1), who computed it, the median time
with its quartiles and unit, and how many times faster than the best full attention (or the same model with every head full) of the same run."""


def policies_table(content: bytes, name: str) -> pd.DataFrame:
    """A table of `workbench verify`, from the bytes of a `.csv` or `.parquet` file called `name`. Raises `InputError` for what is none."""
    try:
        table = pd.read_parquet(io.BytesIO(content)) if name.endswith(".parquet") else pd.read_csv(io.BytesIO(content))
    except (ValueError, OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{name} is no table that can be read: {str(error).strip().splitlines()[0]}") from error
    if missing := [column for column in POLICIES if column not in table.columns]:
        raise InputError(f"{name} is no table of `workbench verify`: it has no column {missing[0]!r}")
    if wrong := [column for column in POLICIES[1:] if not pd.api.types.is_numeric_dtype(table[column])]:
        raise InputError(f"{name}: the column {wrong[0]!r} has something else than numbers")
    if table.empty:
        raise InputError(f"{name} has no rows")
    return table


def nearest(table: pd.DataFrame, ranking: str, full_heads: int) -> Mapping[str, Any] | None:
    """The row of a ranking whose number of full heads is nearest, the smaller one of two; None if the table has no such ranking."""
    rows = table[[name not in CONTROLS and _same(name, ranking) for name in table["policy"]]]
    if rows.empty:
        return None
    far = (rows["full_heads"] - full_heads).abs()
    return rows[far == far.min()].sort_values("full_heads").iloc[0].to_dict()


def _same(name: str, other: str) -> bool:
    """Whether two rankings are one: the same scores, in whatever order, added in the same way."""
    (way, _, scores), (other_way, _, others) = (text.rpartition(":") for text in (name, other))
    return way == other_way and sorted(scores.split("+")) == sorted(others.split("+"))


@dataclass(frozen=True, eq=False)
class Speeds:
    """One benchmark: its `title`, the `device` that it ran on, a `table` with the columns `SPEEDS`, what was measured `about`, and the line that `made` it."""

    title: str
    device: str
    table: pd.DataFrame
    about: str
    made: str


def speeds(folder: Path) -> list[Speeds]:
    """The benchmarks of prefill, decoding and generation under a policy that lie in a folder, by title; none if there are none.

    Raises `InputError` for a table without the columns that its benchmark writes, and for one whose report does not say on what it was measured.
    """
    found = []
    for begin, (title, read) in _BENCHMARKS.items():
        for path in sorted(folder.glob(f"{begin}_*.csv")):
            try:
                table = pd.DataFrame(read(pd.read_csv(path)), columns=SPEEDS)
                report = path.with_suffix(".md").read_text(encoding="utf-8")
            except (OSError, KeyError, ValueError, AttributeError) as error:
                raise InputError(f"{path.name} cannot be shown: {error}") from error
            made = re.search(r"^Made by .* on (.+?); .*$", report, re.MULTILINE)
            if made is None:
                raise InputError(f"{path.name} cannot be shown: its report does not say on what it was measured")
            found.append(Speeds(title, made[1], table, report.split("\n\n")[1], made[0]))
    return found


def _attention(what: str, unit: str) -> Callable[[pd.DataFrame], dict[str, Any]]:
    """How tables of one layer's attention are read, whose times are in a unit."""

    def read(rows: pd.DataFrame) -> dict[str, Any]:
        groups = rows["heads"].str.split("/").str[1].astype(int)
        shape = [f"{heads} heads of {size}" for heads, size in zip(rows["heads"], rows["d"], strict=True)]
        times = {"time": rows[unit], "unit": unit.replace("us", "µs"), "low": rows[f"{unit} 25%"], "high": rows[f"{unit} 75%"], "times": rows["×"]}
        return {"what": what, "shape": shape, "tokens": rows["tokens"], "full": rows["full"] / groups, "variant": rows["variant"], **times}

    return read


def _generation(rows: pd.DataFrame) -> pd.DataFrame:
    """How the table of whole models is read: two rows for each, prefill and one more token."""
    share = rows["variant"].str.extract(r"policy, (\d+)%")[0].astype(float).fillna(100) / 100
    variant = np.where(rows["variant"].str.startswith("policy"), "policy", rows["variant"])
    common = {"shape": "whole model", "tokens": rows["tokens"], "full": share, "variant": variant}
    prefill = {"time": rows["prefill s"], "unit": "s", "low": np.nan, "high": np.nan, "times": rows["prefill x"]}
    token = {"time": rows["ms per token"], "unit": "ms", "low": rows["ms 25%"], "high": rows["ms 75%"], "times": rows["token x"]}
    return pd.concat([pd.DataFrame({"what": "prefill", **common, **prefill}), pd.DataFrame({"what": "a token", **common, **token})], ignore_index=True)


_BENCHMARKS: Mapping[str, tuple[str, Callable[[pd.DataFrame], Any]]] = {
    "kernels_decode": ("decoding, attention of one layer", _attention("a token", "us")),
    "kernels_prefill": ("prefill, attention of one layer", _attention("prefill", "ms")),
    "generation": ("a whole model", _generation),
}
"""Tables of `benchmarks/` by how their names begin: their title, and how they are read."""
