"""Which methods find a circuit? A view of the page Circuits: what each recovers where the truth is known, and how faithful it is where it is not."""

import streamlit as st
from chosen import BUNDLED, beside, literal, told
from downloads import chart, table

from workbench.circuits import compared
from workbench.errors import InputError
from workbench.labels import HeadLabels
from workbench.views.methods import kept_figure, recovery_figure

USUAL = ("patching", "path", "attribution", "ig-inputs", "codes", "random")  # methods that are drawn until others are chosen
TRUTH = BUNDLED.parent.parent / "compiled_ioi" / "methods.csv"
METHODS = "circuits_ioi.csv"


def methods(found: HeadLabels) -> None:
    """What the methods recover where the circuit is known, and how faithful their circuits are where it is not."""
    known, unknown = st.columns(2, gap="large")
    with known:
        st.markdown("**Where the truth is known**")
        recovered()
    with unknown:
        st.markdown("**Where it is not**")
        kept(found)


def recovered() -> None:
    """What each method finds of the compiled IOI models."""
    with told():
        if not TRUTH.is_file():
            raise InputError(f"{TRUTH.parent.name}/{TRUTH.name} of the repository's reports is not there; `benchmarks/circuit_truth.py` makes it")
        measured = _table(TRUTH.read_bytes(), TRUTH.name, ("what", "beta", "leak", "seed", "method", "auroc", "average_precision", "chance"))
    there = compared.settings(measured)
    what = st.segmented_control("Recovered are", ["heads", "edges"], default="heads", required=True, key="what", bind="query-params")
    named = {f"β = {beta:g}, leak {leak:g}": (beta, leak) for beta, leak in there[what]}
    which = st.selectbox("Model", list(named), key=f"model_{what}", bind="query-params", help="β: how sharply heads attend. Leak: how much idle heads write.")
    with told():
        rows = compared.recovery(measured, what, *named[which])
    chart(recovery_figure(rows, what), "recovery", f"AUROC, average precision and F1 of each method on the known {what}", rows)
    st.dataframe(rows, hide_index=True, placeholder="–", column_config=_three(rows))
    st.caption(
        "The compiled IOI model, whose circuit is written by hand: all heads and edges of it are known. Means over model seeds, bars one standard deviation; "
        f"dotted: average precision by chance, {rows['chance'].iloc[0]:.2f}. "
        "Codes, norm and the like only watch; norm and distinct codes are controls."
    )
    with st.popover("What the measures mean", type="tertiary"):
        st.table(compared.RECOVERY)


def kept(found: HeadLabels) -> None:
    """How faithful the first heads of each method are, on the model shown."""
    content = beside(METHODS)
    if content is None:
        st.info(f"No {METHODS} of {literal(found.card.name)} lies beside the labels; `benchmarks/circuit_methods.py` makes one.")
        return
    with told():
        measured = _table(content, METHODS, ("seed", "part", "method", "measure", "value", "low", "high"))
    ablations = compared.ablations(measured)
    ablation = st.segmented_control("Other heads are replaced by", ablations, default=ablations[0], required=True, key="ablation_kept", bind="query-params")
    rows = compared.kept(measured, ablation)
    every = list(dict.fromkeys(rows["method"]))
    shown = st.multiselect("Methods", every, default=[name for name in every if name in USUAL], key="methods", bind="query-params")
    chart(kept_figure(rows, ablation, shown), "kept", f"Faithfulness of the first heads of each method, {ablation}", rows)
    st.caption(
        "The first k heads of each ranking alone, on held-out prompts: means over seeds, bars from the lowest to the highest end of the seeds' 95% intervals."
    )
    areas = compared.areas(measured)
    st.dataframe(areas, hide_index=True, placeholder="–", column_config=_three(areas))
    st.caption("CPR: area under faithfulness over the share of heads kept (more is better); CMD: area of its distance from 1 (less is better); resample.")
    table(areas, "areas")


def _three(rows: "compared.pd.DataFrame") -> dict:
    return {name: st.column_config.NumberColumn(format="%.3f") for name in rows.columns if rows[name].dtype.kind == "f"}


@st.cache_resource(max_entries=4, show_spinner=False)
def _table(content: bytes, name: str, columns: tuple[str, ...]) -> "compared.pd.DataFrame":
    return compared.parse(content, name, columns)
