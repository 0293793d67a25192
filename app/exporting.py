"""How do labels leave the dashboard? As the file of any tool, with the choices that its format leaves."""

from dataclasses import replace
from typing import Any

import streamlit as st
from chosen import told

from workbench.formats import FORMATS, Export, as_bytes
from workbench.heads import REDUCTIONS
from workbench.labels import HeadLabels

USUAL = "the format's usual"


def export(found: HeadLabels, usual: Export, about: str) -> None:
    """The choice of a format, what it loses, its options, and the file. `usual` stands in the options at first, and `about` says whose scores are written."""
    form = FORMATS[st.selectbox("Format", list(FORMATS), index=list(FORMATS).index("workbench"), key="format", bind="query-params")]
    st.caption(f"{form.title}, for {', '.join(form.tools)}. Rows are {'KV heads' if form.granularity == 'kv' else 'query heads'}. What gets lost: {form.loss}")
    chosen = Export(probe=usual.probe) if "probe" in form.uses else Export()
    if chosen.probe:
        st.caption(about)
    if "label" in form.uses:
        names = [None, *found.counts()]
        label = st.selectbox(
            "Heads labelled",
            names,
            names.index(usual.label),
            format_func=lambda name: name or f"{USUAL} ones",
            key=_key("label", usual.label),
            bind="query-params",
        )
        chosen = replace(chosen, label=label)
    if "reduction" in form.uses:
        chosen = replace(chosen, reduction=st.selectbox("From query heads to a KV head", list(REDUCTIONS), key="reduction", bind="query-params"))
    if "sink" in form.uses:
        how: dict[str, Any] = {"min_value": 0, "placeholder": f"{USUAL} number", "bind": "query-params"}
        sink = st.number_input("First tokens that a streaming head keeps", value=usual.sink, key=_key("sink", usual.sink), **how)
        recent = st.number_input("Last tokens that a streaming head keeps", value=usual.recent, key=_key("recent", usual.recent), **how)
        chosen = replace(chosen, sink=sink, recent=recent)
    with told():
        suffix, content = as_bytes(found, form.name, chosen)
        st.download_button(f"Download {form.name}", content, f"{found.card.name}-{form.name}{suffix}", on_click="ignore", type="primary")


def _key(name: str, usual: object) -> str:
    """What an option is called in the address: another one for each usual value, so that a new usual value is not hidden by an old choice."""
    return name if usual is None else f"{name}_{usual}"
