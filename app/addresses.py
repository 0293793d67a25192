"""What in the address cannot be shown? Streamlit puts the usual in its place without a word; here it is said."""

from typing import Any

import streamlit as st

LONGEST = 60
"""The most characters of a value that are repeated."""
_OPENED = "address opened"


def opened() -> None:
    """Remember what the address asks of controls that are not there yet, and leave room above the page to `say` what was put aside."""
    known = set(map(str, st.session_state))
    asked = {name: st.query_params.get_all(name) for name in st.query_params if name not in known}
    st.session_state[_OPENED] = st.container(), asked


def heard(name: str) -> None:
    """A page says itself what became of this value."""
    st.session_state[_OPENED][1].pop(name, None)


def say() -> None:
    """Say which values of the address were put aside, and what stands in their place: once, when all controls are there or the page stops."""
    place, asked = st.session_state.pop(_OPENED, (None, {}))
    aside = {name: texts for name, texts in asked.items() if name in st.session_state and st.query_params.get_all(name) != texts}
    for name, texts in aside.items():
        for text in _lost(name, texts):
            place.warning(f"The address asks for `{name}={plain(text)}`, which cannot be had here; {_now(name)}.")


def _lost(name: str, texts: list[str]) -> list[str]:
    """The values of the address that are not among those of its control; a usual value is taken out of the address too, but is not lost."""
    return [text for text in texts if not any(_same(text, value) for value in _values(name))]


def _values(name: str) -> list[Any]:
    value = st.session_state[name]
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _same(text: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text.casefold() == str(value).casefold()
    try:
        return float(text) == float(value)
    except ValueError:
        return False


def _now(name: str) -> str:
    values = " and ".join(f"`{plain(str(value))}`" for value in _values(name))
    return f"{values} stands there" if values else "nothing stands there"


def plain(text: str) -> str:
    """A text that is shown as it is, and not in full if it is long."""
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]}…").replace("`", "'").replace("\n", " ")
