"""Do the commands behind the page Circuits write what the package finds, and is it read back? On models whose circuits are known."""

import json

import made_models
import numpy as np
import pandas as pd
import pytest
from test_ph3 import READS, REMEMBERS, clashes, toy
from typer.testing import CliRunner

from workbench.circuits import pruning_curve
from workbench.circuits.coded import Coded, coded
from workbench.circuits.compiled_ioi import MOVERS, ioi_model
from workbench.circuits.patch_question import Patched, PatchQuestion, patched
from workbench.circuits.paths import path_patching
from workbench.circuits.pruned import Pruned, prune
from workbench.circuits.sides import SCORES
from workbench.circuits.tasks import prepare
from workbench.cli import app
from workbench.errors import InputError
from workbench.labels import HeadLabels


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Models by their names, the task of names, and a folder to write into."""
    models = {"compiled": ioi_model(20), "toy": toy()}
    monkeypatch.setattr("workbench.models.load", lambda name, **_: models[name])
    monkeypatch.setattr("workbench.circuits.tasks.TASKS", made_models.WITH_NAMES)
    monkeypatch.setattr("workbench.circuits.pruning_curve.prepare", made_models.prepared)
    monkeypatch.chdir(tmp_path)
    return models


def run(*arguments):
    return CliRunner().invoke(app, ["circuit", *map(str, arguments)])


def told(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


def test_patching_is_written_prompt_by_prompt(made):
    said = told("patch", "--model", "compiled", "--task", "names", "--receiver", "L2H1.q", "--prompts", 4)
    found = Patched.load("patched.json")
    direct = patched(made["compiled"], PatchQuestion(task="names", receiver="L2H1.q", prompts=4))
    np.testing.assert_array_equal(found.effects.effect_NLH, direct.effects.effect_NLH)
    assert np.isnan(found.value_LH[2:]).all()  # no paths upwards
    assert (found.question, found.facts, found.card) == (direct.question, direct.facts, made["compiled"].card)
    pd.testing.assert_frame_equal(found.table, direct.table)
    assert [row["head"] for row in said["table"]] == list(pd.read_csv("patched.csv")["head"]) == list(found.table["head"])
    told("patch", "--model", "compiled", "--task", "names", "--kind", "activation", "--component", "q", "--out", "q.json")
    assert Patched.load("q.json").table.set_index("head").loc[str(MOVERS[0]), "effect"] < -1
    page = run("patch", "--model", "compiled", "--task", "names")
    assert "each head's direct path to logits is replaced" in page.stdout
    assert "Shades" not in page.stdout


def test_progress_of_paths_rises_to_all_senders(made):
    seen, model = [], made["compiled"]
    path_patching(model, prepare(model, "names", 6), progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert {total % (model.shape.n_layers * model.shape.n_heads) for _, total in seen} == {0}


def test_codes_are_written_with_their_controls(made):
    said = told("codes", "--model", "compiled", "--task", "names", "--prompts", 8, "--out", "mine.json")
    found, model = Coded.load("mine.json"), made["compiled"]
    direct = coded(model, prepare(model, "names", 8))
    pd.testing.assert_frame_equal(found.table, direct.table, check_dtype=False)
    assert (found.card, found.task, found.seed, found.pairs, found.loss) == (model.card, "names", 0, 8, direct.loss)
    assert said["pairs"] == len(prepare(model, "names", 8))
    for name, agreed in direct.agreement.items():
        assert found.agreement[name] == pytest.approx(agreed, nan_ok=True)
    assert list(pd.read_csv("mine.csv")["head"]) == list(found.table["head"])


def ph3_file(model, memory, context):
    """A labels file as `workbench ph3` writes it, in which two heads have a side."""
    scores = {name: np.zeros((model.shape.n_layers, model.shape.n_heads)) for name in SCORES.values()}
    for side, head in (("memory", memory), ("context", context)):
        scores[SCORES[side]][head.layer, head.index] = 1.0
    return HeadLabels(model.card, {}, scores).save("ph3.json")


def test_pruning_tells_both_sides_at_once(made):
    said = told("prune", "--model", "toy", "--items", 6)
    found, model = Pruned.load("pruned.json"), made["toy"]
    assert found.now
    assert (said["origin"], said["items"], said["measured"]) == (found.origin, 6, True)
    assert found.items == clashes(6).items
    assert (found.sides.ranked("memory")[0], found.sides.ranked("context")[0]) == (REMEMBERS, READS)
    for side, head in (("memory", REMEMBERS), ("context", READS)):
        curve = found.curves[side]
        pd.testing.assert_frame_equal(curve, pruning_curve.pruning_curve(model, clashes(6), found.sides.ranked(side)), check_dtype=False)
        other = "context" if side == "memory" else "memory"
        assert curve.loc[1, other] == 1, head
    assert set(pd.read_csv("pruned.csv")["pruned"]) == {"memory", "context"}


def test_heads_are_pruned_in_the_order_of_a_file_unless_they_are_measured(made):
    path = ph3_file(made["toy"], READS, REMEMBERS)  # the wrong way round
    told("prune", "--model", "toy", "--items", 6, "--labels", path)
    found = Pruned.load("pruned.json")
    assert not found.now
    assert found.sides.ranked("memory") == [READS]
    assert found.curves["memory"]["memory"].tolist() == [1, 1]
    told("prune", "--model", "toy", "--items", 6, "--labels", path, "--measure")
    found = Pruned.load("pruned.json")
    assert found.now
    assert found.sides.ranked("memory")[0] == REMEMBERS
    assert found.curves["memory"]["memory"].tolist()[:2] == [1, 0]


def test_parts_of_the_work_are_told_in_order(made):
    seen = []
    prune(made["toy"], "capital", 4, told=lambda *at: seen.append(at))
    assert [done for _, done, _ in seen] == [0, 1, 2, 3, 4]
    assert {total for *_, total in seen} == {4}


def test_what_cannot_be_used_is_refused(made, tmp_path):
    for command in ("patch", "codes", "prune"):
        assert "--out takes a .json file, got x.csv" in refused(command, "--out", "x.csv")
    assert "no receiver" in refused("patch", "--model", "compiled", "--task", "names", "--receiver", "the end")
    assert "1 to 64 prompts" in refused("patch", "--prompts", 65)
    assert "is to be trained on" in refused("codes", "--model", "compiled", "--task", "names", "--prompts", 2)
    HeadLabels(made["toy"].card, {}, {"retrieval": np.zeros((1, 4))}).save("heads.json")
    assert "no scores of memory and context" in refused("prune", "--model", "toy", "--labels", "heads.json")
    ph3_file(made["toy"], REMEMBERS, READS)
    assert "were made for" in refused("prune", "--model", "compiled", "--labels", "ph3.json")
    told("codes", "--model", "compiled", "--task", "names", "--prompts", 8)
    for name, content in {"missing.json": None, "text.json": "no", "list.json": "[]"}.items():
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=f"cannot read {name}"):
            Patched.load(name)
    with pytest.raises(InputError, match=r"codes\.json is none of workbench\.patching/1"):
        Patched.load("codes.json")
