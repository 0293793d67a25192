"""How does the map of a long prompt reach the browser? The part in view, of at most 1,024 × 1,024 cells, what its tokens are, and what is marked."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from workbench.errors import InputError
from workbench.kept_maps import CELLS, KeptMap
from workbench.maps import AttentionMap
from workbench.runs import fingerprint_of
from workbench.views.canvas import SHADES, message

SNIPPET = 24
"""The most characters that tell a cell's tokens."""

MARKS = {"needle": (1, "keys of the needle"), "answer": (0, "rows that give the answer"), "sinks": (1, "sinks")}
"""What can be marked: on which axis (0 rows, 1 keys), and what it is called."""


def block_canvas(
    kept: KeptMap,
    shown: AttentionMap,
    asked: tuple[tuple[int, int], tuple[int, int]] | None = None,
    *,
    marked: Iterable[str] = MARKS,
    sinks: Sequence[int] = (),
    rule: str = "",
) -> bytes:
    """A part of a kept map for `data/block_map.js`; `asked` are the rows and keys in view, where they are fewer than those of the part.

    `sinks` are keys, by the rule named. Raises `InputError` for more than `CELLS` × `CELLS` cells: a map is pooled before it is sent.
    """
    if shown.value_UV.size > CELLS**2:
        raise InputError(f"{shown.value_UV.shape[0]} × {shown.value_UV.shape[1]} cells are too many for a browser; at most {CELLS} × {CELLS} are sent")
    rect = shown.queries, shown.keys
    ranges = {**kept.marks, "sinks": _ranges(sinks)}
    counted = {"sinks": f"{len(sinks)} {'sink' if len(sinks) == 1 else 'sinks'}{f' ({rule})' if rule else ''}"}
    header: dict[str, Any] = {
        "id": fingerprint_of(kept.facts),
        "head": str(kept.head),
        "tokens": kept.length,
        "window": kept.window,
        "zooms": kept.zooms,
        "cells": shown.value_UV.shape,
        "block": shown.block,
        "rect": rect,
        "asked": asked or rect,
        "text": [[_snippet(kept, at, shown.block) for at in range(*side, shown.block)] for side in rect],
        "marks": [
            {"kind": kind, "axis": axis, "ranges": ranges[kind], "text": counted.get(kind, text)}
            for kind, (axis, text) in MARKS.items()
            if kind in marked and ranges.get(kind)
        ],
        "needle": [kept.marks["answer"][0], kept.marks["needle"][0]] if {"answer", "needle"} <= set(kept.marks) else None,
        "shades": SHADES,
    }
    return message(header, shown.value_UV)


def _ranges(places: Sequence[int]) -> list[tuple[int, int]]:
    """Places in ascending order as ranges [begin, end) of neighbours."""
    runs = [[place for _, place in run] for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])]
    return [(run[0], run[-1] + 1) for run in runs]


def _snippet(kept: KeptMap, at: int, block: int) -> str:
    return "".join(kept.tokens[at : at + min(block, SNIPPET)])[:SNIPPET]
