"""The dashboard: one page per question. It calls the workbench and shows what comes back."""

import streamlit as st
from chosen import LABELS_MB, UPLOAD, file_name, labels, refused

st.set_page_config(page_title="Attention-head workbench", layout="wide")
page = st.navigation([st.Page("app_pages/heads.py", title="Heads", default=True), st.Page("app_pages/one_head.py", title="One head")])

with st.sidebar:
    st.file_uploader(
        "Labels file", type="json", key=UPLOAD, max_upload_size=LABELS_MB, help="A file that `workbench label` wrote; it stays until the page is reloaded."
    )
    if reason := refused():
        st.error(reason)
    shown = labels()
    shape = shown.card.shape
    st.caption(
        f"**{shown.card.name}**, {shape.n_layers} layers × {shape.n_heads} query heads ({shape.n_kv_heads} KV heads), "
        f"fingerprint {shown.card.fingerprint or 'unknown'}; from {file_name()}"
    )

page.run()
