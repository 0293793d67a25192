"""How do a figure and a table leave the workbench? A figure as a page, a picture or a drawing; a table as CSV or Parquet."""

import csv
import io
import re
import struct
import tempfile
import zlib
from base64 import b64encode
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.errors import InputError, unknown
from workbench.files import write_file
from workbench.views.page import page_of

PICTURES = (".png", ".svg")
FIGURES = (".html", *PICTURES)
TABLES = (".csv", ".parquet")
"""The endings that a figure and a table can have."""

SCALE = 2
"""Pixels of a PNG for each pixel of the screen."""

NO_KALEIDO = "pictures need kaleido: pip install 'attention-head-workbench[images]'; a page, .html, needs nothing"
NO_BROWSER = "pictures need a Chromium or Chrome on this machine (on Debian: apt install chromium), which draws them; a page, .html, needs nothing"


NO_START = "pictures could not be drawn: the Chromium or Chrome of this machine does not start, or closed; a page, .html, needs nothing"


def check_ending(path: str | Path) -> None:
    """Raise `InputError` unless a figure can be written by this name, so that it shows before anything is computed."""
    if Path(path).suffix not in FIGURES:
        raise unknown("kind of figure", Path(path).suffix or Path(path).name, FIGURES)


def figure_bytes(figure: go.Figure, ending: str = ".html") -> bytes:
    """A figure as the bytes of a file: `.html` a self-contained page with what made it, `.png` or `.svg` a picture of its own size.

    Pictures are drawn by kaleido in a Chromium of this machine, without a network. Raises `InputError` for another ending, and where one of both is missing.
    """
    if ending == ".html":
        return page_of(figure).encode()
    if ending not in PICTURES:
        raise unknown("kind of figure", ending, FIGURES)
    (content,) = pictures([figure], ending)
    return content


def no_pictures() -> str:
    """Why this machine cannot draw pictures, as far as it shows without a try; empty if it can."""
    if find_spec("kaleido") is None:
        return NO_KALEIDO
    from choreographer.browsers.chromium import Chromium

    return "" if Chromium.find_browser(skip_local=False) else NO_BROWSER


def pictures(figures: Sequence[go.Figure], ending: str = ".png") -> list[bytes]:
    """Several figures as pictures, `.png` or `.svg`, with one start of the browser. Raises `InputError` as `figure_bytes` does."""
    if find_spec("kaleido") is None:
        raise InputError(NO_KALEIDO)
    from choreographer.errors import BrowserClosedError, BrowserDepsError, BrowserFailedError, ChromeNotFoundError
    from kaleido import write_fig_from_object_sync

    scale = SCALE if ending == ".png" else 1
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}{ending}" for number in range(len(figures))]
        asked = [
            {
                "fig": figure,
                "path": path,
                "opts": {"format": ending[1:], "scale": scale, "width": figure.layout.width or 900, "height": figure.layout.height or 500},
            }
            for figure, path in zip(figures, paths, strict=True)
        ]
        try:
            write_fig_from_object_sync(asked, kopts={"mathjax": False, "n": 1})
        except ChromeNotFoundError as error:
            raise InputError(NO_BROWSER) from error
        except (BrowserClosedError, BrowserDepsError, BrowserFailedError) as error:
            raise InputError(NO_START) from error
        contents = [path.read_bytes() for path in paths]
    return [packed(content) for content in contents] if ending == ".png" else contents


def packed(png: bytes) -> bytes:
    """The very same PNG in fewer bytes: a browser compresses in a hurry, so that its pixels are compressed once more."""
    chunks, place = [], 8
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        chunks.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + size]))
        place += 12 + size
    pixels = zlib.compress(zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT")), 9)
    before = [chunk for chunk in chunks if chunk[0] not in (b"IDAT", b"IEND")]
    parts = [*before, (b"IDAT", pixels), (b"IEND", b"")]
    return png[:8] + b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts)


def drawn(svg: str) -> go.Figure:
    """A drawing of `views.svg` on white paper as a figure, so that it becomes a picture as any other."""
    width, height = (int(number) for number in re.findall(r'^<svg [^>]*width="(\d+)" height="(\d+)"', svg)[0])
    source = f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"
    image = {"source": source, "xref": "paper", "yref": "paper", "x": 0, "y": 1, "sizex": 1, "sizey": 1, "sizing": "stretch"}
    hidden = {"visible": False}
    return go.Figure(
        layout={
            "images": [image],
            "xaxis": hidden,
            "yaxis": hidden,
            "width": width,
            "height": height,
            "margin": dict.fromkeys("ltrb", 0),
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
        }
    )


def save_figure(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as its name ends; see `figure_bytes`. An older file stays intact until the new one is complete."""
    content = figure_bytes(figure, Path(path).suffix)
    return write_file(path, lambda part: part.write_bytes(content))


def table_bytes(table: pd.DataFrame, ending: str = ".csv") -> bytes:
    """A table as the bytes of a file, `.csv` or `.parquet`, without its index. Raises `InputError` for another ending, and for what Parquet cannot hold."""
    if ending not in TABLES:
        raise unknown("kind of table", ending, TABLES)
    if ending == ".csv":
        return table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode()  # or a lone carriage return in a text would end its row
    packed = io.BytesIO()
    try:
        table.to_parquet(packed, index=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"this table cannot be written as Parquet: {error}") from error
    return packed.getvalue()


def save_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as its name ends; see `table_bytes`. An older file stays intact until the new one is complete."""
    content = table_bytes(table, Path(path).suffix)
    return write_file(path, lambda part: part.write_bytes(content))


def camera(name: str, ending: str = ".png") -> dict[str, Any]:
    """The settings of a figure in a browser whose camera button saves a picture called `name`, `.png` or `.svg`, as the browser draws it."""
    if ending not in PICTURES:
        raise unknown("kind of picture", ending, PICTURES)
    return {"displaylogo": False, "toImageButtonOptions": {"format": ending[1:], "filename": name, "scale": SCALE if ending == ".png" else 1}}
