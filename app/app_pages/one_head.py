"""What is this head, and what is lost without it? Its scores and labels, where it looks in a text, what it writes, and the text without it."""

import streamlit as st
from chosen import head_of, labels, model, scores, told
from maps import token_map

from workbench import views
from workbench.heads import Head
from workbench.labels import HeadLabels

TEXT = "Alice Petrov met Bruno Quist in Lisbon. Later that year, Alice Petrov wrote a long letter to Bruno"
MOST_CHARACTERS = 4000


def table(found: HeadLabels, head: Head) -> None:
    """Every score of the head, with the rule that labels by it."""
    names = {"rank": f"rank of {len(found.labels)}", "chance": "what the null is", "interval": "95% interval"}
    rows = views.head_table(found, head, scores()).rename(columns=names)
    numbers = {name: st.column_config.NumberColumn(format="%.3f") for name in ("score", "null")}
    st.dataframe(rows, hide_index=True, column_config=numbers, height=min(38 * (len(rows) + 1), 420))
    st.caption("Labels first. A null is what the same head scores where the behaviour cannot show; a head is labelled only above its own.")
    if "null" not in rows:
        st.caption("The labels file holds no nulls and intervals; `workbench score --out scores.parquet` writes those.")


def attention(found: HeadLabels, head: Head, text: str) -> None:
    """Where the head looks in the text, token by token."""
    from workbench.looking import look

    loaded = model(found)
    with told():
        seen = look(loaded, text, head)
    row = st.query_params.get("row", "")
    pinned = int(row) if row.isdecimal() and int(row) < len(seen.tokens) else None
    clicked = token_map(views.token_canvas(head, seen.tokens, seen.pattern_QK, seen.received_K, pinned), key="tokens")
    st.caption("Shades are the square root of the attention, 0–1. Hovering shows where a token looks; a click pins it.")
    if clicked is not None and clicked != (-1 if pinned is None else pinned):
        if clicked < 0:
            st.query_params.pop("row", None)
        else:
            st.query_params["row"] = str(clicked)
        st.rerun()
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
    st.caption("From weights alone: the tokens whose logits the head changes most when it looks wholly at a token (W_U·OV·(W_E + MLP0(W_E))).")


def ablated(found: HeadLabels, head: Head, text: str) -> None:
    """The text's next tokens with and without the head, or without all heads of one of its labels."""
    from workbench.looking import without

    sets = {str(head): (head,), **{f"all {len(found.heads(name))} heads labelled {name}": found.heads(name) for name in found.labels[head]}}
    chosen = st.selectbox("Switch off", list(sets), key="off", bind="query-params")
    st.caption("A head that is switched off writes nothing. The control switches off as many other heads of the same layers, drawn at random (seed 0).")
    if not st.toggle("Switch off and predict again", key="ablate", bind="query-params"):
        return
    loaded = model(found)
    with told(), st.spinner("Predicting"):
        result = without(loaded, text, sets[chosen])
    st.plotly_chart(views.following_figure(result.following, chosen), alt="Bars: probability of the next token with and without the heads")
    if len(result.controls) < len(result.heads):
        st.caption(f"The control has only {len(result.controls)} heads: these layers have no more others.")
    if len(result.lost):
        st.plotly_chart(views.lost_figure(result.lost, chosen), alt="Bars: how much less likely each token of the text becomes")


found = labels()
st.title("One head")
usual = views.panel(found).marked
first = str(usual[0]) if usual else None
every = [str(one) for one in found.labels]
head = head_of(st.selectbox("Head", every, index=every.index(first) if first else 0, key="head", bind="query-params"), found)
names = found.labels[head]
st.markdown(" ".join(f":blue-badge[{name}]" for name in names) or ":gray-badge[no label]")
st.caption(f"{head} reads KV head {found.card.shape.kv_head(head)} of layer {head.layer} of {found.card.name}.")
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
