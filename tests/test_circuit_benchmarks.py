"""Do the benchmarks of circuits on real models run, from the command line to the report? On the compiled model, with its prompts as files."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from workbench.circuits.compiled_ioi import ioi_model
from workbench.circuits.finding import METHODS
from workbench.circuits.name_prompts import name_pairs
from workbench.labels import HeadLabels

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import circuit_methods
import circuit_reuse
import circuit_reuse_prompts


@pytest.fixture
def run(tmp_path, monkeypatch):
    model = ioi_model(5.0, 0.001)

    def call(module, *arguments):
        monkeypatch.setattr(module, "load", lambda *_args, **_more: model)
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments), "--out", str(tmp_path / "out")])
        module.main()
        return (tmp_path / "out.md").read_text(encoding="utf-8"), pd.read_csv(tmp_path / "out.csv")

    call.model, call.folder = model, tmp_path
    return call


def lines(folder, name, seed, turned=False):
    """Prompts of the compiled model as a file, of six templates; `turned`, with right and wrong exchanged."""
    path = folder / f"{name}.jsonl"
    rows = []
    for number, item in enumerate(name_pairs(40, seed).items):
        right, wrong = (item.wrong, item.right) if turned else (item.right, item.wrong)
        rows.append({"clean": item.clean, "corrupted": item.corrupted, "right": list(right), "wrong": list(wrong), "template": f"{item.template}{number % 3}"})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_methods_are_compared_on_held_out_templates(run):
    task = lines(run.folder, "first", 0)
    text, rows = run(circuit_methods, "--task", task, "--items", 8, "--held-out", 8, "--seeds", 1, "--top", 8, "--sample", 8)
    assert str(run.folder) not in text
    assert {*METHODS, *circuit_methods.CONTROLS} <= set(rows[rows["part"] == "agreement"]["method"])
    value = rows.set_index(["part", "method", "measure"])["value"]
    assert float(value["agreement", "patching", "spearman"]) == pytest.approx(1)
    assert float(value["faithfulness, resample", "patching", "20"]) == pytest.approx(1, abs=0.05)
    assert float(value["head curve", "patching", "cpr"]) > float(value["head curve", "norm", "cpr"])
    assert {"cpr", "cmd", "missed rate", "top: spearman"} <= set(rows[rows["part"] == "edges"]["measure"])
    assert float(value["held out", "full model", "accuracy"]) == 1


def test_reuse_is_told_with_ceilings_transfer_roles_and_refusals(run, monkeypatch):
    monkeypatch.setattr(circuit_reuse_prompts, "haystack_text", lambda _: (" ".join(["Ann and Bob gave the one to there then later a Carl"] * 300), ""))
    tasks = [lines(run.folder, "first", 0), lines(run.folder, "second", 1), lines(run.folder, "wrong", 1, turned=True)]
    given = dict.fromkeys(run.model.shape.heads(), ("induction",))
    labels = HeadLabels(run.model.card, given, {}).save(run.folder / "heads.json")
    text, pairs = run(circuit_reuse, "--tasks", *tasks, "--items", 16, "--draws", 10, "--randoms", 2, "--labels", labels)
    assert "refused: no better than chance" in text
    assert "Not done: ioi and colored_objects" in text
    assert str(run.folder) not in text
    assert set(pairs["budget"]) == {0.02, 0.05, 0.1}
    assert (pairs["first_task"] + pairs["second_task"] == "firstsecond").all()
    assert (pairs["jaccard"] == 1).all()
    cross = pd.read_csv(run.folder / "out.transfer.csv")
    assert len(cross) == 4 * 3 * 2
    assert cross["value"].notna().all()
    heads = pd.read_csv(run.folder / "out.heads.csv")
    assert len(heads) == 24
    assert set(heads["labels"]) == {"induction"}
