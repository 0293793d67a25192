"""What was computed when? The runs on disk: what was asked, how much of it is done, and whether the present version would find it again."""

import os
from pathlib import Path

import streamlit as st

from workbench.runs import overview

root = Path(os.environ.get("WORKBENCH_RUNS") or "runs")
st.title("Runs")
rows = overview(root)
if rows.empty:
    st.info(f"There are no runs in the folder {root.name}. `workbench label` and `workbench score` keep theirs there; `WORKBENCH_RUNS` names another folder.")
    st.stop()

times = {"last": st.column_config.DatetimeColumn("last part, UTC", format="YYYY-MM-DD HH:mm"), "again": st.column_config.CheckboxColumn("found again")}
shown = [name for name in rows if name != "question"]
st.dataframe(rows, column_order=shown, hide_index=True, column_config=times)
st.caption("A run is one question about some probes; it is found again, and not computed again, while code and versions stay the same.")

chosen = st.selectbox("Run", list(rows["run"]), key="run", bind="query-params")
row = rows[rows["run"] == chosen].iloc[0]
if row["problem"]:
    st.error(f"Run {chosen}: {row['problem']}.")
else:
    st.json(row["question"], expanded=1)
