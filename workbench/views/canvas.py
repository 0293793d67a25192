"""How do maps reach the browser? As one message of raw bytes, which the scripts in `data/` draw without plotly.

Four bytes give the length of a header, little-endian; then come the header, JSON in UTF-8 filled up with spaces to a multiple of four bytes, and the
numbers, float32. A dashboard and a notebook send the same.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import plotly.colors
from jaxtyping import Float

from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.views.heads import Panel
from workbench.views.svg import map_picture

SHADES = tuple(plotly.colors.sequential.Cividis)
SIGNED = ("#0b62a4", "#f7f7f7", "#d97706")
"""Below 0, at 0, above: two hues that no kind of colour blindness confuses."""


def head_canvas(labels: HeadLabels, shown: Panel, chosen: Head | None = None) -> bytes:
    """A layer × head map of scores, with the labels of every head, the marked heads, and the one that is `chosen`."""
    header = {
        "layers": labels.card.shape.n_layers,
        "heads": labels.card.shape.n_heads,
        "title": shown.title,
        "meaning": shown.meaning,
        "marked": [[head.layer, head.index] for head in shown.marked],
        "chosen": None if chosen is None else [chosen.layer, chosen.index],
        "labels": [", ".join(names) for names in labels.labels.values()],
        "shades": SHADES,
    }
    return message(header, shown.score_LH)


def signed_canvas(value_LH: Float[np.ndarray, "L H"], title: str, told: Sequence[str], marked: Collection[Head] = (), mark: str = "") -> bytes:
    """A layer × head map of numbers that may be below 0: blue below (if any is), orange above, white at 0, faint grey where there is none (NaN).

    `told` is what hovering adds for every head, layer by layer; `mark` tells what the rings around `marked` heads mean.
    """
    largest, below = float(np.abs(np.nan_to_num(value_LH)).max(initial=0.0)) or 1.0, bool((value_LH < 0).any())
    header = {
        "layers": len(value_LH),
        "heads": value_LH.shape[1],
        "title": title,
        "meaning": mark,
        "mark": mark,
        "marked": [[head.layer, head.index] for head in marked],
        "chosen": None,
        "labels": list(told),
        "shades": SIGNED if below else SIGNED[1:],
        "range": [-largest if below else 0.0, largest],
    }
    return message(header, value_LH)


def token_canvas(
    head: Head, tokens: Sequence[str], pattern_QK: Float[np.ndarray, "T T"], received_K: Float[np.ndarray, " T"], pinned: int | None = None
) -> bytes:
    """The attention of one head on the tokens of one text: from each row to each key, and what each token receives; the `pinned` row stays in view."""
    header = {"tokens": list(tokens), "head": str(head), "pinned": pinned}
    return message(header, np.concatenate([pattern_QK.ravel(), received_K]))


@cache
def script(name: str) -> tuple[str, str]:
    """The script and the style sheet of a map, `head_map` or `token_map`: an ES module, self-contained, for whoever puts it on a page."""
    folder = files("workbench").joinpath("data")
    code, style = (folder.joinpath(f"{name}.{ending}").read_text(encoding="utf-8") for ending in ("js", "css"))
    return code, style


def canvas_picture(sent: bytes) -> str:
    """A layer × head map that was made for the browser as a drawing (SVG): the same numbers and rings, which tell what hovering does."""
    begin = 4 + int.from_bytes(sent[:4], "little")
    header = json.loads(sent[4:begin])
    value_LH = np.frombuffer(sent[begin:], "<f4").reshape(header["layers"], header["heads"])
    marked = [Head(*place) for place in header["marked"]]
    told = {head: f"{head}: {value_LH[head.layer, head.index]:.3f}; {header['labels'][head.layer * header['heads'] + head.index]}" for head in marked}
    meaning = header.get("mark", "labelled").removeprefix(f"{len(marked)} ")
    return map_picture(value_LH, told, meaning if marked else "", f"Layer × head map: {header['title']}", signed=header.get("range", [0])[0] < 0)


def message(header: Mapping[str, Any], values: np.ndarray) -> bytes:
    """A header of plain data and numbers as float32, as bytes; see above."""
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 4)
    return len(text).to_bytes(4, "little") + text + np.ascontiguousarray(values, "<f4").tobytes()
