"""Does the page Long context show the map that was asked for, say what one would cost, and send no more than is in view?"""

import json

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

from dashboard import APP, opened, words

from workbench import jobs
from workbench.files import write_text
from workbench.heads import Head
from workbench.kept_maps import Asked, KeptMap, text_name
from workbench.long_maps import long_map
from workbench.tiny import random_model

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
PAGE = "app_pages/long_context.py"
SHORT = {"length": "800", "head": "L1H4"}


@pytest.fixture
def sketched(tiny, tmp_path, monkeypatch):
    """The random model is also what its configuration would say; runs have a folder."""
    monkeypatch.setattr("workbench.sources.locate", lambda name: name)
    monkeypatch.setattr("workbench.plan.sketch", {"tiny": tiny}.__getitem__)
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    return tiny


@pytest.fixture
def at_once(sketched, monkeypatch):
    """Jobs are done when they have been asked for: what `workbench long-map` would do, in this process."""
    asked_for = []

    def start(job, _root, _lock):
        asked_for.append(list(job.asked["arguments"]))
        given = dict(zip(job.asked["arguments"][1::2], job.asked["arguments"][2::2], strict=True))
        text = (job.folder / given["--text"]).read_text(encoding="utf-8") if "--text" in given else ""
        prompt = {"text": text_name(text)} if text else {"depth": float(given["--depth"]), "seed": int(given["--seed"])}
        asked = Asked(sketched.card.fingerprint, Head.parse(given["--head"]), int(given["--length"]), **prompt)
        long_map(sketched, asked, text).save(job.folder / given["--out"])
        write_text(job.folder / "end.json", json.dumps({"code": 0, "at": 0.0}))

    monkeypatch.setattr("workbench.jobs.asking._start", start)
    return asked_for


def shown(app):
    """The header and the numbers of the map on the page."""
    (component,) = app.get("bidi_component")
    message = component.proto.bytes
    length = int.from_bytes(message[:4], "little")
    return json.loads(message[4 : 4 + length]), np.frombuffer(message[4 + length :], "<f4")


def compute(app):
    (button,) = [button for button in app.button if button.label == "Compute the map"]
    button.click().run()
    assert not app.exception
    return app


def test_it_opens_on_the_example_without_a_model(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    for name in ("workbench.models.load", "workbench.plan.sketch"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("a model was loaded"))
    app = opened(PAGE)
    assert app.title[0].value == "Long context"
    header, values = shown(app)
    assert (header["head"], header["block"], header["zooms"]) == ("L17H3", 16, False)
    assert len(values) == 512**2
    assert {mark["kind"] for mark in header["marks"]} == {"needle", "answer", "sinks"}
    assert "Dolores Park" in words(app)
    assert not app.button


@pytest.mark.model
def test_the_head_of_the_example_finds_the_needle(smollm2):
    """It is of the default model; the rows of the answer look at the needle more than at other keys."""
    kept = KeptMap.load(APP.parent / "reports" / "smollm2-135m" / "long_map_L17H3.npz")
    assert kept is not None
    assert kept.facts["asked"]["model"] == smollm2.card.fingerprint
    ((first, last),), ((begin, end),) = kept.marks["answer"], kept.marks["needle"]
    tile_UV = kept.part((first, last), (begin, end)).value_UV
    assert tile_UV.max() > 0.8
    assert tile_UV.max() > 5 * np.median(kept.part((first, last), (200, begin - 64)).value_UV)


def test_what_is_not_there_says_what_it_would_cost_and_is_computed_when_asked(at_once, sketched):
    app = opened(PAGE, **SHORT)
    assert not app.get("bidi_component")
    assert "This map is not there yet. The model has to read the prompt, up to layer 1: about 0 s and 2.5 GiB for one forward pass over 793 tokens" in words(
        app
    )
    assert not at_once
    header, values = shown(compute(app))
    assert at_once == [["long-map", "--model", "tiny", "--head", "L1H4", "--length", "800", "--depth", "0.5", "--seed", "0", "--out", "map.npz"]]
    kept = long_map(sketched, Asked(sketched.card.fingerprint, Head(1, 4), 800))
    np.testing.assert_array_equal(values, kept.part().value_UV.ravel())
    assert (header["block"], header["tokens"]) == (1, kept.length)
    again, _ = shown(opened(PAGE, **SHORT))  # by its address, without asking again
    assert again["id"] == header["id"]
    assert len(at_once) == 1
    assert not opened(PAGE, **{**SHORT, "depth": "0.25"}).get("bidi_component")


def test_a_view_and_what_is_marked_are_an_address(at_once, sketched):
    compute(opened(PAGE, **SHORT))
    kept = long_map(sketched, Asked(sketched.card.fingerprint, Head(1, 4), 800))
    app = opened(PAGE, **SHORT, zoom="600:640,100:180", marks="needle", sink_rule="uniform")
    header, values = shown(app)
    assert (header["rect"], header["cells"], header["block"]) == ([[600, 640], [100, 180]], [40, 80], 1)
    np.testing.assert_array_equal(values, kept.part((600, 640), (100, 180)).value_UV.ravel())
    assert [mark["kind"] for mark in header["marks"]] == ["needle"]
    assert app.selectbox(key="sink_rule").value == "uniform"
    assert app.dataframe[0].value["attention"][0] == pytest.approx(values.max())
    for wrong in ("600:640", "640:600,0:1", "0:9000,0:9000", "x"):
        assert shown(opened(PAGE, **SHORT, zoom=wrong))[0]["rect"] == [[0, kept.length], [0, kept.length]]


def test_a_prompt_longer_than_the_context_is_told(at_once):
    app = opened(PAGE, **{**SHORT, "length": "4200"})
    assert "are beyond the 4096 that tiny-llama was trained for: what a head does there says little" in app.warning[0].value
    app = compute(app)
    header, values = shown(app)
    assert header["tokens"] > 4096
    assert max(header["cells"]) <= 1024
    assert header["block"] == 5
    assert len(values) == int(np.prod(header["cells"])) <= 1024**2
    assert "beyond the 4096" in app.warning[0].value


def test_a_prompt_that_the_model_has_no_positions_for_is_refused(sketched, monkeypatch):
    learned = random_model("gpt2")
    monkeypatch.setattr("workbench.plan.sketch", lambda _: learned)
    (error,) = opened(PAGE, **{**SHORT, "length": "4200"}).error
    assert "do not fit tiny-gpt2, which has 4096 learned positions" in error.value or "cannot hold it" in error.value


@pytest.mark.parametrize(("length", "said"), [("50", "a test of 50 cannot hold it"), ("131072000", ""), ("-3", "")])
def test_a_length_that_cannot_be_is_a_sentence_or_left_out(sketched, length, said):
    app = opened(PAGE, **{**SHORT, "length": length})
    if said:
        assert said in app.error[0].value
    else:
        assert app.number_input(key="length").value == 8192


def test_a_text_of_ones_own(at_once, sketched):
    text = "Every head looks somewhere. " * 30
    app = opened(PAGE, **{**SHORT, "length": "500", "source": "Own text"})
    assert "Upload a text under Prompt." in words(app)
    app.file_uploader(key="long_text").upload("mine.txt", text.encode()).run()
    assert app.query_params["file"] == text_name(text)
    app = compute(app)
    assert "The first 500 tokens of the text's 841." in words(app)
    header, _ = shown(app)
    assert "needle" not in {mark["kind"] for mark in header["marks"]}
    shared = {name: app.query_params[name] for name in ("file", "job")}
    app = opened(PAGE, **{**SHORT, "length": "500", "source": "Own text"}, **shared)  # somebody else, without the file
    assert shown(app)[0]["id"] == header["id"]
    app = opened(PAGE, **{**SHORT, "length": "400", "source": "Own text"}, **shared)
    assert "upload it again" in words(app)
    app.file_uploader(key="long_text").upload("bad.txt", b"\xff\xfe\x00").run()
    assert "Bad.txt is no text in UTF-8" in app.error[0].value or "bad.txt is no text in UTF-8" in app.error[0].value
    assert not app.exception


def test_a_job_that_failed_says_why_and_can_be_asked_again(sketched, at_once, monkeypatch):
    def fails(job, _root, _lock):
        write_text(job.folder / "log.txt", "workbench: the disk is full\n")
        write_text(job.folder / "end.json", json.dumps({"code": 2, "at": 0.0}))

    with monkeypatch.context() as patch:
        patch.setattr("workbench.jobs.asking._start", fails)
        app = compute(opened(PAGE, **SHORT))
    assert "The last it said: workbench: the disk is full" in app.error[0].value
    assert shown(compute(app))


def test_a_map_that_cannot_be_read_is_computed_again(sketched, at_once, tmp_path):
    compute(opened(PAGE, **SHORT))
    (job,) = jobs.find(tmp_path / "runs")
    (job.folder / "map.npz").write_bytes(b"none")
    app = opened(PAGE, **SHORT)
    assert "it can be computed again" in words(app)
    assert shown(compute(app))
    assert len(at_once) == 2


def test_a_running_job_is_followed_and_cancelled(sketched, monkeypatch, tmp_path):
    monkeypatch.setattr("workbench.jobs.asking._start", lambda *_: None)
    monkeypatch.setattr("workbench.jobs.Job.state", "running")
    cancelled = []

    def cancel(job):
        cancelled.append(job)

    monkeypatch.setattr("workbench.jobs.Job.cancel", cancel)
    app = opened(PAGE, **SHORT)
    compute(app)
    (button,) = [button for button in app.button if button.label == "Cancel"]
    assert not [button for button in app.button if button.label == "Compute the map"]
    button.click().run()
    assert [job.folder.parent for job in cancelled] == [tmp_path / "runs" / "jobs"]
