"""Does the model still find a needle in a long text without some of its heads? Recall over length × depth, beside other heads of the same layers."""

from typing import TYPE_CHECKING, Any

import downloads
import streamlit as st
from background import ALIVE, addressed, follow, forget, placed, start
from chosen import BUNDLED, labels, literal, model_name, runs, sentence, sketch, told

from workbench import jobs, views
from workbench.errors import InputError
from workbench.formats import Export, as_bytes
from workbench.labels import HeadLabels
from workbench.recall import MEASURES, VARIANTS, Recall, of_benchmark

if TYPE_CHECKING:
    from workbench.recall.measuring import Setting

PAGE = "app_pages/needle_test.py"
REPORT = BUNDLED.with_name("needle_ablation.csv")
KINDS = {"zero": "write nothing", "mean": "write their mean on natural text", "uniform": "look everywhere alike while they answer"}
JUDGED = {"new words": "recall", "all words": "word_recall"}
MOST = 100
BOUND: dict[str, Any] = {"bind": "query-params", "on_change": forget}  # how a setting stands in the address; another one asks another question


def asked(found: HeadLabels) -> dict[str, str]:
    """What is to be measured, as options of `workbench needle`."""
    first, second, third = st.columns(3, gap="medium")
    with first:
        ablate = st.text_input("Heads to take away", "10", key="ablate", **BOUND, help="So many of the strongest, a label, or heads such as L17H3,L18H6.")
        probes = list(found.scores)
        probe = st.selectbox("Strongest by", probes, index=probes.index("retrieval") if "retrieval" in probes else 0, key="by", **BOUND)
        kind = st.selectbox("Taken away how", list(KINDS), key="kind", **BOUND, help="; ".join(f"{name}: they {does}" for name, does in KINDS.items()))
    with second:
        lengths = st.text_input("Lengths, tokens", "200,400,800", key="lengths", **BOUND)
        depths = st.text_input("Depths, 0 (start) to 1 (end)", "0.1,0.5,0.9", key="depths", **BOUND)
        cell = st.number_input("Needles for each length and depth", 1, MOST, 2, key="needles", **BOUND)
    with third:
        draws = st.number_input("Draws of as many other heads", 0, MOST, 2, key="draws", **BOUND)
        seed = st.number_input("Seed of the tests", 0, value=1, key="seed", **BOUND)
    counts = {"per-cell": str(cell), "draws": str(draws), "seed": str(seed)}
    return {"ablate": ablate.strip(), "by": str(probe), "kind": str(kind), "lengths": lengths.strip(), "depths": depths.strip(), **counts}


def setting(options: dict[str, str]) -> "Setting":
    """The same as the package has it. Raises `InputError`."""
    from workbench.cli.needle import setting_of

    cell, draws, seed = (int(options[name]) for name in ("per-cell", "draws", "seed"))
    return setting_of(options["lengths"], options["depths"], kind=options["kind"], per_cell=cell, draws=draws, seed=seed)


def question(found: HeadLabels, options: dict[str, str]) -> tuple[list[str], dict[str, bytes]]:
    """The arguments of `workbench` that ask it, and the file that they name."""
    chosen = [part for option, value in options.items() for part in (f"--{option}", value)]
    _, content = as_bytes(found, "workbench", Export())
    return ["needle", "heads.json", "--model", placed(model_name(found)), *chosen, "--out", "needle.csv"], {"heads.json": content}


def offer(found: HeadLabels, options: dict[str, str], label: str) -> None:
    """Which heads these are, what it takes, and the button that starts it; or why it cannot be asked."""
    from workbench import plan
    from workbench.recall.measuring import chosen

    try:
        heads = chosen(found, options["ablate"], options["by"])
        cost = plan.of_recall(sketch(found), setting(options))
    except InputError as error:
        st.error(sentence(error))
        return
    names = " ".join(map(str, heads))
    st.caption(f"{len(heads)} head{'s' * (len(heads) > 1)}: {names if len(names) <= 120 else f'{names[:120]} …'}. It takes {cost.words}.")
    taken = f"the {len(heads)} strongest by {options['by']}" if options["ablate"].isdecimal() else options["ablate"]
    title = f"{found.card.name} without {taken} ({options['kind']}), {options['lengths']} tokens"
    arguments, files = question(found, options)
    if job := start(label, arguments, title=f"Needle test: {title}", page=PAGE, files=files):
        st.query_params["job"] = job.name
        st.rerun()


def shown(found: Recall, name: str) -> None:
    """The verdict, the totals, and the map of each variant."""
    measure = JUDGED[st.segmented_control("Recall of", list(JUDGED), default="new words", required=True, key="measure", bind="query-params")]
    st.markdown(found.verdict(measure))
    downloads.chart(views.recall_totals(found, measure), f"{name}-totals", "Recall of each variant over all tests, with 95% intervals", found.totals(measure))
    st.caption("Bars: 95% intervals over the tests (bootstrap), rather too narrow, as needles come several times; strokes: single draws of other heads.")
    for column, variant in zip(st.columns(3), VARIANTS, strict=True):
        if (found.tests["variant"] == variant).any():
            with column:
                alt = f"Map of recall by length and depth, {VARIANTS[variant]}"
                downloads.chart(views.recall_map(found, variant, measure), f"{name}-{variant}", alt, key=f"map-{variant}")
    st.caption(f"Recall: {MEASURES[measure]}. Each cell is the mean over its needles (and draws); dark 0, bright 1. Depth 0 is the start of the text.")
    with st.expander("Every answer"):
        st.dataframe(found.tests, hide_index=True, height=400)
        downloads.table(found.tests, f"{name}-answers")
    with st.expander("What made it"):
        st.json(dict(found.provenance), expanded=1)


def result(job: jobs.Job) -> None:
    """What a job is about, and what came out of it, or how far it is."""
    with told():
        st.subheader(job.asked["title"])
        if follow(job):
            shown(Recall.load(job.folder / "needle.csv"), "needle-test")


def report(found: HeadLabels, kind: str) -> None:
    """What comes with the dashboard, if it is of this model."""
    with told():
        made = of_benchmark(REPORT, kind)
    if not found.card.fingerprint or found.card.fingerprint not in made.provenance["report"]:
        st.info(f"Nothing has been computed for {literal(found.card.name)} with these settings yet.")
        return
    st.subheader("Measured before")
    st.caption(f"The report that comes with the dashboard: {made.provenance['report']} Heads that are taken away {KINDS[kind]}.")
    shown(made, "report")


found = labels()
st.title("Needle test")
st.caption(
    "A sentence is hidden in a long text, and the model is asked for it: with all heads, without the chosen ones, and without as many others of the same "
    "layers, drawn at random. Every test is the same for all three."
)
if not found.scores:
    st.info(f"The labels of {literal(found.card.name)} hold no scores, so that there are no strongest heads.")
    st.stop()
options = asked(found)
place = st.container()
mine = jobs.same(runs(), *question(found, options))
job = addressed() or mine
if job is None:
    report(found, options["kind"])
else:
    result(job)
if mine is None or mine.state not in (*ALIVE, "done"):
    with place, st.spinner("Estimating"):
        offer(found, options, "Start" if mine is None else "Start again")
