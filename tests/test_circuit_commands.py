"""The commands for circuits, from files to files, on a tiny model and a task of the user's own."""

import json

import networkx as nx
import numpy as np
import pytest
from typer.testing import CliRunner

from workbench.circuits.circuit import Circuit
from workbench.circuits.tasks import TASKS
from workbench.cli import app
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.tiny import random_model


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-bytes"
    model = random_model("llama", num_hidden_layers=3)
    model.hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Letters that come again, answered by one letter."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("tasks") / "letters.jsonl"
    lines = []
    for number in range(12):
        letters = "".join(chr(97 + place) for place in rng.permutation(26)[:6])
        item = {"clean": letters + letters[:3], "corrupted": letters[::-1] + letters[:3], "right": [letters[3]], "wrong": [letters[2], letters[5]]}
        lines.append(json.dumps({**item, "template": "even" if number % 2 else "odd"}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def found(folder, task, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    HeadLabels(random_model("llama", num_hidden_layers=3).card, {Head(0, 0): ("other",)}, {}).save(out / "heads.json")
    how = ("--task", task, "-m", folder, "--items", 6, "--held-out", 6, "--size", 5, "--edges", 20, "--anyway", "--labels", out / "heads.json")
    result = run("circuit", "find", *how, "--out", out / "letters.json", "--json")
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_find_writes_a_circuit_a_picture_a_graph_and_labels(found):
    out, told = found
    circuit = Circuit.load(out / "letters.json")
    assert told["heads"] == [str(head) for head in circuit.heads]
    assert len(circuit.heads) == 5
    assert len(circuit.effects) == 18
    assert list(circuit.faithfulness["ablation"]) == ["resample", "mean", "zero"]
    assert circuit.provenance["templates"] == {"searched": 1, "held_out": 1}
    assert "plotly" in (out / "letters.html").read_text(encoding="utf-8")
    assert {str(head) for head in circuit.heads} <= set(nx.read_graphml(out / "letters.graphml").nodes)
    labels = HeadLabels.load(out / "heads.json")
    (name,) = [label for label in labels.counts() if label.startswith("circuit_")]
    assert set(labels.heads(name)) == set(circuit.heads)
    assert labels.heads("other") == (Head(0, 0),)


@pytest.mark.parametrize("method", ["path", "direct", "attribution", "ig-inputs", "ig-activations"])
def test_every_method_finds_something(method, folder, task, tmp_path):
    how = ("--task", task, "-m", folder, "--items", 6, "--held-out", 6, "--size", 3, "--edges", 0, "--anyway", "--method", method)
    result = run("circuit", "find", *how, "--out", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    assert "on held-out prompts" in result.stdout
    assert len(Circuit.load(tmp_path / "c.json").edges) == 0


def test_evaluate_compare_and_show(found, folder, task, tmp_path):
    out, _ = found
    result = run("circuit", "evaluate", out / "letters.json", "-m", folder, "--items", 8)
    assert result.exit_code == 0, result.output
    assert "resample" in result.stdout
    assert "complement_faithfulness" in result.stdout
    other = tmp_path / "other.json"
    how = ("--task", task, "-m", folder, "--items", 6, "--held-out", 6, "--size", 4, "--edges", 0, "--anyway", "--method", "direct")
    assert run("circuit", "find", *how, "--out", other).exit_code == 0
    pairs = json.loads(run("circuit", "compare", out / "letters.json", other, "--json").stdout)["pairs"]
    shared = set(Circuit.load(other).heads) & set(Circuit.load(out / "letters.json").heads)
    assert pairs[0]["jaccard"] == pytest.approx(len(shared) / (9 - len(shared)))
    shown = run("circuit", "show", other, "--html", tmp_path / "o.html", "--graphml", tmp_path / "o.graphml")
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "o.html").exists()


def test_tasks_are_listed():
    assert {row["task"] for row in json.loads(run("circuit", "tasks", "--json").stdout)["tasks"]} == set(TASKS)


def test_what_cannot_be_used_is_told_in_a_line(found, folder, task, tmp_path):
    out, _ = found
    assert "ioi" in refused("circuit", "find", "--task", "nothing", "-m", folder)
    assert "method" in refused("circuit", "find", "--task", task, "-m", folder, "--method", "x")
    assert "of several tokens" in refused("circuit", "find", "--task", "ioi", "-m", folder)
    assert ".json" in refused(
        "circuit", "find", "--task", task, "-m", folder, "--items", 6, "--held-out", 6, "--anyway", "--size", 2, "--edges", 0, "-o", tmp_path / "c.txt"
    )
    assert "two tasks" in refused("circuit", "compare", out / "letters.json")
    assert "is one of openai-community/gpt2" in refused("circuit", "compare", out / "letters.json", "--published", "ioi")
    assert "cannot read a circuit" in refused("circuit", "show", task)
    assert "no circuit" in refused("circuit", "show", out / "heads.json")
    uneven = tmp_path / "uneven.jsonl"
    uneven.write_text(json.dumps({"clean": "abcd", "corrupted": "abc", "right": ["x"], "wrong": ["y"]}), encoding="utf-8")
    assert "line 1" in refused("circuit", "find", "--task", uneven, "-m", folder)
    assert "side" in refused("ph3", "--steer", "x")
    HeadLabels(random_model("llama", num_hidden_layers=3).card, {Head(0, 0): ("memory",)}, {}).save(tmp_path / "m.json")
    made = run("generate", "abc", "--labels", tmp_path / "m.json", "-m", folder, "--prune", "memory", "--max-new-tokens", 3, "--json")
    assert json.loads(made.stdout)["pruned"] == ["L0H0"]
    assert "label" in refused("generate", "abc", "--labels", tmp_path / "m.json", "-m", folder, "--prune", "context")
    assert "--chunk" in refused("generate", "abc", "--labels", tmp_path / "m.json", "-m", folder, "--prune", "memory", "--chunk", 2)
    assert "--tensor-parallel" in refused("generate", "abc", "--labels", tmp_path / "m.json", "-m", folder, "--prune", "memory", "--tensor-parallel")
    assert "stdin" in refused("generate", "-", "--labels", tmp_path / "m.json", "-m", folder, "--tensor-parallel")
