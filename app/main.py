"""The dashboard: one page per question. It calls the workbench and shows what comes back."""

import addresses
import streamlit as st
from chosen import CELL, LABELS_MB, UPLOAD, cells, file_name, labels, literal, refused

st.set_page_config(page_title="Attention-head workbench", layout="wide")
HELP = "A file of `workbench label`, or of `workbench score --out scores.parquet`, which has nulls and intervals too. It stays until the page is reloaded."

pages = [
    st.Page("app_pages/heads.py", title="Heads", default=True),
    st.Page("app_pages/one_head.py", title="One head"),
    st.Page("app_pages/long_context.py", title="Long context"),
    st.Page("app_pages/needle_test.py", title="Needle test"),
    st.Page("app_pages/sinks.py", title="Sinks and calibration"),
    st.Page("app_pages/successor.py", title="Successor heads"),
    st.Page("app_pages/circuits.py", title="Circuits"),
    st.Page("app_pages/efficient.py", title="Efficient attention"),
    st.Page("app_pages/runs.py", title="Runs"),
]
page = st.navigation(pages, position="top")
addresses.opened()

if swept := cells():
    st.selectbox("Cell of the sweep", list(swept), key=CELL, bind="query-params", help="Model, prompts, edits and seed; page Heads compares it with another.")
shown = labels()
shape = shown.card.shape
with st.popover(literal(f"{shown.card.name}: {file_name()}")):
    st.caption(
        f"{shape.n_layers} layers × {shape.n_heads} query heads ({shape.n_kv_heads} KV heads), "
        f"fingerprint {shown.card.fingerprint or 'unknown'}; from {literal(shown.card.origin)}"
    )
    st.file_uploader("Other labels", type=["json", "parquet"], key=UPLOAD, max_upload_size=LABELS_MB, help=HELP)
if reason := refused():
    st.error(reason)

page.run()
addresses.say()
