"""Is needle recall with and without heads measured right? A model that copies by two known heads, tables worked out by hand, the committed report."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from workbench import plan, recall, runs, tiny, views
from workbench.cli import app
from workbench.compiled import INDUCTION, PREVIOUS, induction_model
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.needles import NeedleTests
from workbench.recall import Recall, of_benchmark
from workbench.recall.measuring import Setting, chosen, measure
from workbench.rules import RULES

REPORT = Path(__file__).resolve().parent.parent / "reports" / "smollm2-135m" / "needle_ablation.csv"
NEEDLES = (
    {"id": "tree", "needle": "Answer: oak ash elm yew.", "question": "what answer then?"},
    {"id": "ore", "needle": "Answer: tin iron lead.", "question": "what answer then?"},
)
FRAME = "Based on the content of the book, Question: Answer: what answer then?"


@pytest.fixture(scope="module")
def hay(tmp_path_factory):
    """A text of words that no needle has, and a file of needles; whoever looks for what followed “Answer:” before finds the needle."""
    folder = tmp_path_factory.mktemp("hay")
    (folder / "hay.txt").write_text(" ".join(f"rain{number % 7} fell on hill{number % 5}." for number in range(200)), encoding="utf-8")
    (folder / "needles.jsonl").write_text("\n".join(map(json.dumps, NEEDLES)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(hay):
    """The compiled induction model, with a tokenizer of words."""
    text = (hay / "hay.txt").read_text(encoding="utf-8")
    words = sorted({word for part in (text, FRAME, *(needle["needle"] for needle in NEEDLES)) for word in part.split()})
    names = ["<unk>", "<s>", "</s>", *words]
    core = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return induction_model(len(names), 128, tokenizer)


@pytest.fixture
def tests(hay):
    return NeedleTests(hay / "needles.jsonl", (40, 60), (0.1, 0.9), 2, hay / "hay.txt", teacher_forced=False)


@pytest.mark.parametrize("head", [PREVIOUS, INDUCTION], ids=str)
@pytest.mark.parametrize("kind", ["zero", "uniform"])
def test_recall_hangs_on_the_heads_that_copy(model, tests, head, kind):
    found = measure(model, [head], Setting(tests, kind, draws=3, answer_tokens=4))
    totals = found.totals().set_index("variant")
    assert list(totals.index) == ["full", "without", "control"]
    assert totals.loc["full", "mean"] == totals.loc["control", "mean"] == 1
    if kind == "uniform" and head == PREVIOUS:
        assert totals.loc["without", "mean"] == 1  # its work is done while the prompt is read
    else:
        assert totals.loc["without", "mean"] < 0.2
    assert found.heads == (head,)
    assert set(found.tests["variant"].value_counts().to_dict().items()) == {("full", 8), ("without", 8), ("control", 24)}
    drawn = set(found.tests.loc[found.tests["variant"] == "control", "heads"])
    assert all(Head.parse(name).layer == head.layer and Head.parse(name) != head for name in drawn)
    assert found.provenance["edits"][0] == {"edit": "ablate", "heads": [str(head)], "kind": kind, "phase": recall.PHASES[kind]}
    assert found.provenance["device"] == "cpu"


def test_answers_are_kept_and_the_full_model_is_asked_once_for_all(model, tests, tmp_path, monkeypatch):
    told = []
    first = measure(model, [INDUCTION], Setting(tests, draws=1, answer_tokens=4), runs=tmp_path, progress=lambda *what: told.append(what))
    assert told[0] == ("all heads", 1, 24)
    assert told[-1] == ("without as many others", 24, 24)
    table = runs.overview(tmp_path)
    assert list(table["parts"]) == list(table["of"]) == [8, 8, 8]
    assert set(table["probes"]) == {"needle recall"}
    assert not table["problem"].any()
    asked = []
    monkeypatch.setattr("workbench.recall.measuring.generate", lambda *_, edits, **__: asked.append(edits) or pytest.fail("asked again"))
    again = measure(model, [INDUCTION], Setting(tests, draws=1, answer_tokens=4), runs=tmp_path)
    pd.testing.assert_frame_equal(first.tests, again.tests)
    with pytest.raises(pytest.fail.Exception):
        measure(model, [PREVIOUS], Setting(tests, draws=1, answer_tokens=4), runs=tmp_path)
    assert [edit.heads for edit in asked[0]] == [(PREVIOUS,)]


def made(full, without, control):
    """A table of one test for each number; `control` has a list for each draw."""
    rows = [("full", 0, "", full), ("without", 0, "L0H0 L1H1", without), *(("control", draw, "L0H1 L1H0", values) for draw, values in enumerate(control))]
    tests = [
        {"variant": name, "draw": draw, "heads": heads, "test": number, "needle": "n", "length": 100 * (1 + number // 2), "depth": 0.5 * (number % 2)}
        | {"recall": value, "word_recall": value / 2, "response": ("said, “so”\nor", "a lone\rreturn")[number % 2]}
        for name, draw, heads, values in rows
        for number, value in enumerate(values)
    ]
    return Recall(pd.DataFrame(tests)[list(recall.table.COLUMNS)], {"name": "m", "kind": "zero"})


def test_grids_totals_and_differences_are_those_worked_out_by_hand():
    found = made([1, 0.5, 1, 0.5], [0, 0, 0.5, 0.5], [[1, 0.5, 0.5, 0], [1, 0.5, 1, 0.5]])
    np.testing.assert_array_equal(found.grid("full"), [[1, 1], [0.5, 0.5]])
    np.testing.assert_array_equal(found.grid("without"), [[0, 0.5], [0, 0.5]])
    np.testing.assert_array_equal(found.grid("control"), [[1, 0.75], [0.5, 0.25]])
    assert list(found.grid("full").columns) == [100, 200]
    assert list(found.grid("full").index) == [0, 0.5]
    totals = found.totals().set_index("variant")
    assert list(totals["mean"]) == [0.75, 0.25, 0.625]
    assert tuple(totals.loc["control", ["least", "most"]]) == (0.5, 0.75)
    assert list(totals["n"]) == [4, 4, 4]
    assert (totals["low"] < totals["mean"]).all()
    assert list(found.totals("word_recall")["mean"]) == [0.375, 0.125, 0.3125]
    lost, low, high = found.lost("without")
    assert lost == 0.5
    assert low < 0.5 < high
    assert found.lost("without", "control")[0] == 0.375
    assert found.lost("control")[0] == 0.125


def test_no_interval_reaches_beyond_what_is_possible():
    found = made([1, 0.9], [0, 1], [[1, 0.1]])
    assert found.totals().loc[1, ["low", "high"]].tolist() == [0, 1]
    assert found.lost("without")[1:] == (-1, 1)


def test_the_difference_is_of_equal_tests():
    found = made([1, 0, 1, 0] * 4, [0.8, -0.2, 0.8, -0.2] * 4, [[1, 0, 1, 0] * 4])
    assert found.lost("without") == pytest.approx((0.2, 0.2, 0.2))  # every test loses as much, however unequal the tests are


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (made([1] * 6, [0] * 6, [[1] * 6]), "Recall is 1.00 with all heads and 0.00 without the 2 chosen ones: 1.00 less (95%: 1.00 to 1.00)."),
        (made([1] * 6, [0] * 6, [[1] * 6]), "Without 2 others of the same layers it is 1.00: what was chosen costs 1.00 more (95%: 1.00 to 1.00)"),
        (made([1] * 6, [0] * 6, [[1] * 6]), "the scatter of the tests does not explain"),
        (made([1] * 4, [0, 1, 0, 1], [[1, 0, 1, 0]]), "the scatter of the tests may explain"),
        (made([0] * 4, [0] * 4, [[1] * 4]), "answers none of the tests, so that nothing can be lost"),
        (made([1], [0], []), "Recall is 1.00 with all heads and 0.00 without the 2 chosen ones: 1.00 less."),
    ],
)
def test_the_verdict_says_what_the_numbers_say(found, said):
    assert said in found.verdict()


def test_what_is_saved_comes_back_and_what_is_broken_is_told(tmp_path):
    found = made([1, 0.25], [0, 0], [[1, 1]])
    files = found.save(tmp_path / "needle.csv")
    again = Recall.load(tmp_path / "needle.csv")
    pd.testing.assert_frame_equal(again.tests, found.tests)
    assert again.provenance == {"name": "m", "kind": "zero"}
    files["tests"].write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"no table of needle tests: it has no .*depth"):
        Recall.load(tmp_path / "needle.csv")
    files["provenance"].unlink()
    with pytest.raises(InputError, match="cannot read the needle tests"):
        Recall.load(tmp_path / "needle.csv")


def test_heads_are_named_by_number_by_label_and_one_by_one():
    card = tiny.random_model("llama").card
    scores = {"retrieval": np.arange(12.0).reshape(2, 6), "other": -np.arange(12.0).reshape(2, 6)}
    labels = HeadLabels(card, {Head(0, 3): ("induction",), Head(1, 0): ("induction",)}, scores, {"retrieval": RULES["retrieval"]})
    assert chosen(labels, "2") == (Head(1, 5), Head(1, 4))
    assert chosen(labels, "2", "other") == (Head(0, 0), Head(0, 1))
    assert chosen(labels, "induction") == (Head(0, 3), Head(1, 0))
    assert chosen(labels, "L1H2, L0H1,L1H2") == (Head(1, 2), Head(0, 1))
    for wrong, said in (("0", "takes 0 of 12"), ("12", "takes 12 of 12"), ("retrieval", "takes 0 of 12"), ("L9H0", "L9H0"), ("nobody", "nobody"), ("", "''")):
        with pytest.raises(InputError, match=said):
            chosen(labels, wrong)
    with pytest.raises(InputError, match="unknown probe 'none'"):
        chosen(labels, "2", "none")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"kind": "none"}, "unknown kind of ablation 'none'"), ({"draws": -1}, "no negative number of draws"), ({"answer_tokens": 0}, "one token of an answer")],
)
def test_a_setting_that_makes_no_sense_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        Setting(**change)


def test_a_prompt_longer_than_the_context_is_a_sentence(model, tests):
    with pytest.raises(InputError, match="a test of 60 tokens with an answer of 69 is longer than the context of compiled-induction, 128 tokens"):
        measure(model, [INDUCTION], Setting(tests, answer_tokens=69))


def test_the_committed_report_says_what_its_text_says():
    text = REPORT.with_suffix(".md").read_text(encoding="utf-8")
    for kind in recall.PHASES:
        found = of_benchmark(REPORT, kind)
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {kind} |") and "strongest" in line]
        (other,) = [line for line in text.splitlines() if line.startswith(f"| {kind} |") and "random" in line]
        means = found.totals("word_recall").set_index("variant")
        assert f"{means.loc['without', 'mean']:.3f}" == line.split("|")[4].strip()
        assert [f"{means.loc['control', name]:.3f}" for name in ("mean", "least", "most")] == [part.strip() for part in other.split("|")[4:7]]
        assert f"{means.loc['full', 'mean']:.3f}" == "0.723"
        assert found.grid("full").shape == (3, 5)
        assert (found.totals("recall")["mean"] < means["mean"].to_numpy()).all()  # words of the question do not count
        assert len(found.heads) == 10
        assert "45 tests" in found.provenance["report"]
        assert found.provenance["made"].startswith("Made by")
    with pytest.raises(InputError, match="cannot read the report"):
        of_benchmark(REPORT.with_name("none.csv"), "zero")


def test_the_maps_show_the_grids_and_the_totals_the_intervals():
    found = made([1, 0.5, 1, 0.5], [0, 0, 0.5, 0.5], [[1, 0.5, 0.5, 0], [1, 0.5, 1, 0.5]])
    maps = views.recall_figure(found)
    for trace, variant in zip(maps.data, ("full", "without", "control"), strict=True):
        np.testing.assert_array_equal(trace.z, found.grid(variant))
        assert (trace.x, trace.y, trace.zmin, trace.zmax) == (("100", "200"), ("0", "0.5"), 0, 1)
    one = views.recall_map(found, "control", "word_recall")
    np.testing.assert_array_equal(one.data[0].z, found.grid("control", "word_recall"))
    dots = {trace.y[0]: trace for trace in views.recall_totals(found).data if trace.error_x.array is not None}
    assert [trace.x[0] for trace in dots.values()] == [0.75, 0.25, 0.625]
    row = found.totals().iloc[1]
    assert dots["without the chosen heads"].error_x.array[0] == pytest.approx(row["high"] - row["mean"])
    assert dots["without the chosen heads"].error_x.arrayminus[0] == pytest.approx(row["mean"] - row["low"])
    assert list(views.recall_totals(found).data[-1].x) == [0.5, 0.75]


def test_the_cost_is_told_beforehand(model, tests):
    setting = Setting(tests, draws=2, answer_tokens=4)
    assert len(setting.answers(model)) == 8 * 4
    cost = plan.of_recall(model, setting)
    assert cost.forwards == 8 * 4 * (1 + 4)
    assert cost.tokens == 4 * sum(length + 4 for length in setting.tests.lengths(model))
    with pytest.raises(InputError, match="longer than the context"):
        plan.of_recall(model, Setting(tests, answer_tokens=69))


def test_the_command_writes_tests_maps_and_what_made_them(model, hay, tmp_path, monkeypatch):
    scores = np.zeros((2, 4))
    scores[INDUCTION.layer, INDUCTION.index] = 1
    HeadLabels(model.card, {}, {"retrieval": scores}, {"retrieval": RULES["retrieval"]}).save(tmp_path / "heads.json")
    monkeypatch.setattr("workbench.models.load", lambda *_, **__: model)
    options = ["--ablate", "1", "--lengths", "40", "--depths", "0.1,0.9", "--draws", "1", "--needles", hay / "needles.jsonl", "--haystack", hay / "hay.txt"]
    command = ["needle", tmp_path / "heads.json", *options, "--out", tmp_path / "needle.csv", "--runs", tmp_path / "runs"]
    ran = CliRunner().invoke(app, [*map(str, command), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert [row["mean"] for row in said["totals"]] == [1, 0, 1]
    assert said["provenance"]["edits"][0]["heads"] == [str(INDUCTION)]
    assert Recall.load(tmp_path / "needle.csv").heads == (INDUCTION,)
    assert "without the chosen heads" in (tmp_path / "needle.html").read_text(encoding="utf-8")
    ran = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert "what was chosen costs 1.00 more" in ran.stdout
    refused = CliRunner().invoke(app, [*map(str, command[:-4]), "--out", str(tmp_path / "needle.txt")])
    assert refused.exit_code == 2
    assert "--out is a .csv file" in refused.stderr


def test_no_title_of_three_maps_is_wider_than_its_map_in_600_pixels():
    figure = views.recall_figure(made([1, 0.5, 1, 0.5], [0, 0, 0.5, 0.5], [[1, 0.5, 0.5, 0], [1, 0.5, 1, 0.5]]))
    lines = [line for note in figure.layout.annotations for line in note.text.split("<br>")]
    assert len(lines) > 3
    assert max(map(len, lines)) <= 22  # of 13 pixels each at most 7 wide
    assert max(map(len, figure.layout.title.text.replace("<sub>", "").replace("</sub>", "").split("<br>"))) <= 76
    assert [axis.title.text for axis in figure.select_xaxes() if axis.title.text] == ["length of the text, tokens"]
