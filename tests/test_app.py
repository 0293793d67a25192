"""Does every page of the dashboard run, say in words what it cannot do, and compute nothing itself?"""

import ast
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

import chosen
from dashboard import APP, opened, words

from workbench.formats import FORMATS
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.probes import PROBES
from workbench.runs import Part, Run
from workbench.scores import HeadScores

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
FILES = sorted(APP.rglob("*.py"))
VIEWS = ("Distribution", "Two probes", "Agreement", "Table", "Side by side", "Export", "Evidence")
ONE_HEAD = "app_pages/one_head.py"
RUNS = "app_pages/runs.py"


def test_it_opens_on_the_bundled_labels_without_loading_a_model(monkeypatch):
    monkeypatch.setattr("workbench.models.load", lambda name: pytest.fail("a model was loaded"))
    app = opened()
    assert app.title[0].value == "Heads"
    assert app.selectbox(key="probe").value == "retrieval"
    assert set(app.selectbox(key="probe").options) == set(HeadLabels.load(chosen.BUNDLED).scores)
    assert PROBES["retrieval"].question in words(app)
    assert app.get("bidi_component")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_an_address(view):
    app = opened(probe="induction", view=view)
    assert app.selectbox(key="probe").value == "induction"
    assert app.segmented_control(key="view").value == view
    assert not app.error


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_can_be_downloaded(name):
    app = opened(view="Export", format=name)
    assert app.selectbox(key="format").value == name
    assert [button.label for button in app.download_button if button.label.startswith("Download")] == [f"Download {name}"]
    assert FORMATS[name].loss in words(app)


def test_what_is_not_in_the_file_is_not_invented(tmp_path, monkeypatch):
    path = tmp_path / "heads.json"
    path.write_bytes(chosen.BUNDLED.read_bytes())
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(path))
    app = opened(probe="no_such_probe", view="Nowhere")
    assert app.selectbox(key="probe").value == "retrieval"
    assert "not the nulls and intervals" in words(app)
    assert "null of all heads" not in app.get("plotly_chart")[0].proto.spec


def test_scores_beside_the_labels_bring_nulls_and_intervals(tmp_path, monkeypatch):
    assert "null of all heads" in opened().get("plotly_chart")[0].proto.spec
    path, table = tmp_path / "heads.json", HeadScores.load(chosen.BUNDLED.with_name("scores.parquet"))
    path.write_bytes(chosen.BUNDLED.read_bytes())
    HeadScores(table.card, table.table.assign(score=0.5), table.evidence, table.provenance).save(tmp_path / "scores.parquet")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(path))
    assert "null of all heads" not in opened().get("plotly_chart")[0].proto.spec  # those of another run are not shown
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "scores.parquet"))
    assert "null of all heads" in opened().get("plotly_chart")[0].proto.spec


def test_a_table_of_scores_can_be_uploaded():
    path = chosen.BUNDLED.with_name("scores.parquet")
    app = opened(view="Two probes")
    app.file_uploader(key=chosen.UPLOAD).upload("mine.parquet", path.read_bytes()).run()
    assert not app.exception
    assert not app.error
    app.file_uploader(key=chosen.UPLOAD).upload("bad.parquet", b"PAR1").run()
    assert "bad.parquet is no table of scores" in words(app)
    assert app.selectbox(key="probe").value == "retrieval"


def test_a_probe_of_another_file_is_shown_without_a_question(tmp_path, monkeypatch):
    HeadLabels(ModelCard("mine", "memory", "", Shape(2, 3, 1, 8, 24)), {}, {"mine": np.eye(2, 3)}).save(tmp_path / "mine.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "mine.json"))
    for view in VIEWS:
        app = opened(view=view)
        assert "mine is no probe of this workbench" in words(app)
        assert not app.error
    assert "one probe only" in words(opened(view="Two probes"))
    assert "one probe only" in words(opened(view="Agreement"))


def test_labels_without_scores_say_so(tmp_path, monkeypatch):
    HeadLabels(ModelCard("bare", "memory", "", Shape(2, 3, 1, 8, 24)), {Head(0, 0): ("given",)}, {}).save(tmp_path / "bare.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "bare.json"))
    assert "hold no scores" in words(opened())


@pytest.mark.parametrize("content", [None, "{}", "no JSON", '{"schema": NaN}'])
def test_a_labels_file_that_cannot_be_used_is_a_sentence(tmp_path, monkeypatch, content):
    path = tmp_path / "heads.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(path))
    (error,) = opened().error
    assert error.value.startswith(("Cannot read", str(path)))
    assert error.value.endswith(".")


def test_an_upload_replaces_the_labels_and_a_bad_one_does_not(tmp_path):
    path = HeadLabels(ModelCard("mine", "memory", "", Shape(2, 3, 1, 8, 24)), {}, {"mine": np.eye(2, 3)}).save(tmp_path / "mine.json")
    app = opened()
    app.file_uploader(key=chosen.UPLOAD).upload(path.name, path.read_bytes()).run()
    assert not app.exception
    assert app.selectbox(key="probe").options == ["mine"]
    app.file_uploader(key=chosen.UPLOAD).upload("bad.json", b"[1, 2]").run()
    assert app.selectbox(key="probe").value == "retrieval"
    assert "bad.json: not head labels" in words(app)


def test_one_head_begins_with_a_labelled_one(tiny):
    app = opened(ONE_HEAD)
    assert app.title[0].value == "One head"
    assert app.selectbox(key="head").value == "L1H4"
    assert "induction" in words(app)
    assert not app.error


def test_a_head_a_text_and_a_row_are_an_address(tiny):
    app = opened(ONE_HEAD, head="L1H4", text="abcabc", row="3")
    assert app.selectbox(key="head").value == "L1H4"
    assert app.text_area(key="text").value == "abcabc"
    assert "reads KV head 1 of layer 1" in words(app)
    table = app.dataframe[0].value
    assert set(table["label"]) == {"induction", "retrieval"}
    assert list(app.dataframe[1].value["token"]) == ["<s>", "a", "b", "c"]
    assert titles(app) == {"added to the logit of the next token"}


def titles(app):
    """What stands at the axes of numbers of the figures."""
    layouts = [json.loads(chart.proto.spec)["layout"] for chart in app.get("plotly_chart")]
    return {layout[axis]["title"]["text"] for layout in layouts for axis in ("xaxis", "yaxis") if "title" in layout[axis]} - {"token of the text"}


@pytest.mark.parametrize("kind", ["zero", "mean", "resample", "uniform"])
def test_ablating_shows_the_next_tokens(tiny, kind):
    app = opened(ONE_HEAD, head="L1H4", text="abcabc", ablate="true", kind=kind)
    assert app.segmented_control(key="kind").value == kind
    assert titles(app) == {"added to the logit of the next token", "probability as the next token", "surprise added, nats"}
    app = opened(ONE_HEAD, head="L1H4", text="abcabc", ablate="true", off="all 2 heads labelled induction")
    assert app.selectbox(key="off").value == "all 2 heads labelled induction"
    assert len(titles(app)) == 3


def test_what_a_head_matches_and_where_it_writes_are_an_address(tiny):
    app = opened(ONE_HEAD, head="L1H4", text="abcabc", match="true", examples="true")
    matched = app.dataframe[2].value
    assert list(matched["token"]) == ["<s>", "a", "b", "c"]
    assert matched["rank of itself"].between(1, len(tiny.weights.embedding())).all()
    strongest = app.dataframe[3].value
    assert strongest["length of the write"].is_monotonic_decreasing
    assert not app.error


@pytest.mark.parametrize("row", ["-1", "99", "x", "²"])
def test_a_row_that_is_not_there_is_left_out(tiny, row):
    assert not opened(ONE_HEAD, head="L1H4", text="abc", row=row).error


def test_a_head_that_is_not_there_is_left_out(tiny):
    assert opened(ONE_HEAD, head="L99H0").selectbox(key="head").value == "L1H4"


def test_a_text_that_is_too_long_is_a_sentence(tiny):
    (error,) = opened(ONE_HEAD, text="a" * 600).error
    assert error.value.startswith("The text has 601 tokens; token by token at most 512 are shown.")


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "openai/private"])
def test_a_labels_file_cannot_make_it_load_anything(tmp_path, monkeypatch, name):
    monkeypatch.setattr("workbench.models.load", lambda name: pytest.fail("something was loaded"))
    HeadLabels(ModelCard(name, "memory", "", Shape(2, 3, 1, 8, 24)), {}, {"local": np.eye(2, 3)}).save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    (error,) = opened(ONE_HEAD).error
    assert "none of the models that the dashboard loads by itself" in error.value


def test_labels_of_another_model_are_refused(tiny, tmp_path, monkeypatch):
    HeadLabels(ModelCard("tiny", "memory", "beef", Shape(2, 3, 1, 8, 24)), {}, {"local": np.eye(2, 3)}).save(tmp_path / "other.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "other.json"))
    (error,) = opened(ONE_HEAD).error
    assert "these labels were made for tiny" in error.value.lower()


def test_runs_are_listed_with_what_was_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    assert "There are no runs" in words(opened(RUNS))
    for seed in (0, 1):
        run = Run(tmp_path, {"model": "abc", "probes": ["induction"], "prompts": ["1", "2"], "seed": seed})
        run.save("part-0000", Part({"induction": np.zeros((1, 2, 4))}, {"induction": np.ones(1, bool)}, ()))
    app = opened(RUNS, run=run.fingerprint)
    assert app.selectbox(key="run").value == run.fingerprint
    assert set(app.dataframe[0].value["seed"]) == {0, 1}
    assert json.loads(app.json[0].value)["seed"] == 1
    (run.folder / "question.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in app.run().error[0].value
    shutil.rmtree(run.folder)
    assert app.run().selectbox(key="run").value != run.fingerprint
    assert not app.exception


def test_it_stays_on_this_machine_and_tells_nobody():
    settings = (APP / ".streamlit" / "config.toml").read_text(encoding="utf-8")
    assert 'address = "127.0.0.1"' in settings
    assert "gatherUsageStats = false" in settings
    assert f"maxUploadSize = {chosen.LABELS_MB}" in settings
    assert "magicEnabled = false" in settings


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(APP)) for path in FILES])
def test_nothing_is_computed_here(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {id(node) for block in ast.walk(tree) if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test) for node in ast.walk(block)}
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in typing]
    modules = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names} | {
        node.module for node in imports if isinstance(node, ast.ImportFrom)
    }
    assert not {module.partition(".")[0] for module in modules} & {"numpy", "torch", "pandas", "plotly", "scipy", "transformers"}
    assert ast.get_docstring(tree)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert not [node.name for node in functions if not ast.get_docstring(node)]


def test_the_settings_of_the_bundled_labels_are_those_of_the_default_model():
    assert json.loads(chosen.BUNDLED.read_text(encoding="utf-8"))["model"]["name"] == "smollm2-135m"
