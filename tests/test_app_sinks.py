"""Does the page on sinks show what the workbench finds, and say in words what it cannot? Known sinks, the edit's own counts, and files of a calibration."""

import json

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

import calibrated
import chosen
from dashboard import opened, words

from workbench.calibration import LABEL, SCORE, shift, trial
from workbench.calibration.reading import MEANS, of_files
from workbench.calibration.search import COLUMNS
from workbench.edits import Calibrate, SinkRule
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.rules import RULES
from workbench.sinks import find_sinks

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
SINKS = "app_pages/sinks.py"
ON_OFF, KEPT = "Calibration on and off", "Calibrated heads"
TEXT = "abcab cabba ccab"
ROW = dict.fromkeys(COLUMNS, 0.0) | {"chosen": "screening", "n": 30, "stopped": ""}
MEASURED = pd.DataFrame([ROW | {"head": "L1H4", "fixed": 5, "gain": 0.1, "kept": True}, ROW | {"head": "L0H2", "broken": 3, "gain": -0.1, "kept": False}])
HELD_OUT = pd.DataFrame(
    [
        dict.fromkeys(MEANS, 0.0) | {"heads": "kept", "seed": np.nan, "count": 1, "task": "mean", "n": 300, "p": 0.42, "fixed": 15, "broken": 10}
        | {"difference": 0.017, "difference_low": -0.014, "difference_high": 0.05}
    ]
)  # fmt: skip


def csv(table):
    return table.to_csv(index=False).encode()


@pytest.fixture
def with_sinks(tiny, tmp_path, monkeypatch):
    """The tiny model with a score about sinks, and a calibration beside the labels."""
    score_LH = np.linspace(0, 1, 12).reshape(2, 6)
    HeadLabels(tiny.card, {Head(1, 5): ("attention_sink",)}, {"attention_sink": score_LH}, {"attention_sink": RULES["attention_sink"]}).save(
        tmp_path / "s.json"
    )
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "s.json"))
    (tmp_path / "calibration.csv").write_bytes(csv(MEASURED))
    (tmp_path / "calibration.heldout.csv").write_bytes(csv(HELD_OUT))
    return tiny


def test_scores_about_sinks_are_there_with_their_rule(with_sinks):
    app = opened(SINKS, text=TEXT)
    assert app.title[0].value == "Sinks and calibration"
    assert app.selectbox(key="score").options == ["attention_sink"]
    assert RULES["attention_sink"].source in words(app)
    assert not app.error


def test_the_sinks_of_a_text_are_those_that_are_found(with_sinks):
    app = opened(SINKS, text=TEXT, rule="absolute", value_absolute="0.05", tail="0.5")
    found = find_sinks(with_sinks, TEXT, rules={}, tail=0.5)
    assert found.received_LHK.shape == (2, 6, 17)
    length = 17
    sink_LHK = (found.received_LHK > 0.05) & (np.arange(length) > 0) & (np.arange(length) < int(length * 0.5))
    assert f"**{sink_LHK.any(-1).sum()} of 12 heads have a sink by this rule**, on {sink_LHK.any((0, 1)).sum()} of 17 tokens" in words(app)
    table = app.dataframe[0].value
    assert dict(zip(table["position"], table["heads"], strict=True)) == {k: n for k, n in enumerate(sink_LHK.sum((0, 1))) if n}
    for position, received in zip(table["position"], table["received"], strict=True):
        assert received == pytest.approx(found.received_LHK[..., position].max(), abs=1e-6)


def test_first_token_sinks_have_no_value_to_choose(with_sinks):
    app = opened(SINKS, text=TEXT, rule="first")
    assert not app.number_input
    count = (find_sinks(with_sinks, TEXT).received_LHK[..., 0] > 0.3).sum()
    assert f"**{count} of 12 heads" in words(app)


@pytest.mark.parametrize(("query", "said"), [({"text": ""}, "There is no text"), ({"text": "a" * 600}, "at most 512"), ({"value_alpha_n": "0"}, "above 0")])
def test_what_cannot_be_read_is_a_sentence(with_sinks, query, said):
    (error,) = opened(SINKS, **{"text": TEXT, **query}).error
    assert said in error.value
    assert error.value.endswith(".")


def test_calibration_on_and_off_is_the_trial(with_sinks):
    asked = {"prompt": TEXT, "calibrate": "all heads", "beta": "0.1", "act_rule": "uniform", "act_uniform": "1.5", "look": "L1H3"}
    app = opened(SINKS, part=ON_OFF, **asked)
    assert not app.error
    edit = Calibrate(None, 0.1, SinkRule("uniform", 1.5))
    tried = trial(with_sinks, TEXT, edit)
    assert [code.value for code in app.code] == [tried.answers["plain"], tried.answers["calibrated"]]
    assert f"**{tried.found_LH.sum()} sinks in {(tried.found_LH > 0).sum()} heads**" in words(app)
    seen = shift(with_sinks, TEXT, edit, Head(1, 3))
    pd.testing.assert_frame_equal(app.dataframe[0].value, seen.sinks)
    spec = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert [trace["name"] for trace in spec["data"]] == ["the model as it is", "all heads calibrated"]


def test_the_head_to_look_at_is_the_one_with_most_sinks(with_sinks):
    app = opened(SINKS, part=ON_OFF, prompt=TEXT, calibrate="all heads", act_rule="uniform", act_uniform="1.5")
    found_LH = trial(with_sinks, TEXT, Calibrate(None, 0.4, SinkRule("uniform", 1.5))).found_LH
    head = Head.parse(app.selectbox(key="look").value)
    assert found_LH[head.layer, head.index] == found_LH.max() > 0


def test_one_head_is_calibrated_beside_a_control(with_sinks):
    app = opened(SINKS, part=ON_OFF, prompt=TEXT, calibrate="one head", alone="L0H2")
    assert "The control calibrates 1 other heads" in words(app)
    assert app.selectbox(key="calibrate").options == ["the kept heads", "all heads", "one head"]


def test_kept_heads_are_shown_with_held_out_answers(with_sinks):
    app = opened(SINKS, part=KEPT)
    assert "**1 of 12 heads are kept** (from the report beside the labels): L1H4." in words(app)
    assert "shows no effect that they could tell**: +1.7% (95% -1.4% to +5.0%; 15 answers turned right and 10 wrong, McNemar p = 0.42)" in words(app)
    assert list(app.dataframe[0].value["head"]) == ["L1H4", "L0H2"]
    assert {"calibration-gain.svg", "calibration-heads.csv"} <= {button.label for button in app.download_button}
    assert not app.error


def test_without_a_calibration_nothing_is_kept(tiny):
    app = opened(SINKS, part=KEPT)
    assert "There is no calibration of tiny-llama" in words(app)
    assert app.get("plotly_chart") == []
    assert opened(SINKS, part=ON_OFF, prompt=TEXT).selectbox(key="calibrate").options == ["all heads", "one head"]
    assert "hold no scores about sinks" in words(opened(SINKS, text=TEXT))


def test_files_of_a_calibration_can_be_uploaded(with_sinks):
    labels = HeadLabels(with_sinks.card, {Head(0, 3): (LABEL,)}, {SCORE: np.eye(2, 6) / 2}, {}).to_json()
    app = opened(SINKS, part=KEPT)
    app.file_uploader(key=calibrated.UPLOAD).upload("mine.json", json.dumps(labels).encode()).run()
    assert "**1 of 12 heads are kept** (mine.json): L0H3." in words(app)
    app.file_uploader(key=calibrated.UPLOAD).set_value([("bad.csv", b"a,b\n1,2\n", "text/csv")]).run()
    assert "Bad.csv is no table" in words(app) or "bad.csv is no table" in words(app)
    assert "from the report beside the labels" in words(app)
    assert not app.exception


def test_a_calibration_is_read_from_any_of_its_files(tiny):
    labels = HeadLabels(tiny.card, {Head(0, 3): (LABEL,)}, {SCORE: np.eye(2, 6) / 2}, {}, {SCORE: {"held_out": HELD_OUT.to_dict("records"), "remarks": ["so"]}})
    as_json = json.dumps(labels.to_json()).replace("NaN", "null").encode()
    found = of_files({"a.json": as_json}, tiny.card)
    assert (found.kept, found.measured, found.remarks) == ((Head(0, 3),), None, ("so",))
    assert found.held_out["difference"].tolist() == [0.017]
    both = of_files({"a.json": as_json, "a.heads.csv": csv(MEASURED), "a.heldout.csv": csv(HELD_OUT.assign(difference=0.5))}, tiny.card)
    assert both.kept == (Head(1, 4),)
    assert both.gain_LH[1, 4] == 0.1
    assert np.isnan(both.gain_LH).sum() == 10
    assert both.held_out["difference"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"x.csv": b"\x00\xff\x01"}, "x.csv is no table"),
        ({"x.csv": b""}, "x.csv is no table"),
        ({"x.csv": b"head,gain\nL0H0,1\n"}, "it lacks 'chosen'"),
        ({"x.csv": csv(MEASURED.assign(gain="much"))}, "'gain' has something else than numbers"),
        ({"x.csv": csv(MEASURED.assign(kept=2))}, "whether it is kept"),
        ({"x.csv": csv(MEASURED.assign(head="L9H9"))}, "no head L9H9"),
        ({"x.csv": csv(MEASURED.assign(head="many"))}, "names no head"),
        ({"x.csv": csv(HELD_OUT)}, "does not tell which heads"),
        ({"x.json": b"[]"}, "not head labels"),
    ],
)
def test_what_is_no_calibration_is_refused(tiny, files, said):
    with pytest.raises(InputError, match=said):
        of_files(files, tiny.card)


def test_labels_without_the_label_and_of_another_model_are_no_calibration(tiny):
    from workbench.tiny import random_model

    with pytest.raises(InputError, match="has no label 'calibrate'"):
        of_files({"x.json": json.dumps(HeadLabels(tiny.card, {}, {}).to_json()).encode()}, tiny.card)
    other = random_model("gpt2").card
    with pytest.raises(InputError, match="were made for"):
        of_files({"x.json": json.dumps(HeadLabels(other, {Head(0, 0): (LABEL,)}, {SCORE: np.zeros((2, 4))}).to_json()).encode()}, tiny.card)


def test_the_bundled_calibration_is_that_of_the_report():
    folder = chosen.BUNDLED.parent
    files = {name: (folder / name).read_bytes() for name in calibrated.REPORT}
    found = of_files(files, HeadLabels.load(chosen.BUNDLED).card)
    report = (folder / "calibration.md").read_text(encoding="utf-8")
    assert f"Kept: {', '.join(map(str, found.kept))}." in report
    for row in found.held_out.to_dict("records"):
        assert f"| {row['task']} | {row['n']} | {row['accuracy']:.3f} |" in report
        assert f"| {row['difference']:.3f} | {row['difference_low']:.3f} | {row['difference_high']:.3f} | {row['fixed']} | {row['broken']} |" in report
