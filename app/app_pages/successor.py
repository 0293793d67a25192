"""Which heads increment, and how? What one head writes within a class of words, class by class with the controls, and features modulo ten; weights alone."""

from typing import TYPE_CHECKING

import streamlit as st
from chosen import BY_FINGERPRINT, head_of, labels, literal, model, scores, told
from downloads import chart, panel, table
from maps import head_map

from workbench import views
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.sequences import CLASSES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.models import HFModel
    from workbench.successor import InClass, ModTen
    from workbench.weights import Weights

ONE_HEAD = "app_pages/one_head.py"
PROBE = "successor"
PICKED = "picked_successor"
USUAL = "ordinals"
MEASURES = {
    "tokens": "tokens that have a successor",
    "score": "the head writes the successor most, within the class",
    "itself": "it writes the token itself most",
    "predecessor": "it writes the word before most",
    "whole_vocabulary": "it writes the successor most of all tokens there are",
    "without_mlp0": "the score of W_U·OV·W_E, without the first MLP: a negative control",
    "raw": "the score without any norm",
    "shuffled": "the score with successors shuffled: the null",
    "chance": "what a random choice within the class gets",
}


def within(found: HeadLabels, head: Head) -> None:
    """The in-class matrix of the head, token by token."""
    name = st.selectbox("Class of words", list(CLASSES), list(CLASSES).index(USUAL), key="class", bind="query-params")
    raw = st.toggle("Without any norm", key="raw", bind="query-params", help="Raw embeddings into the first MLP, its output into the head, the head's out.")
    loaded = model(found)
    with told(), st.spinner("Multiplying weights"):
        seen, figure = _in_class(loaded, head, name, raw)
    if seen.words.restricted:
        st.caption(_sentence(seen.words.restricted))
    if figure is None:
        st.info(f"No word of {name} is one token for the tokenizer of {literal(found.card.name)}.")
        return
    alt = f"Matrix of {head}: tokens of {name} that it looks at, and how much it writes each of them"
    chart(figure, f"successor-{head}-{name.replace(' ', '-')}", alt, key="class_matrix")
    st.caption(
        "From weights alone: the logits that the head adds for each token of the class when it looks wholly at one of them (W_U·OV·MLP0(W_E)), in standard "
        "deviations of the row. Words stand in their order: a successor head has a blue line to the right of the diagonal, a copying head on it."
    )
    rows = views.class_table(seen)
    st.dataframe(rows, hide_index=True, height=min(38 * (len(rows) + 1), 420))
    table(rows, f"successor-{head}-tokens")


def classes(found: HeadLabels, head: Head) -> None:
    """The head class by class, with the controls."""
    loaded = model(found)
    with told(), st.spinner("Multiplying weights, for some seconds"):
        rows = _by_class(loaded, head)
    numbers = {name: st.column_config.NumberColumn(format="%.0f" if name == "tokens" else "%.3f", help=words) for name, words in MEASURES.items()}
    st.dataframe(rows.drop(columns="held_out"), hide_index=True, column_config=numbers)
    st.caption(
        "Shares, 0–1, of the tokens that have a successor. " + "; ".join(f"**{name}**: {words}" for name, words in MEASURES.items() if name != "tokens") + "."
    )
    held_out = ", ".join(rows[rows["held_out"]]["class"])
    st.caption(f"The score of all heads counts every class by its tokens (all but *){f'; {held_out} are held out' if held_out else ''}.")
    table(rows, f"successor-{head}-classes")


def features(found: HeadLabels, _head: Head) -> None:
    """Does the model keep a number's last digit apart? Modal features of a dictionary, and a linear probe."""
    from workbench.successor.mod_ten import KINDS

    kind = st.segmented_control("Dictionary", list(KINDS), default=next(iter(KINDS)), required=True, key="dictionary", bind="query-params")
    st.caption(
        "NMF takes about a second; the sparse autoencoder (512 latents, 800 steps) about half a minute on two cores. They are of the model, not of a head."
    )
    loaded = model(found)
    with told(), st.spinner("Learning features"):
        made = _mod_ten(loaded, kind)
    row = made.row
    st.markdown(
        f"**{row['modal coverage']:.1%} of the tokens** have the modal feature of their residue as their strongest (58.5% in the paper; "
        f"{row['by chance']:.1%} with residues dealt to the wrong tokens). The cosine of features and a linear probe is **{row['cosine with probe']:.2f}** "
        "(0.71 in the paper)."
    )
    alt = "Heat map: residues of numbers, and how active the modal feature of each residue is"
    chart(views.residue_figure(made.active_RF, made.modal.feature.tolist()), "mod-ten-features", alt)
    st.caption("Modal features were chosen by these very tokens, so that some diagonal shows in any model: compare coverage with chance.")
    st.markdown("**A linear probe for the number modulo ten, trained on all classes but the one shown**")
    chart(views.transfer_figure(made.left_out), "mod-ten-left-out", "Bars: accuracy of a linear probe in each class that it was not trained on", made.left_out)
    st.markdown("**The same, trained on numbers in digits alone**")
    chart(views.transfer_figure(made.transfer), "mod-ten-transfer", "Bars: accuracy in each class of a linear probe trained on numbers", made.transfer)
    if made.found.restricted:
        st.caption(_sentence(made.found.restricted))
    st.caption(f"{len(made.found.texts)} tokens. Width and sparsity of the paper's autoencoder, and its reading of modal, are not known: reconstructions.")


def chosen_head(found: HeadLabels, stands: views.Standing) -> Head:
    """The map of the score, the head to look at, its score and rank."""
    if picked := st.session_state.pop(PICKED, None):
        st.session_state["head"] = picked
    every = [str(head) for head in found.labels]
    head = head_of(st.selectbox("Head", every, every.index(str(stands.strongest)), key="head", bind="query-params"), found)
    st.markdown(f"{head} scores **{stands.score(head):.3f}**, rank **{stands.rank(head)}** of {len(every)}.")
    if picked := head_map(views.head_canvas(found, stands.panel, head), key="successor_map"):
        st.session_state[PICKED] = picked
        st.rerun()
    st.caption(f"{_question()} A click on the map chooses the head.")
    panel(found, stands.panel, f"{found.card.name}-{PROBE}")
    st.page_link(ONE_HEAD, label=f"Open {head}", icon=":material/open_in_new:", query_params={"head": str(head)})
    return head


def standing(found: HeadLabels) -> views.Standing:
    """How all heads stand: by the labels' score, or by the weights where the labels have none."""
    if PROBE in found.scores:
        behind = scores()
        null_LH = behind.matrix(PROBE, "null") if behind is not None and PROBE in behind.probes else None
        return views.standing(found, found.scores[PROBE], null_LH)
    loaded = model(found)
    with told(), st.spinner("Multiplying weights"):
        score_LH = _scored(loaded)
    st.caption("The labels hold no successor score; this one comes from the weights just now.")
    return views.standing(found, score_LH)


def _question() -> str:
    """What the probe asks of a head."""
    from workbench.probes import PROBES

    return PROBES[PROBE].question


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _weights(loaded: "HFModel") -> "Weights":
    from workbench.weights import Weights

    return Weights(loaded.weights, loaded.shape, None, loaded.tokenizer)


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _scored(loaded: "HFModel") -> "np.ndarray":
    from workbench.successor import every_head

    with loaded.lock:
        return every_head(_weights(loaded))


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _in_class(loaded: "HFModel", head: Head, name: str, raw: bool) -> "tuple[InClass, go.Figure | None]":
    from workbench.successor import in_class
    from workbench.token_circuits import RAW, Norms

    with loaded.lock:
        seen = in_class(_weights(loaded), head, name, norms=RAW if raw else Norms())
    return seen, views.class_figure(seen.logits_TC, seen.texts) if seen.texts else None


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _by_class(loaded: "HFModel", head: Head) -> "pd.DataFrame":
    from workbench.successor import head_table

    with loaded.lock:
        return head_table(_weights(loaded), head)


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=BY_FINGERPRINT)
def _mod_ten(loaded: "HFModel", kind: str) -> "ModTen":
    from workbench.successor import mod_ten

    with loaded.lock:
        return mod_ten(_weights(loaded), kind)


SHOWN = {"Within a class": within, "Class by class": classes, "Numbers modulo ten": features}

found = labels()
st.title("Successor heads")
stands = standing(found)
st.markdown(stands.verdict.replace(found.card.name, literal(found.card.name)))
left, right = st.columns([2, 3], gap="large")
with left:
    head = chosen_head(found, stands)
with right:
    part = st.segmented_control(
        "View", SHOWN, default=next(iter(SHOWN)), required=True, key="part", bind="query-params", label_visibility="collapsed", wrap=True
    )
    SHOWN[part](found, head)
