"""Where does a head look on a long prompt? Its whole map, pooled into blocks, and any part of it down to single cells."""

from functools import partial
from pathlib import Path

import addresses
import downloads
import streamlit as st
from background import ALIVE, addressed, follow, placed, start
from chosen import BUNDLED, UPLOAD, head_of, labels, literal, model_name, runs, sketch, told
from maps import block_map

from workbench import jobs, kept_maps, views
from workbench.heads import Head
from workbench.kept_maps import Asked, KeptMap
from workbench.labels import HeadLabels
from workbench.maps import AttentionMap
from workbench.sink_rules import SINK_RULES

PAGE = "app_pages/long_context.py"
EXAMPLE = BUNDLED.with_name("long_map_L17H3.npz")
EXAMPLE_HEAD = "L17H3"
PROMPTS = ("Needle test", "Own text")
MOST_TOKENS = 131_072
TEXT_MB = 2
MAP_PIXELS, BESIDE_PIXELS = 780, 390
TEXT, MAP = "text.txt", "map.npz"
STRANGE = ": what a head does there says little about how it works."


def prompt(found: HeadLabels, head: Head) -> tuple[Asked, str]:
    """What is asked for, as the controls and the address say it, and the text of one's own if that is the prompt and is there."""
    kind = st.segmented_control("The prompt is a", PROMPTS, default=PROMPTS[0], required=True, key="source", bind="query-params")
    length = int(st.number_input("Tokens, about", 16, MOST_TOKENS, 8192, 1024, key="length", bind="query-params"))
    with told():
        if kind == PROMPTS[0]:
            depth = float(st.slider("Depth of the needle: 0 at the start, 1 at the end", 0.0, 1.0, 0.5, 0.05, key="depth", bind="query-params"))
            seed = int(st.number_input("Seed of the needle and of its place in the haystack", 0, 9999, 0, key="place", bind="query-params"))
            st.query_params.pop("file", None)
            return Asked(found.card.fingerprint, head, length, depth, seed), ""
        upload = st.file_uploader("A text in UTF-8, of which the first tokens are used", ["txt", "md"], key="long_text", max_upload_size=TEXT_MB)
        text = kept_maps.text_of(upload.getvalue(), upload.name) if upload is not None else ""
        if text:
            st.query_params["file"] = kept_maps.text_name(text)
        return Asked(found.card.fingerprint, head, length, text=st.query_params.get("file", "")[:16]), text


def question(found: HeadLabels, asked: Asked, text: str) -> tuple[list[str], dict[str, bytes]]:
    """The arguments of `workbench` that ask for the map, and the file that they name."""
    prompted = ["--text", TEXT] if asked.text else ["--depth", str(asked.depth), "--seed", str(asked.seed)]
    arguments = ["long-map", "--model", placed(model_name(found)), "--head", str(asked.head), "--length", str(asked.length), *prompted, "--out", MAP]
    return arguments, {TEXT: text.encode()} if asked.text else {}


def computing(found: HeadLabels, asked: Asked, text: str, job: jobs.Job | None, why: str) -> None:
    """A map that is not there yet, and why: what it will cost, and, once that was agreed to, how far it is."""
    if job is not None and not follow(job) and job.state in ALIVE:
        return
    if job is not None and job.state == "done":
        st.warning("Its map has been computed, but cannot be read; it can be computed again.")
        job.remove()
    if asked.text and not text:
        st.info(f"The text {literal(asked.text)} is not here; upload it again under Prompt, or choose the needle test.")
        return
    with told(), st.spinner("Estimating"):
        tokens, warning = _beforehand(found, asked, text)
        cost = _cost(found, tokens, asked.head.layer)
    st.info(f"{why} The model has to read the prompt, up to layer {asked.head.layer}: {cost}.")
    if warning:
        st.warning(f"{warning}{STRANGE}")
    arguments, files = question(found, asked, text)
    started = start("Compute the map", arguments, title=f"Map of {asked.head} of {found.card.name}, {tokens:,} tokens", page=PAGE, files=files)
    if started is not None:
        if asked.text:  # who has not the text finds the map by its job
            st.query_params["job"] = started.name
        st.rerun()


def shown(name: str, kept: KeptMap) -> AttentionMap:
    """The part of the map in view, with what is marked, and what it is."""
    zoom = st.query_params.get("zoom", "")
    view = kept_maps.view_of(zoom, kept.length)
    if zoom and view is None:
        st.warning(f"The zoom of the address, `{addresses.plain(zoom)}`, is no part of this map of {kept.length:,} tokens: all of it is shown.")
    whole = (0, kept.length), (0, kept.length)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        marked = st.pills("Mark", list(views.MARKS), selection_mode="multi", default=list(views.MARKS), key="marks", bind="query-params", wrap=True)
        rule = st.selectbox("Sinks by the rule", list(SINK_RULES), index=1, key="sink_rule", bind="query-params", width=200)
    part = kept.part(*(view or ()))
    message = views.block_canvas(kept, part, view, marked=marked, sinks=kept.sinks(SINK_RULES[rule]), rule=rule)
    moved = block_map(message, key="long_map")
    if moved is not None and (kept_maps.view_of(moved, kept.length) or whole) != (view or whole):
        st.query_params["zoom"] = moved
        st.rerun()
    downloads.drawn(partial(views.attention_figure, part, name), f"{name}-{kept.head}-map")
    return part


def strongest(name: str, kept: KeptMap, part: AttentionMap) -> None:
    """The part in view as a table."""
    rows = kept_maps.strongest(kept, part)
    st.markdown("**The strongest cells in view**")
    columns = {"attention": st.column_config.NumberColumn(format="%.4f", width=82)} | dict.fromkeys(("row", "key"), st.column_config.TextColumn(width=148))
    st.dataframe(rows, hide_index=True, column_config=columns, column_order=list(columns))
    st.caption(f"Attention, 0–1{'' if part.exact else '; of a block, the largest that it has'}. Tokens count from 0.")
    downloads.table(rows, f"{name}-{kept.head}-strongest")


def told_of(kept: KeptMap) -> None:
    """What the map was made from, in words."""
    facts, rule = kept.facts, st.session_state["sink_rule"]
    if warning := facts.get("warning"):
        st.warning(f"{warning}{STRANGE}")
    if "needle" in facts:
        share = f" The rows that give the answer put {facts['needle_share']:.3f} of their attention on it (mean)." if "needle_share" in facts else ""
        st.caption(f"{kept.length:,} tokens with a needle at depth {facts['depth_found']}: “{facts['answer']}”{share}")
    else:
        st.caption(f"The first {kept.length:,} tokens of the text's {facts['text_tokens']:,}.")
    st.caption(f"Sinks by {rule}: {SINK_RULES[rule].source}. The first token counts if it receives more than {kept_maps.FIRST_TOKEN}.")
    made = f"{facts['model']}, {facts['dtype']} on {facts['device']}, workbench {facts['versions']['workbench']} (code {facts['versions']['code']})"
    st.caption(f"Made with {made}{'; ' + facts['kept'] if 'kept' in facts else ''}.")


def _loaded(path: Path) -> KeptMap | None:
    try:
        return _kept(str(path), path.stat().st_mtime_ns)
    except OSError:
        return None


@st.cache_resource(max_entries=4, show_spinner=False)
def _kept(path: str, changed: int) -> KeptMap | None:
    return KeptMap.load(path)


@st.cache_data(max_entries=16, show_spinner=False)
def _beforehand(_found: HeadLabels, asked: Asked, text: str) -> tuple[int, str]:
    from workbench.long_maps import beforehand

    return beforehand(sketch(_found), asked, text)


def _cost(found: HeadLabels, tokens: int, layer: int) -> str:
    from workbench.plan import of_pass

    return of_pass(sketch(found), tokens, layer).words


found = labels()
st.title("Long context")
every = [str(one) for one in found.labels]
usual = views.panel(found).marked
first = EXAMPLE_HEAD if EXAMPLE_HEAD in every and UPLOAD not in st.session_state else str(usual[0]) if usual else every[0]
left, right = st.columns([1, 2], vertical_alignment="bottom")
head = head_of(left.selectbox("Head", every, index=every.index(first), key="head", bind="query-params"), found)
with right.popover("Prompt", width="stretch"):
    asked, text = prompt(found, head)
names = ", ".join(found.labels[head]) or "no label"
of = f"text {literal(asked.text)}" if asked.text else f"a needle test, depth {asked.depth:g}, seed {asked.seed}"
st.caption(f"{head}: {literal(names)}. About {asked.length:,} tokens of {of}. Rows are the tokens that look; keys, to the right, those that they look at.")
if asked.text or st.session_state["source"] == PROMPTS[0]:
    job = addressed() if asked.text and not text else jobs.same(runs(), *question(found, asked, text))
    made = [job.folder / MAP] if job is not None else []
    kept = kept_maps.found(asked, [*made, EXAMPLE], _loaded)
    if kept is not None:
        with st.container(horizontal=True, gap="large"):
            with st.container(width=MAP_PIXELS):
                part = shown(found.card.name, kept)
            with st.container(width=BESIDE_PIXELS):
                if not (kept.zooms or part.queries == part.keys == (0, kept.length)):
                    computing(found, asked, text, job, "The example that comes with the workbench has no smaller cells than these.")
                told_of(kept)
                strongest(found.card.name, kept, part)
    else:
        computing(found, asked, text, job, "This map is not there yet.")
else:
    st.info("Upload a text under Prompt.")
