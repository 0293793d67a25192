"""The maps that can be clicked: components of our own, whose scripts the workbench brings along."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from workbench.views import script

HEAD_MAP = st.components.v2.component("head_map", js=script("head_map")[0], css=script("head_map")[1])
BLOCK_MAP = st.components.v2.component("block_map", js=script("block_map")[0], css=script("block_map")[1])
TOKEN_MAP = st.components.v2.component("token_map", js=script("token_map")[0], css=script("token_map")[1])


def head_map(message: bytes, key: str) -> str | None:
    """A map of `views.head_canvas`; the name of the head that was clicked just now."""
    return _of(HEAD_MAP(data=message, key=key, on_head_change=_nothing), "head")


def token_map(message: bytes, key: str) -> int | None:
    """A text of `views.token_canvas`; the token that was pinned just now, −1 if one was let go."""
    return _of(TOKEN_MAP(data=message, key=key, on_row_change=_nothing), "row")


def pinning_map(draw: Callable[[int | None], bytes], tokens: int, key: str) -> None:
    """A text of `views.token_canvas`, drawn for the token that the address pins (`row`), if the text has it; a click changes the address."""
    row = st.query_params.get("row", "")
    pinned = int(row) if row.isdecimal() and int(row) < tokens else None
    clicked = token_map(draw(pinned), key)
    if clicked is not None and clicked != (-1 if pinned is None else pinned):
        if clicked < 0:
            st.query_params.pop("row", None)
        else:
            st.query_params["row"] = str(clicked)
        st.rerun()


def block_map(message: bytes, key: str) -> str | None:
    """A map of `views.block_canvas`; the rows and keys that were asked for just now, such as 4000:5000,0:1000."""
    return _of(BLOCK_MAP(data=message, key=key, on_view_change=_nothing), "view")


def clicked(event: Any) -> str | None:
    """The custom data of the point that was clicked in a figure of plotly, if it has any."""
    found = [point.get("customdata") for point in event.selection.points]
    return next((data[0] if isinstance(data, list) else data for data in found if data), None)


def _of(result: Any, name: str) -> Any:
    return getattr(result, name, None)


def _nothing() -> None:
    """A trigger needs somebody who listens; the page reads its value."""
