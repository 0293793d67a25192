"""Does the page of needle tests show what was measured before, start a test in the background, follow it, and find it again?"""

import sys
import time

import chosen
import numpy as np
import pytest
from dashboard import opened, words

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

from workbench import jobs
from workbench.heads import Head, ModelCard, Shape
from workbench.jobs import asking
from workbench.labels import HeadLabels
from workbench.recall import Recall
from workbench.rules import RULES

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
PAGE = "app_pages/needle_test.py"
PROGRAM = """
import sys, time
from pathlib import Path
import pandas as pd
from workbench import jobs
from workbench.recall import Recall
with jobs.running():
    jobs.report("without the chosen heads", 1, 4)
    while not Path("../go").exists():
        time.sleep(0.02)
    row = {"variant": "full", "draw": 0, "heads": "", "test": 0, "needle": "n", "length": 200, "depth": 0.5}
    row |= {"recall": 1.0, "word_recall": 0.5, "response": "so"}
    tests = pd.DataFrame([row, {**row, "variant": "without", "heads": "L0H1 L0H2", "recall": 0.25}])
    Recall(tests, {"name": "m"}).save(Path("needle.csv"))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A program that runs in place of `workbench needle`, and ends when there is a file `jobs/go`."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(asking, "PROGRAM", (sys.executable, str(program)))


def until(condition, patience=60):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def maps(app):
    return [chart for chart in app.get("plotly_chart") if '"zmax":1' in chart.proto.spec]


def labelled(app):
    return [button.label for button in app.button]


def pressed(app, label):
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception
    return app


def test_it_opens_on_the_report_without_loading_a_model(root, monkeypatch):
    monkeypatch.setattr("workbench.models.load", lambda name: pytest.fail("a model was loaded"))
    app = opened(PAGE)
    assert app.title[0].value == "Needle test"
    assert len(maps(app)) == 3
    assert "45 tests of 300–2,400 tokens" in words(app)
    assert "10 heads: L17H3 L18H6" in words(app)
    assert "It takes about" in words(app)
    assert labelled(app) == ["Start"]
    assert not app.error
    all_words = opened(PAGE, measure="all words")
    assert "Recall is 0.72 with all heads and 0.35 without the 10 chosen ones" in words(all_words)
    assert "Recall is 0.72 with all heads and 0.26 without" in words(opened(PAGE, measure="all words", kind="uniform"))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"lengths": "9000"}, "A test of 9,000 tokens with an answer of 32 is longer than the context of smollm2-135m, 8,192 tokens"),
        ({"lengths": "many"}, "--lengths takes numbers separated by commas"),
        ({"depths": "2"}, "Depths lie in 0–1"),
        ({"lengths": "0"}, "Lengths are tokens above 0"),
        ({"ablate": "L99H0"}, "No head L99H0"),
        ({"ablate": "0"}, "'0' takes 0 of 270 heads away"),
        ({"ablate": "retrival"}, "'retrival' is no number of heads, no label (retrieval, semantic_retrieval, "),
        ({"lengths": "100"}, "Needle 'dolores' with its question takes 109 tokens; a test of 100 cannot hold it"),
        ({"ablate": ""}, "and no list of heads such as L17H3,L18H6"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence_and_the_rest_stays(root, query, said):
    app = opened(PAGE, **query)
    (error,) = app.error
    assert said.lower() in error.value.lower()
    assert error.value.endswith(".")
    assert len(maps(app)) == 3
    assert not app.button


def test_every_setting_is_an_address(root):
    app = opened(PAGE, ablate="induction", by="copying", kind="mean", lengths="150", depths="0.5", needles="1", draws="3", seed="7")
    assert [app.text_input(key=key).value for key in ("ablate", "lengths", "depths")] == ["induction", "150", "0.5"]
    assert [app.number_input(key=key).value for key in ("needles", "draws", "seed")] == [1, 3, 7]
    assert (app.selectbox(key="by").value, app.selectbox(key="kind").value) == ("copying", "mean")
    assert "8 heads: " in words(app)
    assert not app.error


def test_labels_of_another_model_do_not_borrow_the_report(root, tmp_path, monkeypatch):
    card = ModelCard("smollm2-135m", "memory", "beef", Shape(30, 9, 3, 64, 576))
    HeadLabels(card, {}, {"retrieval": np.eye(30, 9)}, {"retrieval": RULES["retrieval"]}).save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    app = opened(PAGE)
    assert "Nothing has been computed for smollm2-135m" in words(app)
    assert not app.get("plotly_chart")
    HeadLabels(card, {Head(0, 0): ("given",)}, {}).save(tmp_path / "heads.json")
    assert "hold no scores" in words(opened(PAGE))


@pytest.mark.usefixtures("stand_in")
def test_a_test_is_started_followed_reloaded_and_shown(root):
    app = pressed(opened(PAGE, ablate="2"), "Start")
    (job,) = jobs.find(root)
    assert job.asked["arguments"][:4] == ["needle", "heads.json", "--model", "smollm2-135m"]
    assert job.asked["arguments"][job.asked["arguments"].index("--ablate") + 1] == "2"
    assert HeadLabels.load(job.folder / "heads.json").to_json() == HeadLabels.load(chosen.BUNDLED).to_json()
    assert app.query_params["job"] == job.name
    until(lambda: job.progress and job.progress.done == 1)
    again = opened(PAGE, ablate="2")  # a reload, or another user
    assert labelled(again) == ["Cancel"]
    assert "Needle test: smollm2-135m without the 2 strongest by retrieval (zero), 200,400,800 tokens" in again.subheader[0].value
    assert "without the chosen heads: 1 of 4" in again.get("progress")[0].proto.text
    named = opened(PAGE, job=job.name)
    assert labelled(named) == ["Start", "Cancel"]  # it is of other settings than those of the page
    (root / "jobs" / "go").touch()
    until(lambda: job.state == "done")
    done = opened(PAGE, ablate="2")
    assert "Recall is 1.00 with all heads and 0.25 without the 2 chosen ones: 0.75 less." in words(done)
    assert len(maps(done)) == 2
    assert not done.button
    assert Recall.load(job.folder / "needle.csv").totals()["mean"].tolist() == [1, 0.25]
    named = opened(PAGE, job=job.name)
    assert "0.25 without" in words(named)
    named.number_input(key="seed").set_value(5).run()
    assert "job" not in named.query_params
    assert "45 tests" in words(named)


@pytest.mark.usefixtures("stand_in")
def test_a_test_is_cancelled_and_started_again(root):
    app = pressed(opened(PAGE, ablate="2"), "Start")
    (job,) = jobs.find(root)
    until(lambda: job.state == "running")
    pressed(opened(PAGE, ablate="2"), "Cancel")
    assert job.state == "cancelled"
    app = opened(PAGE, ablate="2")
    assert "This job was cancelled" in words(app)
    (root / "jobs" / "go").touch()
    pressed(app, "Start again")
    until(lambda: job.state == "done")
    assert "0.25 without" in words(opened(PAGE, ablate="2"))


@pytest.mark.usefixtures("stand_in")
def test_a_test_that_is_removed_while_it_is_shown_is_a_sentence(root):
    pressed(opened(PAGE, ablate="2"), "Start")
    (job,) = jobs.find(root)
    app = opened(PAGE, job=job.name)
    job.remove()
    app.run()
    assert not app.exception
    assert f"There is no job {job.name}; it may have been removed." in words(app)
    assert len(maps(app)) == 3
    (root / "jobs" / "go").touch()
    pressed(opened(PAGE, ablate="2"), "Start")
    until(lambda: job.state == "done")
    (job.folder / "needle.csv").unlink()
    assert "Cannot read the needle tests needle.csv" in words(opened(PAGE, ablate="2"))


@pytest.mark.slow
def test_a_real_test_on_a_tiny_model(root, tmp_path, monkeypatch):
    from workbench.models import load
    from workbench.tiny import random_model

    model, folder = random_model("llama"), tmp_path / "tiny"
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    HeadLabels(load(str(folder)).card, {}, {"retrieval": np.eye(2, 6)}, {"retrieval": RULES["retrieval"]}).save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    monkeypatch.setenv("WORKBENCH_APP_MODEL", str(folder))
    query = {"ablate": "L1H1", "lengths": "450", "depths": "0.1,0.9", "needles": "1", "draws": "1"}
    app = opened(PAGE, **query)
    assert "Nothing has been computed" in words(app)
    pressed(app, "Start")
    (job,) = jobs.find(root)
    until(lambda: job.state not in ("queued", "running"), 200)
    assert job.state == "done", job.log()
    found = Recall.load(job.folder / "needle.csv")
    assert found.heads == (Head(1, 1),)
    assert len(found.tests) == 6
    assert (job.progress.done, job.progress.total) == (6, 6)
    app = opened(PAGE, **query)
    assert found.verdict() in words(app)
    assert len(maps(app)) == 3
