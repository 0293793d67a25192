"""How do the versions of a model differ, head by head? Base, instruct, quantised, checkpoints: each beside one of them, on the same prompts and seeds."""

import pandas as pd

from workbench.errors import InputError, unknown
from workbench.scores import rank_agreement

KEYS = ("prompts", "seed", "edits")
_HEAD = ("layer", "head")

COLUMNS = {
    "version": "the model that is compared",
    "prompts": "the prompts",
    "seed": "their seed",
    "edits": "what was changed in both",
    "layer": "the layer, from 0",
    "head": "the query head within the layer, from 0",
    "base": "the score in the base version",
    "score": "the score in the other",
    "difference": "score less base",
    "apart": "whether the 95% intervals of the two do not overlap",
}
"""What the columns of a comparison mean."""


def compare(table: pd.DataFrame, probe: str, base: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The heads (`COLUMNS`), and for each version and kind of prompts a row with `spearman`, `top10_overlap`, `largest` difference, how many are `apart`.

    `table` is that of a `Dataset`; `base` a version of it, by default the first by name. Raises `InputError` if the probe or the base is not in it, where
    there is nothing to compare, and for versions with other numbers of layers or heads.
    """
    if probe not in (probes := sorted(table["probe"].unique())):
        raise unknown("probe of this sweep", probe, probes)
    rows = table[table["probe"] == probe]
    versions = sorted(rows["version"].unique())
    base = base or versions[0]
    if base not in versions:
        raise unknown("version in this sweep", base, versions)
    if len(versions) < 2:
        raise InputError(f"the sweep has scores of {probe} for {base} only; there is nothing to compare it with")
    on = [*KEYS, *_HEAD]
    first = rows[rows["version"] == base].set_index(on)
    heads, pairs, asked = [], [], set(first.index.droplevel(list(_HEAD)))
    for version in versions:
        if version == base:
            continue
        for key, other in rows[rows["version"] == version].groupby(list(KEYS), sort=True):
            if key not in asked:
                continue
            mine, theirs = _same(first, other.set_index(on), base, version)
            made = pd.DataFrame({"base": mine["score"], "score": theirs["score"], "difference": theirs["score"] - mine["score"]})
            made["apart"] = (theirs["ci_low"] > mine["ci_high"]) | (theirs["ci_high"] < mine["ci_low"])
            heads.append(made.reset_index().assign(version=version))
            agreement = rank_agreement(mine["score"].to_numpy(), theirs["score"].to_numpy(), 10)
            largest = float(made["difference"].abs().max())
            pairs.append({"version": version, **dict(zip(KEYS, key, strict=True)), **agreement, "largest": largest, "apart": int(made["apart"].sum())})
    if not heads:
        raise InputError(f"no other version was asked on the same prompts, seed and edits as {base}")
    return pd.concat(heads, ignore_index=True)[list(COLUMNS)], pd.DataFrame(pairs)


def _same(first: pd.DataFrame, other: pd.DataFrame, base: str, version: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of both for the same prompts and heads."""
    mine = first[first.index.droplevel(list(_HEAD)).isin(other.index.droplevel(list(_HEAD)))]
    if len(mine) != len(other) or len(other.index.difference(mine.index)):
        raise InputError(f"{version} cannot be compared with {base} head by head: it has other layers or heads")
    return mine.loc[other.index], other
