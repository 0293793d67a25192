"""What does patching show, and what do codes? Two views of the page Circuits: asked with a few settings, and computed by a job."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st
from answered import Question, answered, arguments_of
from background import forget
from chosen import told
from downloads import chart, mapped, table
from maps import head_map

from workbench.labels import HeadLabels
from workbench.views.patching import coded_canvas, coded_figure, patched_canvas, patched_text

if TYPE_CHECKING:
    from workbench.circuits.coded import Coded

ONE_HEAD = "app_pages/one_head.py"


def patching(found: HeadLabels) -> None:
    """Path patching to a receiver, or activation patching of a component, on a few prompts of a task."""
    from workbench.circuits.patch_question import Patched

    left, right = st.columns([2, 3], gap="large")
    with left:
        options = asked(found)
        what = f"paths to {options['receiver']}" if options["kind"] == "path" else f"{options['component']} of each head"
        title = f"Patching {what}: {found.card.name}, {options['prompts']} pairs of {options['task']}"
        question = Question("Patch", title, arguments_of("patch", found, options))
        result = answered(question, Patched.load, found, right, "The settings say what is patched; a few prompts take seconds to a minute on a CPU.")
    if result is None:
        return
    with right:
        sent = patched_canvas(result)
        if picked := head_map(sent, key="patched"):
            st.switch_page(ONE_HEAD, query_params={"head": picked})
        st.caption(patched_text(result))
        mapped(sent, "patched-map")
    rows = result.table
    st.dataframe(rows, hide_index=True, placeholder="–", column_config=_numbers(rows), height=400)
    st.caption(
        f"Intervals and p-values are over {len(result.effects.base_N)} pairs: with few, they are wide, and p cannot be small. A click on the map opens a head."
    )
    table(rows, "patched")


def asked(found: HeadLabels) -> dict[str, Any]:
    """What shall be patched, as options of `workbench circuit patch`; a sentence, and no more of the page, if it cannot be."""
    from workbench.circuits.alternatives import ABLATIONS, COMPONENTS
    from workbench.circuits.patch_question import KINDS, POSITIONS, PatchQuestion
    from workbench.circuits.patching import DIRECTIONS
    from workbench.circuits.paths import receivers_of

    kind = st.segmented_control("Patching", list(KINDS), default="path", required=True, key="kind", bind="query-params", on_change=forget)
    st.caption(f"{KINDS[kind]}.")
    how: dict[str, Any] = {"kind": kind, "task": task_picked()}
    if kind == "path":
        how["receiver"] = st.text_input(
            "Receiver", "logits", key="receiver", bind="query-params", on_change=forget, max_chars=200,
            help="Where paths end: logits, the queries of a head (L20H0.q), the keys or values that it reads (L20H0.k, L20H0.v); several at once joined by +.",
        )  # fmt: skip
    else:
        how["component"] = picked("Component", COMPONENTS, "component")
    how["ablation"] = picked("Replaced by", ABLATIONS, "ablation")
    how["direction"] = picked("Direction", DIRECTIONS, "direction")
    how["positions"] = picked("Positions", dict.fromkeys(POSITIONS, ""), "positions")
    how |= drawn(4, 32)
    with told():
        PatchQuestion(**how)
        if kind == "path":
            receivers_of(how["receiver"], found.card.shape)
    return how


def codes(found: HeadLabels) -> None:
    """Scores by a sparse autoencoder's codes, beside what chance, size and variety give."""
    from workbench.circuits.coded import Coded

    left, right = st.columns([2, 3], gap="large")
    with left:
        options = {"task": task_picked(), **drawn(10, 32, least=5)}
        title = f"Codes: {found.card.name}, {options['prompts']} pairs of {options['task']}"
        question = Question("Train and score", title, arguments_of("codes", found, options))
        result = answered(question, Coded.load, found, right, "The button trains the autoencoder, in about half a minute on a CPU.")
        st.caption(
            "One small autoencoder for all heads learns, from ten of these prompts, what heads write. A head scores by the codes that it has on clean prompts "
            "and never on corrupted ones. It only watches: a high score is no proof that the head is used, and noisy heads score high whatever the task."
        )
    if result is None:
        return
    with right:
        columns = ["codes", "excess", "norm", "distinct"]
        column = st.segmented_control("Map", columns, default="codes", required=True, key="column", bind="query-params")
        sent = coded_canvas(result, column)
        if head := head_map(sent, key="coded"):
            st.switch_page(ONE_HEAD, query_params={"head": head})
        coded_caption(column, result)
        mapped(sent, f"codes-map-{column}")
    left, right = st.columns(2, gap="large")
    with left:
        control = st.segmented_control("Against", ["distinct", "norm", "excess"], default="distinct", required=True, key="control", bind="query-params")
        chart(coded_figure(result, control), "codes", f"Scatter plot of codes against {control}", result.table)
        st.caption(f"Codes are whole numbers, drawn a little apart. Rank correlation with {control}: {result.agreement[control]['spearman']:.2f} (Spearman).")
    with right:
        st.dataframe(result.table.sort_values("codes", ascending=False), hide_index=True, placeholder="–", column_config=_numbers(result.table), height=500)
        st.caption("q: p with the false-discovery rate held over all heads.")


def coded_caption(column: str, result: "Coded") -> None:
    """What a map of codes shows."""
    from workbench.circuits.coded import COLUMNS

    st.caption(
        f"{column}: {COLUMNS[column]}. {result.pairs} pairs of prompts. Hovering tells p (200 swaps within pairs, before any correction); a click opens a head."
    )


def task_picked() -> str:
    """A task of the catalogue with its options, as `prepare` takes it."""
    from workbench.circuits.tasks import TASKS

    name = picked("Task", {name: task.title for name, task in TASKS.items()}, "task", first="ioi")
    st.caption(TASKS[name].title)
    options = {option: picked(f"{name}: {option}", dict.fromkeys(values, ""), f"{name}_{option}") for option, values in TASKS[name].options.items()}
    given = ",".join(f"{option}={value}" for option, value in options.items() if value != TASKS[name].options[option][0])
    return f"{name}:{given}" if given else name


def drawn(usual: int, most: int, least: int = 1) -> dict[str, int]:
    """How many pairs of prompts, and by which seed they are drawn."""
    prompts = st.slider("Pairs of prompts", least, most, usual, key="prompts", bind="query-params", on_change=forget)
    seed = st.number_input("Seed", 0, 10_000, 0, key="seed", bind="query-params", on_change=forget)
    return {"prompts": prompts, "seed": int(seed)}


def picked(label: str, meaning: Mapping[str, str], key: str, first: str | None = None) -> str:
    """One of some names, whose meanings the question mark tells; a change has nothing computed until it is asked for."""
    names = list(meaning)
    told_of = "  \n".join(f"**{name}**: {text}" for name, text in meaning.items() if text)
    return st.selectbox(label, names, index=names.index(first) if first else 0, key=key, bind="query-params", on_change=forget, help=told_of or None)


def _numbers(rows: Any) -> dict[str, Any]:
    return {name: st.column_config.NumberColumn(format="%.3g") for name in rows.columns if name != "head"}
