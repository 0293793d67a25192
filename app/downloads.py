"""How is what a page shows taken home? A small control under a figure or a table: a picture, a drawing, a page, CSV, Parquet."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from workbench import views

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
        _buttons(name, {".html": partial(views.figure_bytes, figure)} | ({} if rows is None else _of(rows)))
    return shown


def table(rows: "pd.DataFrame", name: str) -> None:
    """The control under a table, which the page shows itself: all of its rows as CSV and as Parquet."""
    with _control(name):
        _buttons(name, _of(rows))


def files(name: str, found: Files) -> None:
    """The control for what is no figure of plotly and no table: each file by its ending."""
    with _control(name):
        _buttons(name, found)


def _of(rows: "pd.DataFrame") -> Files:
    return {ending: partial(views.table_bytes, rows, ending) for ending in views.TABLES}


def _control(name: str) -> Any:
    return st.popover("Save", icon=":material/download:", type="tertiary", key=f"{_key(name)}-control")


def _buttons(name: str, found: Files) -> None:
    for ending, content in found.items():
        st.download_button(f"{name}{ending}", content, f"{name}{ending}", MIME[ending], on_click="ignore", key=f"{_key(name)}{ending}")


def _key(name: str) -> str:
    return f"save-{name}"
