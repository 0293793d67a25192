"""Does the page of runs show what is computed in the background, stop and remove it, start to label a model, and say what is gone?"""

import shutil
import sys
import time

import numpy as np
import pytest
from dashboard import opened, words

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

from workbench import jobs
from workbench.jobs import asking
from workbench.runs import Part, Run

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
PAGE = "app_pages/runs.py"
PROGRAM = """
import sys, time
from pathlib import Path
from workbench import jobs
with jobs.running():
    print("│ something said │\\n╰────────────────╯", file=sys.stderr, flush=True)
    jobs.report("beginning", 1, 4)
    jobs.report("measuring", 3, 4)
    while not Path("../go").exists():
        time.sleep(0.02)
    Path("heads.json").write_text("{}")
    sys.exit(2 if "wrong" in sys.argv else 0)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A runs folder whose jobs are a small program that ends when there is a file `jobs/go`."""
    program, folder = tmp_path / "program.py", tmp_path / "runs"
    program.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(asking, "PROGRAM", (sys.executable, str(program)))
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder))
    yield folder
    for left in jobs.find(folder):
        left.cancel()


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def asked(root, *arguments, **how):
    job = jobs.ask(root, arguments, title=f"a job of {arguments[0]}", **how)
    until(lambda: job.state not in ("queued", "running") or (job.progress and job.progress.done))
    return job


def labelled(app):
    return [button.label for button in (*app.button, *app.download_button)]


def pressed(app, label):
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception
    return app


def test_where_nothing_was_computed_it_says_so(root):
    app = opened(PAGE)
    assert "Nothing was computed in the background yet" in words(app)
    assert "There are no runs in the folder runs" in words(app)
    assert labelled(app) == ["Start"]


def test_a_job_is_shown_cancelled_and_removed(root):
    job = asked(root, "first", shown={"page": "app_pages/needle_test.py"})
    app = opened(PAGE)
    table = app.dataframe[0].value
    assert (table["title"][0], table["state"][0], table["share"][0]) == ("a job of first", "running", 0.75)
    assert "measuring: 3 of 4; about" in app.get("progress")[0].proto.text
    assert app.code[0].value == "workbench first"
    assert "something said" in app.code[1].value
    assert labelled(app)[:3] == ["Cancel", "Open its page", "Remove"]
    pressed(app, "Cancel")
    assert job.state == "cancelled"
    assert "This job was cancelled" in words(app)
    assert app.dataframe[0].value["state"][0] == "cancelled"
    app.query_params["job"] = job.name
    pressed(app, "Remove")
    assert not job.folder.exists()
    assert "job" not in app.query_params
    assert "may have been removed" not in words(app)
    assert "Nothing was computed in the background yet" in words(app)


def test_it_is_found_again_by_who_starts_afresh_and_its_files_can_be_had(root):
    first, second = asked(root, "first"), None
    (root / "jobs" / "go").touch()
    until(lambda: first.state == "done")
    second = asked(root, "wrong")
    app = opened(PAGE, job=first.name)
    assert list(app.dataframe[0].value["state"]) == ["failed", "done"]
    assert "This job is finished." in [message.value for message in app.success]
    assert "heads.json" in labelled(app)
    assert "Open its page" not in labelled(app)
    app = opened(PAGE, job=second.name)
    assert app.error[0].value == "This job ended with an error. The last it said: something said"
    assert "heads.json" not in labelled(app)


def test_a_job_that_is_removed_while_it_is_shown_is_a_sentence(root):
    first, second = asked(root, "first"), jobs.ask(root, ["second"], title="a job that waits")
    app = opened(PAGE, job=second.name)
    assert "This job waits for its turn" in app.get("progress")[0].proto.text
    second.remove()
    app.run()
    assert not app.exception
    assert f"Job {second.name} is not there; it may have been removed." in words(app)
    assert app.code[0].value == "workbench first"
    (first.folder / "job.json").write_text("{", encoding="utf-8")
    assert f"Job {first.name} cannot be read" in app.run().error[0].value
    assert "Job 0123456789abcdef is not there" in words(opened(PAGE, job="0123456789abcdef"))


def test_a_run_that_is_removed_while_it_is_shown_is_a_sentence(root):
    for seed in (0, 1):
        run = Run(root, {"model": "abc", "probes": ["induction"], "prompts": ["1"], "seed": seed})
        run.save("part-0000", Part({"induction": np.zeros((1, 2, 4))}, {"induction": np.ones(1, bool)}, ()))
    app = opened(PAGE, run=run.fingerprint)
    assert app.selectbox(key="run").value == run.fingerprint
    assert "may have been removed" not in words(app)
    shutil.rmtree(run.folder)
    app.run()
    assert not app.exception
    assert f"Run {run.fingerprint} is not there; it may have been removed." in words(app)
    assert app.selectbox(key="run").value != run.fingerprint


def test_a_run_is_deleted_once_that_is_confirmed(root):
    made = []
    for seed in (0, 1):
        made.append(Run(root, {"model": "abc", "probes": ["induction"], "prompts": ["1"], "seed": seed}))
        made[-1].save("part-0000", Part({"induction": np.zeros((1, 2, 4))}, {"induction": np.ones(1, bool)}, ()))
    app = opened(PAGE, run=made[0].fingerprint)
    assert f"What run {made[0].fingerprint} has finished is deleted for good." in words(app)
    assert made[0].folder.exists()
    app.button(key="delete").click().run()
    assert not app.exception
    assert not made[0].folder.exists()
    assert made[1].load("part-0000") is not None
    assert [message.value for message in app.success] == [f"Run {made[0].fingerprint} was deleted."]
    assert made[0].fingerprint not in str(app.query_params.get("run"))  # the address does not ask for it any more
    assert app.selectbox(key="run").value == made[1].fingerprint
    assert "may have been removed" not in words(app)
    shutil.rmtree(made[1].folder)
    assert not app.run().exception
    assert "There are no runs in the folder runs" in words(app)


def test_a_job_that_failed_is_started_again_where_it_is_listed(root):
    job = asked(root, "wrong", files={"given.json": b"mine"}, shown={"page": "app_pages/needle_test.py"})
    app = opened(PAGE)
    assert "Start again" not in labelled(app)
    (root / "jobs" / "go").touch()
    until(lambda: job.state == "failed")
    (root / "jobs" / "go").unlink()
    app = pressed(opened(PAGE), "Start again")
    until(lambda: job.state == "running")
    assert [one.name for one in jobs.find(root)] == [job.name]
    assert (job.folder / "given.json").read_bytes() == b"mine"
    assert job.asked["shown"] == {"page": "app_pages/needle_test.py"}
    assert app.query_params["job"] in (job.name, [job.name])
    assert "Start again" not in labelled(opened(PAGE))


def test_a_model_can_be_labelled_in_the_background(root):
    app = opened(PAGE)
    assert "It takes about" in words(app)
    app.number_input(key="seed").set_value(3).run()
    pressed(app, "Start")
    (job,) = jobs.find(root)
    assert job.asked["arguments"] == ["label", "--model", "smollm2-135m", "--seed", "3", "--out", "heads.json"]
    assert app.query_params["job"] in (job.name, [job.name])  # whoever gets the address sees this job, however many are asked for later
    assert f"This was asked before; it is job {job.name} above." in words(app)
    app.selectbox(key="what").select("scores with nulls and intervals (scores.parquet)").run()
    pressed(app, "Start")
    assert jobs.find(root)[0].asked["arguments"][0] == "score"
    assert jobs.find(root)[0].state == "queued"
