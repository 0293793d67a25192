"""What is this head, and what is lost without it? Its scores and labels, where it looks in a text, what it writes, and the text without it."""

from typing import TYPE_CHECKING

import downloads
import streamlit as st
from chosen import BY_FINGERPRINT, head_of, labels, literal, model, scores, told
from maps import pinning_map

from workbench import views
from workbench.heads import Head
from workbench.labels import HeadLabels

if TYPE_CHECKING:
    import pandas as pd

    from workbench.examples import Observed
    from workbench.models import HFModel

TEXT = "Alice Petrov met Bruno Quist in Lisbon. Later that year, Alice Petrov wrote a long letter to Bruno"
MOST_CHARACTERS = 4000


def table(found: HeadLabels, head: Head) -> None:
    """Every score of the head, with the rule that labels by it."""
    names = {"rank": f"rank of {len(found.labels)}", "chance": "what the null is", "interval": "95% interval"}
    rows = views.head_table(found, head, scores()).rename(columns=names)
    numbers = {name: st.column_config.NumberColumn(format="%.3f") for name in ("score", "null")}
    st.dataframe(rows, hide_index=True, column_config=numbers, height=min(38 * (len(rows) + 1), 420))
    downloads.table(rows, f"{head}-scores")
    st.caption("Labels first. A null is what the same head scores where the behaviour cannot show; a head is labelled only above its own.")
    if "null" not in rows:
        st.caption("The labels file holds no nulls and intervals; `workbench score --out scores.parquet` writes those.")


def attention(found: HeadLabels, head: Head, text: str) -> None:
    """Where the head looks in the text, token by token."""
    from workbench.looking import look, pairs

    loaded = model(found)
    with told():
        seen = look(loaded, text, head)
    pinning_map(lambda pinned: views.token_canvas(head, seen.tokens, seen.pattern_QK, seen.received_K, pinned), len(seen.tokens), key="tokens")
    downloads.tabled(lambda: pairs(seen.tokens, attention=seen.pattern_QK), f"{head}-attention")
    st.caption("Shades are the square root of the attention, 0–1. Hovering shows where a token looks; a click pins it.")
    if warning := seen.provenance.get("warning"):
        st.warning(warning)


def written(found: HeadLabels, head: Head, text: str) -> None:
    """What the head writes for each token, by its weights."""
    from workbench.looking import writes

    loaded = model(found)
    with told():
        rows = writes(loaded, text, head)
    names = {"raises": "raises most", "lowers": "lowers most", "itself": f"rank of itself among {loaded.vocabulary:,}"}
    st.dataframe(rows.rename(columns=names), hide_index=True)
    downloads.table(rows, f"{head}-writes")
    st.caption("From weights alone: the tokens whose logits the head changes most when it looks wholly at a token (W_U·OV·(W_E + MLP0(W_E))).")


def ablated(found: HeadLabels, head: Head, text: str) -> None:
    """The text's next tokens with and without the head, or without all heads of one of its labels."""
    from workbench.looking import PIECES, without

    sets = {str(head): (head,), **{f"all {len(found.heads(name))} heads labelled {name}": found.heads(name) for name in found.labels[head]}}
    chosen = st.selectbox("Switch off", list(sets), key="off", bind="query-params")
    from workbench.edits.ablate import KINDS

    kind = st.segmented_control("Ablation", list(KINDS), default="zero", required=True, key="kind", bind="query-params")
    elsewhere = f" Other prompts: {PIECES} pieces of the Python language reference, as long as the text." if kind in ("mean", "resample") else ""
    st.caption(f"{kind}: {KINDS[kind]}.{elsewhere} The control does so to as many other heads of the same layers, drawn at random (seed 0).")
    if not st.toggle("Switch off and predict again", key="ablate", bind="query-params"):
        return
    loaded = model(found)
    with told(), st.spinner("Predicting"):
        result = without(loaded, text, sets[chosen], kind=kind)
    following = views.following_figure(result.following, chosen)
    downloads.chart(following, f"{head}-next", "Bars: probability of the next token with and without the heads", result.following)
    if len(result.controls) < len(result.heads):
        st.caption(f"The control has only {len(result.controls)} heads: these layers have no more others.")
    if len(result.lost):
        downloads.chart(views.lost_figure(result.lost, chosen), f"{head}-lost", "Bars: how much less likely each token of the text becomes", result.lost)


def added(found: HeadLabels, head: Head, text: str) -> None:
    """What the head's own write adds to the logits of the text."""
    from workbench.circuits.one_head import contributes

    loaded = model(found)
    with told():
        rows = contributes(loaded, text, head)
    downloads.chart(views.adds_figure(rows, str(head)), f"{head}-adds", "Bars: what the head adds to the logit of each next token of the text", rows)
    st.caption("Direct logit attribution: the head's write through the final norm, whose scale is held, and W_U, less the mean over the vocabulary.")


def matched(found: HeadLabels, head: Head, text: str) -> None:
    """What the head matches, by its weights."""
    if not st.toggle("What its queries seek among all tokens (takes some seconds)", key="match", bind="query-params"):
        return
    with told(), st.spinner("Scoring the vocabulary"):
        rows = _matches(model(found), text, str(head))
    st.dataframe(rows.rename(columns={"itself": "rank of itself"}), hide_index=True, column_config={"spread": st.column_config.NumberColumn(format="%.2f")})
    downloads.table(rows, f"{head}-matches")
    st.caption(
        "From weights alone (its QK circuit): the keys that the query of a token scores highest and lowest, each token by W_E + MLP0(W_E), both at one place, "
        "so that rotation is left out. Spread: standard deviation of the scores over the vocabulary, in logits of attention."
    )


def examples(found: HeadLabels, head: Head) -> None:
    """Where the head writes most in a long text."""
    if not st.toggle("Where it writes most in other text (takes half a minute for the first head)", key="examples", bind="query-params"):
        return
    from workbench.examples import strongest

    loaded = model(found)
    with told(), st.spinner("Reading 8 pieces of 256 tokens with all heads"):
        rows = strongest(loaded, _observed(loaded), head)
    names = {"looks_at": "looks most at", "back": "tokens back", "share": "attention there", "size": "length of the write", "times": "× median"}
    numbers = {
        name: st.column_config.NumberColumn(format=form) for name, form in (("attention there", "%.2f"), ("length of the write", "%.1f"), ("× median", "%.1f"))
    }
    st.dataframe(rows.rename(columns=names), hide_index=True, column_config=numbers)
    downloads.table(rows, f"{head}-examples")
    st.caption(
        "The longest writes ‖z W_O‖ in 8 pieces of 256 tokens of the Python language reference (seed 0), with the text before each and what it looks at."
    )


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _matches(loaded: "HFModel", text: str, head: str) -> "pd.DataFrame":
    from workbench.circuits.one_head import matches

    return matches(loaded, text, Head.parse(head))


@st.cache_resource(max_entries=1, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _observed(loaded: "HFModel") -> "Observed":
    from workbench.examples import observe

    return observe(loaded)


found = labels()
st.title("One head")
usual = views.panel(found).marked
first = str(usual[0]) if usual else None
every = [str(one) for one in found.labels]
head = head_of(st.selectbox("Head", every, index=every.index(first) if first else 0, key="head", bind="query-params"), found)
names = found.labels[head]
st.markdown(" ".join(f":blue-badge[{literal(name)}]" for name in names) or ":gray-badge[no label]")
st.caption(f"{head} reads KV head {found.card.shape.kv_head(head)} of layer {head.layer} of {literal(found.card.name)}.")
table(found, head)
st.subheader("On a text")
text = st.text_area("Text", TEXT, key="text", bind="query-params", max_chars=MOST_CHARACTERS)
left, right = st.columns(2, gap="large")
with left:
    st.markdown("**Where it looks**")
    attention(found, head, text)
with right:
    st.markdown("**Without it**")
    ablated(found, head, text)
with left:
    st.markdown("**What it writes**")
    written(found, head, text)
with right:
    st.markdown("**What it adds to the logits**")
    added(found, head, text)
st.markdown("**What it matches**")
matched(found, head, text)
st.subheader("Strongest examples")
examples(found, head)
