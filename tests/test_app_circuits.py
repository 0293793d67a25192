"""Does the page Circuits show the very circuit, compute what it is asked for, and say in words what it cannot do?"""

import json
import sys
import time

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

import chosen
import made_models
from dashboard import opened, words
from test_circuit_questions import raw
from test_ph3 import READS, REMEMBERS, clashes, toy

from workbench import jobs
from workbench.circuits.circuit import Circuit
from workbench.circuits.compiled_ioi import MOVERS, NEGATIVE, ioi_model
from workbench.heads import Head, ModelCard, Shape
from workbench.jobs import asking
from workbench.labels import HeadLabels

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
PAGE = "app_pages/circuits.py"
REPORTS = chosen.BUNDLED.parent
BUNDLED = REPORTS / "circuit_ioi.json"
ALL_HEADS = f"{len(Circuit.load(BUNDLED).heads)} heads for"
on_compiled = pytest.mark.usefixtures("nothing_is_remembered", "compiled")
on_two_answers = pytest.mark.usefixtures("nothing_is_remembered", "two_answers")


def shown(panel="Circuit", **query):
    return opened(PAGE, panel=panel, **query)


def started_with(model, tmp_path, monkeypatch, scores=None):
    """The dashboard of a model made in memory, which is loaded in place of any other."""
    shape = model.shape
    HeadLabels(model.card, {}, scores or {"mine": np.zeros((shape.n_layers, shape.n_heads))}).save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    monkeypatch.setenv("WORKBENCH_APP_MODEL", "made")
    monkeypatch.setattr("workbench.models.load", lambda name: {"made": model}[name])


@pytest.fixture
def compiled(root, tmp_path, monkeypatch):
    """The compiled IOI model, attention hard, with a task of its words; its jobs have both too."""
    started_with(ioi_model(20), tmp_path, monkeypatch)
    monkeypatch.setattr("workbench.circuits.tasks.TASKS", made_models.WITH_NAMES)
    monkeypatch.setattr(asking, "PROGRAM", (sys.executable, made_models.__file__, "compiled"))


@pytest.fixture
def two_answers(root, tmp_path, monkeypatch):
    """The model of two heads, one of which remembers and one reads, and its conflicts."""
    started_with(toy(), tmp_path, monkeypatch)
    monkeypatch.setattr(asking, "PROGRAM", (sys.executable, made_models.__file__, "two answers"))


def started(root, app):
    """The job of the page's button, when it has ended."""
    app.button(key="start").click().run()
    assert not app.exception
    (job,) = [one for one in jobs.find(root) if one.name in app.query_params["job"]]
    end = time.monotonic() + 120
    while job.state in ("queued", "running"):
        assert time.monotonic() < end
        time.sleep(0.05)
    return job


def computed(root, panel, **query):
    """The view when its job is done, opened by its settings alone."""
    job = started(root, shown(panel, **query))
    assert job.state == "done", job.log()
    return shown(panel, **query)


def test_it_opens_on_the_bundled_circuit_without_loading_a_model(monkeypatch):
    monkeypatch.setattr("workbench.models.load", lambda name: pytest.fail("a model was loaded"))
    app, circuit = shown(), Circuit.load(BUNDLED)
    assert app.title[0].value == "Circuits"
    assert ALL_HEADS in words(app)
    assert f"{len(circuit.edges)} edges were measured" in words(app)
    assert "All are drawn, wider" in words(app)  # 40 are fewer than the most that a picture has
    (heads,), faithful = (frame.value for frame in app.dataframe), app.table[0].value
    assert set(faithful.columns) == {"resample", "mean", "zero"}
    row = circuit.faithfulness.set_index("ablation").loc["resample"]
    assert faithful.loc["faithfulness", "resample"] == f"{row['faithfulness']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
    assert set(faithful.index) >= {"full", "empty", "complement faithfulness", "recovered", "kl", "incompleteness", "n"}
    assert list(heads["head"]) == [str(head) for head in circuit.heads]
    assert {"resample_drop", "mean_drop", "zero_drop"} <= set(heads.columns)
    assert len(app.get("plotly_chart")) == 2
    assert app.get("bidi_component")
    labels = {button.label.partition(".")[2] for button in app.download_button}
    assert {"json", "graphml", "labels.json", "csv"} <= labels
    assert "circuit-effects.svg" in [button.label for button in app.download_button]


@pytest.mark.parametrize("panel", ["Circuit", "Patching", "Codes", "Methods", "Memory or context"])
def test_every_panel_is_an_address_and_needs_no_model(monkeypatch, panel):
    monkeypatch.setattr("workbench.models.load", lambda name: pytest.fail("a model was loaded"))
    app = shown(panel)
    assert app.segmented_control(key="panel").value == panel
    assert not app.error


def test_an_upload_is_shown_and_what_is_no_circuit_is_a_sentence(tmp_path):
    data = json.loads(BUNDLED.read_text(encoding="utf-8"))
    data |= {"heads": data["heads"][:2], "task": "my *own*"}
    app = shown()
    app.file_uploader(key="circuit_file").upload("mine.json", json.dumps(data).encode()).run()
    assert not app.exception
    assert "2 heads for" in words(app)
    data["faithfulness"] = []
    app.file_uploader(key="circuit_file").upload("mine.json", json.dumps(data).encode()).run()
    assert "The file does not tell how faithful the circuit is" in words(app)
    assert "my \\*own\\*" in words(app)  # as it stands, not as Markdown
    app.file_uploader(key="circuit_file").upload("bad.json", json.dumps(data | {"heads": ["L99H0"]}).encode()).run()
    (error,) = app.error
    assert error.value.startswith("bad.json: not a complete circuit")
    assert ALL_HEADS in words(app)  # the one beside the labels is shown again


def test_a_circuit_of_another_model_is_shown_but_opens_no_head(tmp_path, monkeypatch):
    HeadLabels(ModelCard("mine", "memory", "", Shape(2, 3, 1, 8, 24)), {}, {"mine": np.eye(2, 3)}).save(tmp_path / "mine.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "mine.json"))
    app = shown()
    assert "No circuit of mine lies beside the labels" in words(app)
    app.file_uploader(key="circuit_file").upload("ioi.json", BUNDLED.read_bytes()).run()
    assert not app.exception
    assert ALL_HEADS in words(app)
    for panel, said in (("Methods", "No circuits_ioi.csv of mine"), ("Memory or context", "start it with `make app MODEL=…`")):
        assert said in words(shown(panel))


def mean_of(path, name, **equal):
    return np.mean([float(row[name]) for row in raw(path, **equal)])


def test_methods_have_the_numbers_of_the_reports():
    app = shown("Methods")
    recovery, areas = (frame.value.set_index("method") for frame in app.dataframe)
    truth = REPORTS.parent / "compiled_ioi" / "methods.csv"
    for method in ("patching", "norm"):
        assert recovery.loc[method, "auroc"] == pytest.approx(mean_of(truth, "auroc", what="heads", beta="5", leak="0.0", method=method))
    cmd = mean_of(REPORTS / "circuits_ioi.csv", "value", part="head curve", method="ig-inputs", measure="cmd")
    assert areas.loc["ig-inputs", "cmd"] == pytest.approx(cmd)
    app = shown("Methods", what="edges", model_edges="β = 20, leak 0")
    precision = mean_of(truth, "average_precision", what="edges", beta="20", leak="0.0", method="EAP")
    assert app.dataframe[0].value.set_index("method").loc["EAP", "average_precision"] == pytest.approx(precision)
    assert app.selectbox(key="model_edges").value == "β = 20, leak 0"


@on_compiled
def test_paths_to_the_logits_of_the_compiled_model(root):
    app = computed(root, "Patching", task="names", prompts="6")
    assert not app.error
    rows = app.dataframe[0].value.set_index("head")
    for head, effect in {MOVERS[0]: -4, MOVERS[1]: -3, NEGATIVE: 2, Head(0, 0): 0, Head(1, 2): 0}.items():
        assert rows.loc[str(head), "effect"] == pytest.approx(effect, abs=0.03)
    assert "6 pairs of names (seed 0). The clean prompts run (noising)" in words(app)
    assert "On clean prompts it is 5.0" in words(app)
    app = computed(root, "Patching", task="names", prompts="6", kind="activation", component="q")
    assert app.dataframe[0].value.set_index("head").loc[str(MOVERS[0]), "effect"] < -1
    assert "q of each head is replaced by" in words(app)


@on_compiled
def test_nothing_is_computed_before_it_is_asked_for_and_a_job_is_found_again(root):
    app = shown("Patching", task="names", prompts="2")
    assert "Nothing is computed yet" in words(app)
    assert not app.dataframe
    assert not jobs.find(root)
    job = started(root, app)
    assert job.asked["arguments"][:4] == ["circuit", "patch", "--model", "made"]
    assert job.asked["shown"]["page"] == PAGE
    assert job.progress.done > 0
    assert len(jobs.find(root)) == 1
    app = shown("Patching", job=job.name)  # from the page Runs, with other settings than its own
    assert len(app.dataframe) == 1
    assert app.subheader[0].value == job.asked["title"] == "Patching paths to logits: compiled-ioi, 2 pairs of names"
    app.slider(key="prompts").set_value(3).run()
    assert "job" not in app.query_params
    assert "Nothing is computed yet" in words(app)
    assert not app.exception
    app = shown("Codes", job=job.name)  # of another view
    assert "Nothing is computed yet" in words(app)
    (job.folder / "answer.json").write_text("[]", encoding="utf-8")
    (error,) = shown("Patching", task="names", prompts="2").error
    assert "Cannot read answer.json: answer.json is none of workbench.patching/1" in error.value
    job.remove()
    app = shown("Patching", job=job.name)
    assert f"There is no job {job.name}; it may have been removed." in words(app)


@on_compiled
@pytest.mark.parametrize(
    ("receiver", "said"), [("the end", "is no receiver"), ("L9H0.q", "no head L9H0"), ("logits+L2H1.q", "by itself"), (" ", "is no receiver")]
)
def test_a_receiver_that_is_not_there_is_a_sentence(root, receiver, said):
    app = shown("Patching", task="names", prompts="2", receiver=receiver)
    (error,) = app.error
    assert said.casefold() in error.value.casefold()
    assert "Patch" not in [button.label for button in app.button]  # before a job is asked for, and not by a job
    assert not jobs.find(root)


@on_compiled
def test_codes_stand_beside_their_controls(root):
    app = computed(root, "Codes", task="names", prompts="8", control="norm")
    assert not app.error
    rows = app.dataframe[0].value.set_index("head")
    assert len(rows) == 24
    assert rows["codes"].is_monotonic_decreasing
    assert (rows["codes"] <= rows["distinct"]).all()
    assert rows["p"].between(1 / 201, 1).all()
    assert "8 pairs of prompts" in words(app)
    assert "Rank correlation with norm" in words(app)


@on_two_answers
def test_pruning_the_head_that_remembers_turns_every_answer(root):
    app = computed(root, "Memory or context", items="6", k_memory="1")
    assert not app.error
    assert "Pruned: L0H1." in words(app)
    assert "drawn now" in words(app)
    item = clashes(6).items[0]
    memory, context = item.right[0].strip(), item.wrong[0].strip()
    assert app.selectbox(key="conflict").options == [item.clean for item in clashes(6).items]
    assert f"With all heads: **{memory}** (memory). Without 1 memory heads: **{context}** (context)." in words(app)
    assert (str(REMEMBERS), str(READS)) == ("L0H1", "L0H2")
    app = shown("Memory or context", items="6", prune="context", k_context="1")  # of the same job
    assert "Pruned: L0H2." in words(app)
    assert f"Without 1 context heads: **{memory}** (memory)." in words(app)
    app = shown("Memory or context", items="6", k_memory="0")
    assert "Without 0 memory heads" in words(app)
    assert "Pruned:" not in words(app)
    assert not app.exception


def test_the_file_of_ph3_is_shown_without_a_model():
    app = shown("Memory or context", k_memory="2", prune="memory")
    assert "Pruned: L23H4, L24H4." in words(app)
    (rows,) = (frame.value.set_index("way") for frame in app.dataframe)
    assert rows.loc["pruned", "context"] == pytest.approx(mean_of(REPORTS / "ph3.csv", "context", steer="context", way="pruned"))
    assert "Pruned: L23H1, L23H0, L23H7." in words(shown("Memory or context", prune="context"))  # as many as the file labels
