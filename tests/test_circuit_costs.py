"""Does the benchmark of circuit methods run, from the command line to the report, and does it refuse where effects are wrong? On a random model."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from test_patching import data

from workbench.circuits.effects import Effects
from workbench.tiny import random_model

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import circuits


@pytest.fixture
def run(tmp_path, monkeypatch):
    model = random_model("llama")
    monkeypatch.setattr(circuits, "load", lambda *_args, **_more: model)
    monkeypatch.setattr(circuits, "prompts", lambda *_args: data(batch=6))
    monkeypatch.setattr(sys, "argv", ["circuits.py", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)])
    return circuits.main


def test_costs_stand_beside_the_loops(run, tmp_path):
    run()
    rows, report = pd.read_csv(tmp_path / "circuits_cpu.csv"), (tmp_path / "circuits_cpu.md").read_text(encoding="utf-8")
    assert set(rows["method"]) == {circuits.LOOP, *circuits.methods_of(random_model("llama"), data(batch=6))}
    assert len(rows) == 2 * rows["method"].nunique()
    assert (rows["s"] > 0).all()
    assert {"device", "torch", "transformer_lens", "seed"} <= set(rows.columns)
    assert "the effects of all 12 heads are the loop's" in report
    assert report.count(": met |") + report.count(": missed |") == 6


@pytest.mark.parametrize("positions", [None, [-1]])
def test_wrong_effects_are_not_timed(run, tmp_path, monkeypatch, positions):
    right = circuits.activation_patching

    def wrong(model, task, positions=None):
        found = right(model, task, positions=positions)
        return Effects(found.effect_NLH + (0.01 if positions == wrong_at else 0), found.base_N, found.other_N, facts=found.facts)

    wrong_at = positions
    monkeypatch.setattr(circuits, "activation_patching", wrong)
    with pytest.raises(SystemExit, match="no speed is reported, as a check failed: patching"):
        run()
    assert not list(tmp_path.iterdir())


def test_verdicts():
    median = {circuits.LOOP: 20.0, circuits.ALL: 10.0, circuits.LAST: 2.0, circuits.PATHS: 16.0, circuits.FORWARD: 0.1, circuits.CODES: 9.0}
    assert circuits.verdict(circuits.ALL, "cpu", median) == "2.00 × faster than the loop ≥ 1.7: met"
    assert circuits.verdict(circuits.ALL, "cuda", median) == "2.00 × faster than the loop ≥ 50: missed"
    assert circuits.verdict(circuits.PATHS, "cpu", median) == "1.60 × patching there ≤ 1.5: missed"
    assert circuits.verdict(circuits.CODES, "cpu", median) == "9.00 s ≤ 10: met"
    assert circuits.verdict(circuits.LAST, "cuda", median) == ""
