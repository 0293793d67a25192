"""How is what a page shows taken home? A small control under a figure or a table: a picture, a drawing, a page, CSV, Parquet."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st
from chosen import literal

from workbench import views
from workbench.labels import HeadLabels

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MIME = {
    ".html": "text/html",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
    ".labels.json": "application/json",
    ".graphml": "application/graphml+xml",
}
Files = dict[str, "Callable[[], bytes] | bytes"]
"""What can be downloaded, by the ending of its name; a function is called when it is asked for."""


def chart(figure: "go.Figure", name: str, alt: str, rows: "pd.DataFrame | None" = None, **how: Any) -> Any:
    """A figure as `st.plotly_chart` shows it, and the control under it; `rows` are the numbers behind the figure.

    `name` begins the names of its files and is the only one of its page. The rest goes to `st.plotly_chart`.
    """
    kind = st.session_state.get(_key(name)) or "PNG"
    shown = st.plotly_chart(figure, alt=alt, config=views.camera(name, f".{kind.lower()}"), **how)
    with _control(name):
        st.segmented_control("The camera in the figure saves", ["PNG", "SVG"], default="PNG", required=True, key=_key(name))
        _buttons(name, {".html": partial(views.figure_bytes, figure)} | ({} if rows is None else _of(lambda: rows)))
    return shown


def table(rows: "pd.DataFrame", name: str) -> None:
    """The control under a table, which the page shows itself: all of its rows as CSV and as Parquet."""
    tabled(lambda: rows, name)


def tabled(made: "Callable[[], pd.DataFrame]", name: str) -> None:
    """The same for rows that are made when they are asked for."""
    with _control(name):
        _buttons(name, _of(made))


def files(name: str, found: Files, remark: str = "") -> None:
    """The control for what is no figure of plotly and no table: each file by its ending, and a remark about those that are not there."""
    with _control(name):
        _buttons(name, found)
        if remark:
            st.caption(remark)


def panel(found: HeadLabels, shown: views.Panel, name: str) -> None:
    """The control under a layer × head map: the map as a drawing."""
    files(name, {".svg": lambda: views.panel_picture(found, shown).encode()})


def mapped(sent: bytes, name: str) -> None:
    """The control under a layer × head map that is no panel of labels: the map as a drawing."""
    files(name, {".svg": lambda: views.canvas_picture(sent).encode()})


def drawn(figure: "Callable[[], go.Figure]", name: str) -> None:
    """The control under what the page draws itself: a figure of the same, as a page, and as pictures where this machine can draw them."""
    trouble = views.no_pictures()
    endings = [ending for ending in views.FIGURES if not trouble or ending == ".html"]
    files(name, {ending: partial(_figure, figure, ending) for ending in endings}, f"Here {trouble}." if trouble else "")


def _figure(figure: "Callable[[], go.Figure]", ending: str) -> bytes:
    return views.figure_bytes(figure(), ending)


def _of(made: "Callable[[], pd.DataFrame]") -> Files:
    return {ending: partial(_table, made, ending) for ending in views.TABLES}


def _table(made: "Callable[[], pd.DataFrame]", ending: str) -> bytes:
    return views.table_bytes(made(), ending)


def _control(name: str) -> Any:
    return st.popover("Save", icon=":material/download:", type="tertiary", key=f"{_key(name)}-control")


def _buttons(name: str, found: Files) -> None:
    for ending, content in found.items():
        st.download_button(literal(f"{name}{ending}"), content, f"{name}{ending}", MIME[ending], on_click="ignore", key=f"{_key(name)}{ending}")


def _key(name: str) -> str:
    return f"save-{name}"
