"""Do the numbers behind the page Circuits hold: patching asked as data, codes beside controls, methods summed up, memory and context heads, and pruning?"""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_ph3 import IDLE, READS, REMEMBERS, clashes, toy

from workbench.circuits import compared, pruning_curve, sides
from workbench.circuits.coded import coded
from workbench.circuits.codes import CodeSettings, encode
from workbench.circuits.compiled_ioi import BACKUP, MOVERS, NEGATIVE, ioi_model
from workbench.circuits.effects import Effects
from workbench.circuits.finding import residual_means
from workbench.circuits.name_prompts import name_pairs
from workbench.circuits.patch_question import Patched, PatchQuestion, patched
from workbench.circuits.ph3 import importance
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.tiny import random_model

REPORTS = Path(__file__).resolve().parent.parent / "reports"
DIRECT = {MOVERS[0]: -4.0, MOVERS[1]: -3.0, NEGATIVE: 2.0, BACKUP: 0.0}
"""What is lost at the logits when a head's direct path is replaced, where attention is hard: what it writes, its gain."""


def raw(path, **equal):
    """The rows of a CSV file that have these values."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[name] == value for name, value in equal.items())]


@pytest.fixture(scope="module")
def model():
    return ioi_model(20)


@pytest.fixture
def names(monkeypatch):
    """Prompts of the compiled model, in place of a task's."""
    monkeypatch.setattr("workbench.circuits.patch_question.prepare", lambda model, task, count, seed: name_pairs(count, seed))


@pytest.mark.usefixtures("names")
def test_direct_paths_to_the_logits_are_what_movers_write(model):
    found = patched(model, PatchQuestion(prompts=8))
    for head in model.shape.heads():
        assert found.value_LH[head.layer, head.index] == pytest.approx(DIRECT.get(head, 0.0), abs=0.03), head
    assert found.facts["receiver"] == "logits"
    assert found.facts["clean"] == pytest.approx(5, abs=0.02)
    assert found.facts["corrupted"] == pytest.approx(0, abs=1e-4)
    back = patched(model, PatchQuestion(prompts=8, direction="denoising"))
    assert (back.facts["clean"], back.facts["corrupted"]) == pytest.approx((found.facts["clean"], found.facts["corrupted"]))


@pytest.mark.usefixtures("names")
def test_a_receiver_has_no_senders_above_it(model):
    found = patched(model, PatchQuestion(prompts=4, receiver="L2H1.q"))
    assert np.isnan(found.value_LH[2:]).all()
    assert np.isfinite(found.value_LH[:2]).all()
    both = patched(model, PatchQuestion(prompts=4, receiver="L2H1.q + L2H3.q"))
    assert both.facts["receiver"] == "L2H1.q+L2H3.q"
    with pytest.raises(InputError, match="no receiver"):
        patched(model, PatchQuestion(receiver="the end"))
    with pytest.raises(InputError, match="no head L9H0"):
        patched(model, PatchQuestion(receiver="L9H0.q"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kind": "x"}, "kind of patching"),
        ({"task": "x"}, "task"),
        ({"task": "ioi:x=y"}, "option"),
        ({"ablation": "x"}, "ablation"),
        ({"kind": "activation", "component": "x"}, "component"),
        ({"direction": "x"}, "direction"),
        ({"positions": "x"}, "positions"),
        ({"metric": "x"}, "metric"),
        ({"prompts": 0}, "1 to 64"),
        ({"prompts": 65}, "1 to 64"),
    ],
)
def test_what_cannot_be_asked_is_refused(given, named):
    with pytest.raises(InputError, match=named):
        PatchQuestion(**given)


def test_the_heads_of_a_group_share_its_effect():
    shape = random_model("llama").shape
    effects = Effects(np.arange(4.0).reshape(1, 2, 2), np.zeros(1), np.ones(1), shape.group)
    found = Patched(PatchQuestion(), random_model("llama").card, effects, {})
    np.testing.assert_array_equal(found.value_LH, [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]])


def test_codes_are_counted_beside_their_controls(model):
    data = name_pairs(10)
    found = coded(model, data)
    write_NLHD, clean_N = residual_means(model, data)
    codes = encode(write_NLHD, clean_N, CodeSettings(seed=0)).code_NLH
    rows = found.table.set_index("head")
    for head in model.shape.heads():
        clean, corrupted = (set(codes[which, head.layer, head.index].tolist()) for which in (clean_N, ~clean_N))
        lengths = [np.sqrt((write**2).sum()) for write in write_NLHD[:, head.layer, head.index]]
        row = rows.loc[str(head)]
        assert row["codes"] == len(clean - corrupted) == found.matrix("codes")[head.layer, head.index]
        assert row["distinct"] == len(clean | corrupted)
        assert row["norm"] == pytest.approx(np.mean(lengths), rel=1e-5)
        assert 1 / 201 <= row["p"] <= row["q"] <= 1
    assert found.pairs == 10
    assert set(found.agreement) == {"excess", "norm", "distinct"}


def test_recovery_is_the_mean_over_seeds():
    path = REPORTS / "compiled_ioi" / "methods.csv"
    methods = compared.parse(path.read_bytes(), path.name, ("what", "method"))
    assert (5.0, 0.001) in compared.settings(methods)["heads"]
    table = compared.recovery(methods, "heads", 5.0, 0.001).set_index("method")
    auroc = [float(row["auroc"]) for row in raw(path, what="heads", beta="5", leak="0.001", method="attribution")]
    assert len(auroc) == 5
    assert table.loc["attribution", "auroc"] == pytest.approx(sum(auroc) / 5)
    assert table.loc["attribution", "auroc_sd"] == pytest.approx((sum((value - sum(auroc) / 5) ** 2 for value in auroc) / 4) ** 0.5)
    assert table.loc["attribution", "seeds"] == 5
    assert table["average_precision"].is_monotonic_decreasing
    assert "f1" not in compared.recovery(methods, "edges", 5.0, 0.001)
    with pytest.raises(InputError, match="no heads"):
        compared.recovery(methods, "heads", 7.0, 0.0)


def test_faithfulness_is_summed_up_over_seeds():
    circuits = pd.DataFrame({
        "seed": [0, 1, 0, 0],
        "part": ["faithfulness, mean", "faithfulness, mean", "heads", "head curve"],
        "method": ["a", "a", "a", "a"],
        "measure": ["5", "5", "first", "cpr"],
        "value": ["0.4", "0.8", "L0H0", "0.5"],
        "low": [0.1, 0.7, np.nan, np.nan],
        "high": [0.6, 0.9, np.nan, np.nan],
    })  # fmt: skip
    assert compared.ablations(circuits) == ["mean"]
    (row,) = compared.kept(circuits, "mean").to_dict("records")
    assert row == {"method": "a", "heads": 5, "faithfulness": pytest.approx(0.6), "lowest": 0.1, "highest": 0.9, "seeds": 2}
    with pytest.raises(InputError, match="ablation"):
        compared.kept(circuits, "zero")
    bundled = compared.parse((REPORTS / "smollm2-135m" / "circuits_ioi.csv").read_bytes(), "circuits_ioi.csv", ("part",))
    cpr = [float(row["value"]) for row in raw(REPORTS / "smollm2-135m" / "circuits_ioi.csv", part="head curve", method="ig-inputs", measure="cpr")]
    assert compared.areas(bundled).set_index("method").loc["ig-inputs", "cpr"] == pytest.approx(sum(cpr) / len(cpr))


@pytest.mark.parametrize(("content", "named"), [(b"", "no table"), (b"\xff\xfe", "no table"), (b"a,b\n1,2\n", "no column part")])
def test_what_is_no_table_of_a_benchmark_is_refused(content, named):
    with pytest.raises(InputError, match=named):
        compared.parse(content, "x.csv", ("part",))


def test_ways_to_steer_are_means_over_seeds():
    conflicts = compared.parse((REPORTS / "smollm2-135m" / "ph3.csv").read_bytes(), "ph3.csv", ("way", "steer"))
    rows = compared.steered(conflicts, "context").set_index("way")
    seeds = raw(REPORTS / "smollm2-135m" / "ph3.csv", steer="context", way="pruned")
    assert rows.loc["pruned", "context"] == pytest.approx(sum(float(row["context"]) for row in seeds) / len(seeds))
    assert rows.loc["pruned", "context_low"] == min(float(row["context_low"]) for row in seeds)
    assert rows.loc["pruned", "context_high"] == max(float(row["context_high"]) for row in seeds)
    assert rows["seeds"].eq(len(seeds)).all()
    with pytest.raises(InputError, match="side"):
        compared.steered(conflicts, "x")


def test_each_answer_owes_to_its_own_head():
    model, data = toy(), clashes(16)
    found = pruning_curve.measured(model, data)
    assert found.ranked("memory")[0] == REMEMBERS
    assert found.ranked("context")[0] == READS
    difference_LH = found.memory_LH - found.context_LH
    np.testing.assert_allclose(difference_LH, -importance(model, data).mean_LH, atol=1e-5)  # the log-probabilities' difference is the logits'
    assert difference_LH[0] == pytest.approx([0, 3, -2, 0], abs=1e-3)
    assert found.memory_LH[0, REMEMBERS.index] == pytest.approx(3, abs=1e-3)  # another answer is raised as much as this one was: context keeps its share
    assert found.context_LH[0, REMEMBERS.index] == pytest.approx(0, abs=1e-6)
    table = found.table.set_index("head")
    assert table.loc[str(REMEMBERS), "side"] == "memory"
    assert table.loc[str(IDLE), "memory"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="side"):
        found.ranked("other")


def test_answers_turn_as_heads_are_pruned():
    model, data = toy(), clashes(12)
    curve = pruning_curve.pruning_curve(model, data, [IDLE, REMEMBERS, READS], most=2)
    assert curve["heads"].tolist() == [0, 1, 2]
    assert curve["memory"].tolist() == [1, 1, 0]
    assert curve["context"].tolist() == [0, 0, 1]
    assert curve["clean"].tolist() == [1, 1, 0]
    assert curve["n"].eq(12).all()
    assert (curve["context_low"] <= curve["context"] + 1e-9).all()
    item = data.items[0]
    said = pruning_curve.answer(model, item, [REMEMBERS]).said
    assert said["whole"] == (item.right[0].strip(), "memory")
    assert said["without"] == (item.wrong[0].strip(), "context")
    assert pruning_curve.answer(model, item, [IDLE]).said["without"][1] == "memory"


def test_the_first_items_are_taken_across_lengths():
    data = clashes(6)
    assert pruning_curve.first(data, 4).items == data.items[:4]
    assert pruning_curve.first(data, 9).items == data.items
    with pytest.raises(InputError, match="at least one"):
        pruning_curve.first(data, 0)


def test_a_file_of_ph3_is_read():
    labels = HeadLabels.load(REPORTS / "smollm2-135m" / "ph3.json")
    found = sides.from_labels(labels)
    assert found is not None
    assert {*found.ranked("memory")[:5]} == {*labels.heads("memory")}
    assert found.found == {"memory": 5, "context": 3}
    assert found.provenance["seed"] == 0
    assert sides.from_labels(HeadLabels(labels.card, {}, {"retrieval": np.zeros((30, 9))})) is None
    merged = HeadLabels(labels.card, labels.labels, labels.scores, labels.rules, labels.evidence, {"ph3": {"task": "mine"}})
    assert sides.from_labels(merged).provenance == {"task": "mine"}


@pytest.mark.model
def test_what_the_report_measured_is_measured_again(smollm2):
    """The conflicts that the search kept for its test, and the memory heads of the file: the rates of ph3.csv."""
    found = sides.from_labels(HeadLabels.load(REPORTS / "smollm2-135m" / "ph3.json"))
    data, told = pruning_curve.conflicts_of(smollm2, "capital", 32, found.provenance)
    assert told == "kept out of the search"
    curve = pruning_curve.pruning_curve(smollm2, data, found.ranked("memory"), most=5)
    report = pd.read_csv(REPORTS / "smollm2-135m" / "ph3.csv")
    report = report[(report["seed"] == 0) & (report["steer"] == "context")].set_index("way")
    for row, way in ((0, "none"), (5, "pruned")):
        assert curve.loc[row, "heads"] == report.loc[way, "heads"]
        for rate in ("memory", "context", "other", "clean"):
            assert curve.loc[row, rate] == pytest.approx(report.loc[way, rate], abs=1e-9), (way, rate)
    other, told = pruning_curve.conflicts_of(smollm2, "language", 4, found.provenance)
    assert (len(other), told) == (4, "of another relation than the search's, capital")
    assert pruning_curve.answer(smollm2, other.items[0], [Head(0, 0)]).said["whole"][1] in ("memory", "context", "other")
