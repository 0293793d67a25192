"""Which KV heads keep the whole context, and what is won and lost? A policy from labels, its memory, quality and speed, and its export."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import streamlit as st
from chosen import LABELS_MB, beside, labels, literal, parsed, path_beside, sentence, told
from downloads import chart, table
from exporting import export
from policy_choice import Choice, choice
from uploads import Upload, uploader

from workbench import choosing, formats, views
from workbench.errors import InputError
from workbench.formats import Export
from workbench.labels import HeadLabels
from workbench.measured import Speeds, nearest, policies_table, speeds
from workbench.policies import FULL

if TYPE_CHECKING:
    import pandas as pd

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
LENGTHS = [2**power for power in range(9, 22)]
MOST_TOKENS = 2**24
BITS = {16: 2, 8: 1, 32: 4}
VERIFIED = "verified_table"
REPORT = "policies.csv"
GIB = 2**30


class Context(NamedTuple):
    """For how many tokens memory is counted, in how many bytes a number takes, and how many prompts at once."""

    tokens: int
    dtype_bytes: int
    batch: int


def context() -> Context:
    """The context that memory is counted for."""
    first, second, third = st.columns([2, 1, 1])
    tokens = first.number_input("Context, tokens", 1, MOST_TOKENS, 32768, 1024, key="tokens", bind="query-params")
    bits = second.selectbox("Bits", list(BITS), key="bits", bind="query-params", help="Of each number in the cache.")
    batch = third.number_input("Batch", 1, 4096, 1, key="batch", bind="query-params", help="Prompts at once.")
    return Context(tokens, BITS[bits], batch)


def overview(made: Choice, asked: Context) -> None:
    """The map of full heads, and what they save, in a sentence."""
    policy = made.policy
    row = policy.memory([asked.tokens], asked.dtype_bytes, asked.batch).iloc[0]
    count, every = int(policy.full_LG.sum()), policy.full_LG.size
    st.markdown(
        f"**{count} of {every} KV heads stay full** ({policy.full_share:.0%}); the others see {policy.sinks} first and {policy.window} last tokens. At "
        f"{asked.tokens:,} tokens keys and values take **{views.bytes_text(row['policy'])} instead of {views.bytes_text(row['full'])}** ({row['share']:.0%})."
    )
    chart(
        views.policy_figure(policy, made.score_LG, made.name), "policy-heads", "Map of layers and KV heads: which stay full, with the scores that ranked them"
    )
    st.caption("A ring is a KV head that stays full; hovering tells which query heads share it." + (f" Shades: {literal(made.name)}." if made.name else ""))


def memory(made: Choice, asked: Context) -> None:
    """Bytes over the context, and the longest context that fits."""
    policy = made.policy
    rows = policy.memory(sorted({*LENGTHS, asked.tokens}), asked.dtype_bytes, asked.batch)
    chart(views.memory_figure(rows, asked.tokens), "policy-memory", "Curves: gigabytes of keys and values over the context", rows)
    st.caption(
        "By arithmetic: 2 × KV heads × head size × bytes × tokens kept, in every layer; room for sinks and window is held from the start. Weights and "
        "activations come on top. If the model's own layers have sliding windows, these stay as they are, and both curves lie lower."
    )
    room = st.columns([1, 2])[0].number_input("Room for keys and values, GiB", 0.001, 10_000.0, 8.0, key="room", bind="query-params", format="%g")
    full = choosing.everything(policy.card).longest(room * GIB, asked.dtype_bytes, asked.batch)
    most = policy.longest(room * GIB, asked.dtype_bytes, asked.batch)
    ends = f"**{most:,} tokens** with this policy" if most is not None else "**any number of tokens** with this policy, as every head streams"
    st.markdown(f"In {room:g} GiB fit **{full or 0:,} tokens** with every head full, and {ends}.")


def quality(made: Choice, _asked: Context) -> None:
    """What policies keep of the full model, as it was measured."""
    words = "A table of `workbench verify` (.csv or .parquet)"
    rows, report = _measured(uploader(words, ["csv", "parquet"], VERIFIED, LABELS_MB))
    if rows is None:
        st.info("There is no table of what policies cost beside the labels. `workbench verify heads.json --out verify.csv` measures one; give it above.")
        return
    count = int(made.policy.full_LG.sum())
    row = nearest(rows, made.name, count)
    if row is not None:
        st.markdown(
            f"Measured nearest to this policy, {row['full_heads']} heads full by {literal(made.name)}: **{row['kept']:.0%} of the needle recall** is kept (95% "
            f"{row['kept_low']:.0%} to {row['kept_high']:.0%}), the next token is the full model's in {row['agreement']:.1%}; perplexity "
            f"{row['perplexity']:.2f}. Other sizes of sinks and window, and other lengths, keep more or less."
        )
    else:
        st.markdown(
            "No row of the table was chosen in this policy's way, so that it tells nothing about this very policy. It has: " + literal(_ways(rows)) + "."
        )
    columns = st.columns(2, gap="large")
    for column, name in zip(columns, views.PANELS, strict=True):
        with column:
            chart(views.quality_panel(rows, name, row), f"policy-{name}", f"Curves: {views.PANELS[name]}, against KV memory", rows if name == "kept" else None)
    st.caption("Bars: 95% intervals of the paired difference; for random heads the least and the most of the seeds.")
    if report:
        st.caption(report.split("\n\n")[1])
        with st.expander("The report of these measurements"):
            st.markdown(report)


def _measured(given: Upload | None) -> "tuple[pd.DataFrame | None, str]":
    """The table that was uploaded, or the one beside the labels with its report."""
    if given is not None:
        try:
            return _table(given.content, given.name), ""
        except InputError as error:
            st.error(sentence(error))
    content = beside(REPORT)
    if content is None:
        return None, ""
    with told():
        return _table(content, REPORT), (beside("policies.md") or b"").decode("utf-8")
    raise AssertionError


def _ways(rows: "pd.DataFrame") -> str:
    return ", ".join(dict.fromkeys(rows["policy"]))


def speed(made: Choice, _asked: Context) -> None:
    """Measured speeds of the kernels that run policies, with their machine."""
    with told():
        found = {one.title: one for one in _speeds(str(BENCHMARKS))}
    if not found:
        st.info("There are no tables of speeds: the folder benchmarks/results is not there. `python benchmarks/kernels.py` makes some on a GPU.")
        return
    first, second, third = st.columns(3)
    one: Speeds = found[first.selectbox("Measured", list(found), key="speed", bind="query-params")]
    shape = made.policy.card.shape
    shapes, mine = list(dict.fromkeys(one.table["shape"])), f"{shape.n_heads}/{shape.n_kv_heads} heads of {shape.d_head}"
    chosen = second.selectbox("Query/KV heads", shapes, shapes.index(mine) if mine in shapes else 0, key="shape", bind="query-params")
    whats = list(dict.fromkeys(one.table["what"]))
    what = third.selectbox("Time of", whats, key="what", bind="query-params")
    rows = one.table[(one.table["shape"] == chosen) & (one.table["what"] == what)]
    st.warning(f"Measured on {one.device}, not on this machine: another device, model or context gives other times.", icon=":material/speed:")
    chart(views.speed_figure(rows), "policy-speed", "Curves: how many times as fast as every head full, over the context", rows)
    st.caption(one.about)
    numbers = {"full": st.column_config.NumberColumn("full heads", format="percent"), "time": st.column_config.NumberColumn("median", format="%.4g")}
    numbers |= {"low": st.column_config.NumberColumn("25%", format="%.4g"), "high": st.column_config.NumberColumn("75%", format="%.4g")}
    numbers |= {"times": st.column_config.NumberColumn("times as fast", format="%.2f")}
    order = ["tokens", "full", "variant", "time", "low", "high", "unit", "times"]
    st.dataframe(rows, column_order=order, column_config=numbers, hide_index=True)
    table(rows, "policy-speeds")
    st.caption(one.made)


@st.cache_resource(max_entries=8, show_spinner=False)
def _table(content: bytes, name: str) -> "pd.DataFrame":
    return policies_table(content, name)


@st.cache_resource(max_entries=1, show_spinner=False)
def _speeds(folder: str) -> list[Speeds]:
    return speeds(Path(folder))


def exported(made: Choice, _asked: Context) -> None:
    """The labels with the policy, as the file of any tool."""
    ready = made.policy.labelled(labels())
    st.caption(
        f"The labels carry the policy. Tools that know none get it as the label and the score `{FULL}` of all query heads of full KV heads. "
        "`workbench generate` runs a model under the policy of such a file, `workbench verify` measures what it costs."
    )
    usual = Export(probe=FULL, label=FULL, sink=made.policy.sinks, recent=made.policy.window)
    export(ready, usual, f"Scores are those of **{FULL}**: 1 for the query heads of KV heads that stay full, else 0.")


def ranked(found: HeadLabels) -> HeadLabels:
    """The labels with the other rankings of KV heads that lie beside them: an elimination, and trained gates."""
    others = {}
    with told():
        if (content := beside("elimination.json")) is not None:
            others["elimination.json"] = parsed(content, "elimination.json")
        if (folder := path_beside("duo_gates")) is not None:
            others["duo_gates"] = formats.read(folder, "duo", found.card, "duo_gates")
        return choosing.with_scores(found, {name: other for name, other in others.items() if not set(other.scores) & set(found.scores)})
    raise AssertionError


SHOWN = {"KV memory": memory, "Quality": quality, "Speed": speed, "Export": exported}

found = labels()
st.title("Efficient attention")
left, right = st.columns([2, 3], gap="large")
with left:
    asked = context()
    made = choice(ranked(found), asked.tokens)
with right:
    overview(made, asked)
part = st.segmented_control("View", SHOWN, default=next(iter(SHOWN)), required=True, key="part", bind="query-params", label_visibility="collapsed", wrap=True)
SHOWN[part](made, asked)
