"""The maps that can be clicked: components of our own, whose scripts the workbench brings along."""

from typing import Any

import streamlit as st

from workbench.views import script

HEAD_MAP = st.components.v2.component("head_map", js=script("head_map")[0], css=script("head_map")[1])
TOKEN_MAP = st.components.v2.component("token_map", js=script("token_map")[0], css=script("token_map")[1])


def head_map(message: bytes, key: str) -> str | None:
    """A map of `views.head_canvas`; the name of the head that was clicked just now."""
    return _of(HEAD_MAP(data=message, key=key, on_head_change=_nothing), "head")


def token_map(message: bytes, key: str) -> int | None:
    """A text of `views.token_canvas`; the token that was pinned just now, −1 if one was let go."""
    return _of(TOKEN_MAP(data=message, key=key, on_row_change=_nothing), "row")


def _of(result: Any, name: str) -> Any:
    return getattr(result, name, None)


def _nothing() -> None:
    """A trigger needs somebody who listens; the page reads its value."""
