"""What was computed when, and what is being computed? Jobs in the background, and the runs on disk: what was asked, and how much of it is done."""

import os

import addresses
import streamlit as st
from background import ALIVE, follow, forget, placed, start
from chosen import literal, runs, sketched, told

from workbench import jobs
from workbench.runs import overview, remove

PAGE = "app_pages/runs.py"
FILES = {"labels (heads.json)": ("label", "heads.json"), "scores with nulls and intervals (scores.parquet)": ("score", "scores.parquet")}
TIMES = {"asked": "asked, UTC", "last": "last part, UTC"}


def gone(key: str, there: list[str], kind: str) -> None:
    """Say that what the address, or the page before, names is not there any more."""
    wanted = st.session_state.get(key) or st.query_params.get(key)
    if wanted and wanted not in there:
        st.warning(f"{kind} {literal(wanted)} is not there; it may have been removed.")
        addresses.heard(key)


def background() -> None:
    """Every job, and one of them in full."""
    rows = jobs.overview(runs())
    gone("job", list(rows["job"]), "Job")
    if rows.empty:
        st.info("Nothing was computed in the background yet. Pages offer it where something takes longer, and the models below can be labelled.")
        return
    columns = {
        "asked": st.column_config.DatetimeColumn(TIMES["asked"], format="YYYY-MM-DD HH:mm"),
        "share": st.column_config.ProgressColumn("done", format="percent"),
        "seconds": st.column_config.NumberColumn("took, s", format="%.0f"),
    }
    st.dataframe(rows, column_order=["title", "state", "share", "asked", "seconds", "job"], column_config=columns, hide_index=True, placeholder="–")
    name = picked(dict(zip(rows["job"], rows["title"], strict=True)))
    with told():
        one_job(jobs.named(runs(), name))


def picked(titles: dict[str, str]) -> str:
    """The job to show, the newest unless the address names one; the address follows."""
    names, wanted = list(titles), st.query_params.get("job", "")
    usual = names.index(wanted) if wanted in names else 0
    name = st.selectbox("Job", names, index=usual, format_func=lambda job: f"{titles[job] or 'cannot be read'} ({job[:6]})")
    if name != wanted and (wanted in names or name != names[0]):
        st.query_params["job"] = name
    return name


def one_job(job: jobs.Job) -> None:
    """What was asked, how far it is, what it said, its files; it can be cancelled, opened and removed."""
    asked = job.asked
    if follow(job):
        st.success(f"This job {jobs.STATES['done']}.")
    st.code(job.command, language="sh", wrap_lines=True)
    buttons = st.container(horizontal=True)
    page = asked["shown"].get("page")
    if page and page != PAGE and buttons.button("Open its page", key="open"):
        st.switch_page(page, query_params={**asked["shown"].get("query", {}), "job": job.name})
    if buttons.button("Remove", key="remove", help="Deletes the job and its files; a job that runs is cancelled first. The runs below stay."):
        job.remove()
        forget()
        st.rerun()
    if job.state not in (*ALIVE, "done") and buttons.button("Start again", key="again", help="What is finished of it is not computed again."):
        st.query_params["job"] = jobs.again(runs(), job).name
        st.rerun()
    if said := job.log():
        with st.expander("Log", expanded=job.state == "failed"):
            st.code(said, language=None, wrap_lines=True)
    if job.state == "done":
        files = st.container(horizontal=True)
        for path in job.results:
            files.download_button(path.name, path.read_bytes, path.name, on_click="ignore", key=path.name)
    with st.expander("What made it"):
        st.json({name: asked[name] for name in ("versions", "files") if name in asked})


def label() -> None:
    """Let the heads of a model be labelled, or scored."""
    from workbench.sources import CATALOGUE

    started = os.environ.get("WORKBENCH_APP_MODEL")
    model = st.selectbox("Model", [*([started] if started else []), *(name for name in CATALOGUE if name != started)], key="model")
    kind = st.selectbox("What", list(FILES), key="what")
    command, file = FILES[kind]
    seed = st.number_input("Seed", 0, value=0, key="seed")
    arguments = [command, "--model", placed(model), "--seed", str(seed), "--out", file]
    found = jobs.same(runs(), arguments)
    if found is not None and found.state in (*ALIVE, "done"):
        st.caption(f"This was asked before; it is job {found.name} above.")
        return
    with st.spinner("Estimating"), told():
        from workbench import plan

        st.caption(f"It takes {plan.of_probes(sketched(model)).words}.")
    if made := start("Start", arguments, title=f"{kind.capitalize()} of {model}, seed {seed}", page=PAGE):
        st.query_params["job"] = made.name
        st.rerun()


def kept() -> None:
    """The runs on disk."""
    rows = overview(runs())
    if deleted := st.session_state.pop("deleted", ""):
        st.success(f"Run {deleted} was deleted.")
        st.session_state["run"] = next(iter(rows["run"]), None)
    else:
        gone("run", list(rows["run"]), "Run")
    if rows.empty:
        st.info(
            f"There are no runs in the folder {runs().name}. `workbench label` and `workbench score` keep theirs there; `WORKBENCH_RUNS` names another folder."
        )
        return
    times = {"last": st.column_config.DatetimeColumn(TIMES["last"], format="YYYY-MM-DD HH:mm"), "again": st.column_config.CheckboxColumn("found again")}
    st.dataframe(rows, column_order=[name for name in rows if name != "question"], hide_index=True, column_config=times)
    st.caption("A run is one question about some probes; it is found again, and not computed again, while code and versions stay the same.")
    chosen = str(st.selectbox("Run", list(rows["run"]), key="run", bind="query-params"))
    row = rows[rows["run"] == chosen].iloc[0]
    if row["problem"]:
        st.error(f"Run {chosen}: {row['problem']}.")
    else:
        st.json(row["question"], expanded=1)
    with st.popover("Remove this run"):
        st.markdown(f"What run {chosen} has finished is deleted for good. Asked again, it is computed again.")
        if st.button("Delete it", key="delete", type="primary"):
            with told():
                remove(runs(), chosen)
            st.session_state["deleted"] = chosen
            st.rerun()


st.title("Runs")
st.subheader("In the background")
background()
place = st.expander("Label the heads of a model")
st.subheader("Kept on disk")
kept()
with place:
    label()
