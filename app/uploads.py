"""Which file was given on a page? It stays while other views and pages are shown, which Streamlit alone would forget."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import streamlit as st


class Upload(NamedTuple):
    """A file that was given."""

    name: str
    content: bytes


def uploader(label: str, endings: Sequence[str], key: str, megabytes: int) -> Upload | None:
    """A control that takes a file, and the file, until it is taken away, another is given, or the page is reloaded."""
    given = st.file_uploader(label, type=list(endings), key=key, max_upload_size=megabytes, on_change=partial(_keep, key))
    found: Upload | None = st.session_state.get(_kept(key))
    if given is None and found is not None:
        left, right = st.columns([3, 1], vertical_alignment="center")
        left.caption(f"{found.name} was given before and is still shown.")
        right.button("Take away", key=f"{key}-away", width="stretch", on_click=partial(_keep, key))
    return found


def _keep(key: str) -> None:
    file = st.session_state.get(key)
    st.session_state[_kept(key)] = None if file is None else Upload(file.name, file.getvalue())


def _kept(key: str) -> str:
    return f"kept-{key}"
