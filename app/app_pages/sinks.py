"""Where are attention sinks, and what happens if they get less? Sinks by score and on a text, calibration (ACT) on one prompt, and the calibrated heads."""

from typing import TYPE_CHECKING, Any

import streamlit as st
from calibrated import calibrated_heads, calibration, uploader
from chosen import BY_FINGERPRINT, head_of, labels, literal, model, told
from downloads import chart, panel, table, tabled
from maps import head_map, pinning_map

from workbench import views
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.rules import rule_text
from workbench.sink_rules import FIRST_TOKEN, SINK_RULES, TAIL

if TYPE_CHECKING:
    from workbench.calibration import Shift, Trial
    from workbench.edits import Calibrate
    from workbench.models import HFModel
    from workbench.sinks import Sinks

ONE_HEAD = "app_pages/one_head.py"
PICKED = "picked"
TEXT = "The shepherd drove his flock over the hill, and the dog ran after them.\nIn the evening, when the bells rang, the shepherd counted the flock again."
PROMPT = """\
Word: lawyer. Kind: job.
Word: Finland. Kind: country.
Word: hamster. Kind: animal.
Word: blueberry. Kind: fruit.
Word: mallet. Kind: tool.
Word: Italy. Kind:"""
MOST_CHARACTERS = 2000
FIRST = "first"
KEPT, ALL, ONE = "the kept heads", "all heads", "one head"
CALIBRATE = "The kept heads are those that a calibration found to help, one by one. All heads are ACT's control, which should hurt."
RULES = (
    "Of α, the mean attention that a token receives from the rows that see it, 0–1. alpha_n: above the value / tokens. absolute: above the value. "
    f"uniform: above the value × what it would receive from uniform attention. first: above {FIRST_TOKEN:g} on the first token, which is no sink by the others."
)
SINK_COLUMNS = {"received": "receives", "limit": "a sink exceeds", "after": "calibrated"}


def where(found: HeadLabels) -> None:
    """Which heads have sinks by their scores, and which tokens of a text are sinks."""
    left, right = st.columns([2, 3], gap="large")
    with left:
        by_score(found)
    with right:
        on_text(found)


def by_score(found: HeadLabels) -> None:
    """The map of any score about sinks."""
    names = views.sink_probes(found)
    if not names:
        st.info("The labels hold no scores about sinks; `workbench label --probe attention_sink --probe later_sink_uniform --probe no_op` makes some.")
        return
    name = st.selectbox("Score", names, key="score", bind="query-params")
    if picked := head_map(views.head_canvas(found, views.panel(found, name)), key="sink_map"):
        st.switch_page(ONE_HEAD, query_params={"head": picked})
    panel(found, views.panel(found, name), f"{found.card.name}-{name}")
    for rule in (rule for rule in found.rules.values() if rule.probe == name):
        st.caption(f"**{literal(rule.label)}**: {rule_text(rule)} ({literal(rule.chance)}). Source: {literal(rule.source)}.")
    from workbench.probes import PROBES

    st.caption(PROBES[name].question if name in PROBES else f"{literal(name)} is no probe of this workbench; its scores come with the file.")


def on_text(found: HeadLabels) -> None:
    """The sinks of a text of one's own by one rule: by layer and token, in a list, and by head."""
    text = st.text_area("Text", TEXT, key="text", bind="query-params", max_chars=MOST_CHARACTERS)
    rules, values, tails = st.columns([2, 1, 1])
    rule = rules.selectbox("Rule", [*SINK_RULES, FIRST], key="rule", bind="query-params", help=RULES)
    value = (
        None if rule == FIRST else values.number_input("Value", 0.0, value=float(SINK_RULES[rule].value), format="%g", key=f"value_{rule}", bind="query-params")
    )
    tail = tails.slider("Tail left out", 0.0, 0.9, TAIL, 0.05, key="tail", bind="query-params", help="Few rows see the last tokens, so that one row decides.")
    loaded = model(found)
    with told(), st.spinner("Reading"):
        seen = _sinks(loaded, text, rule, value, tail)
    positions = seen.positions()
    positions = positions[positions["rule"] == rule].drop(columns="rule")
    every = found.card.shape.n_layers * found.card.shape.n_heads
    count = int((seen.by_head(rule) > 0).sum())
    st.markdown(f"**{count} of {every} heads have a sink by this rule**, on {len(positions)} of {len(seen.tokens)} tokens.")
    chart(views.places_figure(seen, rule), "sinks-by-token", "Heat map of layers and tokens: how many heads have a sink there", positions)
    names = {"received": st.column_config.NumberColumn("most received", format="%.3f"), "heads": "heads with a sink", "layers": "in layers"}
    st.dataframe(positions, hide_index=True, column_config=names, height=min(38 * (len(positions) + 1), 300))
    source = f"more than {FIRST_TOKEN:g} on the first token (Gu et al. 2024)" if rule == FIRST else SINK_RULES[rule].source
    st.caption(f"Received is α, the mean attention from the rows that see the token, 0–1; here the most of any head. Rule: {source}.")
    st.markdown("**Sinks of each head on this text**")
    if picked := head_map(views.head_canvas(found, views.sinks_panel(seen, rule)), key="text_map"):
        st.switch_page(ONE_HEAD, query_params={"head": picked, "text": text})
    panel(found, views.sinks_panel(seen, rule), f"sinks-by-head-{rule}")


def on_and_off(found: HeadLabels) -> None:
    """One prompt with and without the edit: what comes next, the answer, and where a head looks."""
    kept = calibration(found)[0]
    sets = {KEPT: kept.kept if kept else (), ALL: None, ONE: ()}
    names = [name for name in sets if name != KEPT or sets[KEPT]]
    text = st.text_area("Prompt", PROMPT, key="prompt", bind="query-params", max_chars=MOST_CHARACTERS, height=180)
    which, share, rule, value = st.columns([2, 2, 1, 1])
    chosen = which.selectbox("Calibrate", names, key="calibrate", bind="query-params", help=CALIBRATE)
    every = [str(head) for head in found.labels]
    if chosen == ONE:
        sets[ONE] = (head_of(which.selectbox("Head", every, len(every) // 2, key="alone", bind="query-params"), found),)
    beta = share.slider("Sinks keep (β)", 0.0, 1.0, 0.4, 0.05, key="beta", bind="query-params")
    edit = _edit(sets[chosen], beta, rule, value)
    name = {KEPT: f"the {len(sets[KEPT] or ())} kept heads", ALL: "all heads", ONE: ", ".join(map(str, sets[ONE] or ()))}[chosen]
    loaded = model(found)
    with told(), st.spinner("Predicting with and without calibration"):
        tried = _trial(loaded, text, edit)
    predicted(tried, name)
    looked(found, tried, text)


def _edit(heads: tuple[Head, ...] | None, beta: float, rule: Any, value: Any) -> "Calibrate":
    """The calibration that is asked for."""
    from workbench.edits import Calibrate, SinkRule
    from workbench.edits.sinks import RULES as KINDS

    kind = rule.selectbox("Rule", list(KINDS), key="act_rule", bind="query-params")
    limit = value.number_input("Value", 0.0, value=float(KINDS[kind][0]), format="%g", key=f"act_{kind}", bind="query-params")
    st.caption(f"A sink gets {KINDS[kind][1]}. Sinks keep β of their attention; the rest goes to the other tokens in proportion (ACT, 2406.15765).")
    with told():
        return Calibrate(heads, beta, SinkRule(kind, limit))
    raise AssertionError


def predicted(tried: "Trial", name: str) -> None:
    """What comes next, and the answers."""
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.markdown("**What comes next**")
        variants = {column: look for column, look in views.ACT_VARIANTS.items() if column in tried.following}
        figure = views.following_figure(tried.following, name, variants)
        chart(
            figure, "calibrated-next-token", "Bars: probability of the next token as the model is, calibrated, and with other heads calibrated", tried.following
        )
        if tried.control:
            st.caption(f"The control calibrates {len(tried.control)} other heads of the same layers, drawn at random (seed 0), by the same rule.")
    with right:
        st.markdown("**The answer**, at most 16 tokens, always the likeliest next one")
        for way, words in (("plain", "as the model is"), ("calibrated", f"{name} calibrated")):
            st.caption(words)
            st.code(tried.answers[way] or "(nothing)", language=None, wrap_lines=True)
        several = int((tried.found_LH > 0).sum())
        st.markdown(f"The edit found **{int(tried.found_LH.sum())} sinks in {several} heads** of this prompt; heads without a sink are not changed.")
        st.caption(
            "One prompt cannot tell whether calibration helps: see Calibrated heads for held-out questions. The one that comes with this page "
            "was taken because it changes."
        )


def looked(found: HeadLabels, tried: "Trial", text: str) -> None:
    """Where one head looks, before and after; the map of sinks chooses the head."""
    if picked := st.session_state.pop(PICKED, None):
        st.session_state["look"] = picked
    left, right = st.columns([1, 2], gap="large")
    with left:
        st.subheader("Where a head looks")
        every = [str(head) for head in found.labels]
        head = head_of(st.selectbox("Head to look at", every, every.index(str(tried.most)), key="look", bind="query-params"), found)
        st.caption("Sinks that the edit found in each head; a click chooses the head to look at.")
        shown = views.found_panel(tried.found_LH, "sinks")
        if picked := head_map(views.head_canvas(found, shown, head), key="found_map"):
            st.session_state[PICKED] = picked
            st.rerun()
        panel(found, shown, "sinks-found")
    from workbench.looking import pairs

    loaded = model(found)
    with right, told():
        seen = _shift(loaded, text, tried.edit, head)
        st.markdown(f"**{head} as the model is**")
        pinning_map(lambda row: views.token_canvas(head, seen.tokens, seen.before_QK, seen.before_K, row), len(seen.tokens), key="before")
        st.markdown(f"**{head} calibrated**")
        pinning_map(lambda row: views.token_canvas(head, seen.tokens, seen.after_QK, seen.after_K, row), len(seen.tokens), key="after")
        tabled(lambda: pairs(seen.tokens, before=seen.before_QK, after=seen.after_QK), f"{head}-attention")
        st.caption("Shades are the square root of the attention, 0–1. Hovering shows where a token looks; a click pins it in both texts.")
        if seen.sinks.empty:
            st.info(f"{head} has no sink in this prompt by this rule; if it changes, that comes from calibrated heads of earlier layers.")
            return
        numbers = {name: st.column_config.NumberColumn(words, format="%.3f") for name, words in SINK_COLUMNS.items()}
        st.dataframe(seen.sinks, hide_index=True, column_config=numbers)
        table(seen.sinks, f"{head}-sinks")
        st.caption("The sinks of this head in the plain model: the mean attention that they receive, what a sink must exceed, and what is left, all 0–1.")


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _sinks(loaded: "HFModel", text: str, rule: str, value: float | None, tail: float) -> "Sinks":
    from workbench.looking import text_prompts
    from workbench.sink_rules import sink_rules_with
    from workbench.sinks import find_sinks

    rules = sink_rules_with([] if value is None else [f"{rule}={value}"])
    return find_sinks(loaded, text_prompts(loaded, text), rules=rules, tail=tail)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _trial(loaded: "HFModel", text: str, edit: "Calibrate") -> "Trial":
    from workbench.calibration import trial

    return trial(loaded, text, edit)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _shift(loaded: "HFModel", text: str, edit: "Calibrate", head: Head) -> "Shift":
    from workbench.calibration import shift

    return shift(loaded, text, edit, head)


SHOWN = {"Where sinks are": where, "Calibration on and off": on_and_off, "Calibrated heads": calibrated_heads}

found = labels()
title, files = st.columns([4, 1], vertical_alignment="bottom")
title.title("Sinks and calibration")
with files.popover("Calibration files"):
    uploader()
part = st.segmented_control("View", SHOWN, default=next(iter(SHOWN)), required=True, key="part", bind="query-params", label_visibility="collapsed", wrap=True)
SHOWN[part](found)
