"""Do the documents tell the truth? Their tables are those of the code, its examples run, what it names is there."""

import importlib.util
import re
import shlex
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest
import typer

import workbench as wb
from workbench import probes
from workbench.circuits.tasks import Item, Pairs, TaskSet
from workbench.cli import app
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.probes import PROBES, Probe, pattern_of
from workbench.tiny import random_model

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md")

each_document = pytest.mark.parametrize("name", DOCUMENTS)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands_of(group, before=()):
    """Every command by its words; those of a group by the group's and their own."""
    found = {}
    for name, command in group.commands.items():
        found |= commands_of(command, (*before, name)) if hasattr(command, "commands") else {(*before, name): command}
    return found


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def generator():
    """`scripts/docs` as a module."""
    loader = SourceFileLoader("docs_script", str(ROOT / "scripts" / "docs"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"In year {year} the river rose by {year * 7 % 91} feet." for year in range(300)), encoding="utf-8")
    return path


def test_the_tables_of_the_documents_are_up_to_date(generator):
    assert {name for names in generator.PLACES.values() for name in names} == set(generator.TABLES)
    for place, names in generator.PLACES.items():
        assert generator.renewed(read(place), names) == read(place), "run .venv/bin/python scripts/docs"


def test_a_missing_marker_is_no_silence(generator):
    with pytest.raises(ValueError, match="pair of markers <!-- rules -->"):
        generator.renewed(read("docs/reference/tables.md").replace("<!-- /rules -->", ""), ["rules"])


def test_the_python_example_of_a_capture_runs(monkeypatch):
    _, example, *_ = blocks(read("README.md"), "python")
    monkeypatch.setattr(wb, "load", lambda name: {"smollm2-135m": random_model("llama")}[name])
    names = {}
    exec(example, names)
    seen, (peak, received) = names["seen"], (names["Peak"](), names["Received"]())
    assert seen[peak].key.shape[:3] == seen[received].shape[:3] == (1, 2, 6)
    assert seen.provenance["implementation"] == "torch"


def test_the_python_example_runs(tmp_path, monkeypatch, text):
    example, *_ = blocks(read("README.md"), "python")
    assert all(line.strip() in wb.__doc__ for line in example.splitlines())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wb, "load", lambda name: {"smollm2-135m": random_model("llama")}[name])
    monkeypatch.setattr(wb, "score", partial(wb.score, options=wb.Options(lengths=(450,), depths=(0.5,), haystack=text)))
    names = {}
    exec(example, names)
    assert list(HeadLabels.load("heads.json").labels) == list(names["labels"].labels)
    assert names["scores"].evidence.keys() == {"induction", "retrieval"}
    assert names["scores"].matrix("induction").shape == (2, 6)
    assert len(names["scores"].top(5, "induction")) == 5
    assert set(names["scores"].table.columns) >= {"model", "layer", "head", "probe", "score"}
    assert isinstance(names["labels"].heads("induction"), tuple)


def test_the_python_example_of_a_policy_runs(tmp_path, monkeypatch):
    _, _, example, _ = blocks(read("README.md"), "python")
    model = random_model("llama")
    HeadLabels(model.card, {Head(0, 4): ("retrieval",)}, {}).save(tmp_path / "heads.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wb, "load", lambda name: {"smollm2-135m": model}[name])
    names = {}
    exec(example, names)
    assert names["tokens"].shape[1] == len("The sky is") + 1 + 8  # bytes, and the one that begins


def test_the_python_example_of_circuits_runs(monkeypatch):
    *_, example = blocks(read("README.md"), "python")
    model = random_model("llama", num_hidden_layers=24)
    ids = np.random.default_rng(0).integers(3, 250, (2, 4, 7))
    items = tuple(Item(str(number), "b", (" c",), (" d",)) for number in range(4))
    pairs = Pairs("ioi", "logit_difference", items, *ids, ((5,),) * 4, ((6,),) * 4)
    monkeypatch.setattr(wb, "load", lambda name: {"smollm2-135m": model}[name])
    monkeypatch.setattr("workbench.circuits.tasks.prepare", lambda *_: TaskSet("ioi", (pairs,), {}, 0))
    names = {}
    exec(example, names)
    assert names["effects"].effect_NLH.shape == (4, 24, 6)
    assert {str(receiver) for receiver in names["paths"]} == {"logits", "L23H3.q"}


def test_every_command_line_of_the_documents_would_be_understood():
    commands = commands_of(typer.main.get_command(app))
    lines = [line for name in DOCUMENTS for block in blocks(read(name), "sh") for line in block.splitlines()]
    lines += [code for name in DOCUMENTS for code in re.findall(r"`(?:\.venv/bin/)?(workbench [^`]+)`", read(name))]
    asked = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("workbench ")]
    assert len(asked) > 10
    seen = set()
    for name, *arguments in asked:
        words = (name, arguments.pop(0)) if (name,) not in commands else (name,)
        commands[words].make_context(" ".join(words), arguments)
        seen.add(words)
    assert seen >= set(commands)


@each_document
def test_every_make_target_exists(name):
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", read(name), re.MULTILINE)) <= targets


@each_document
def test_every_link_and_path_leads_somewhere(name):
    linked = [target for target in re.findall(r"\]\(([^)#\s]+)\)", read(name)) if "://" not in target]
    named = re.findall(r"`((?:workbench|tests|scripts|benchmarks|reports)/[\w./-]+)`", read(name))
    assert not [target for target in linked + named if not (ROOT / target).exists() and target != "workbench/probes/self_attention.py"]


@pytest.fixture
def contributed(tmp_path, monkeypatch):
    """The probe of CONTRIBUTING.md, saved as it says and added to the registry."""
    (code,) = blocks(re.search(r"<!-- probe -->(.*)<!-- /probe -->", read("CONTRIBUTING.md"), re.DOTALL)[1], "python")
    (tmp_path / "self_attention.py").write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("workbench_example_probe", tmp_path / "self_attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module.PROBE, Probe)
    assert module.PROBE.name == "self_attention"
    assert module.PROBE.name not in PROBES
    assert len(module.PROBE.question) <= 160
    monkeypatch.setattr(probes, "PROBES", {**PROBES, module.PROBE.name: module.PROBE})
    return module.PROBE


def test_the_probe_of_contributing_scores_a_model(contributed, text):
    scores = wb.score(random_model("llama"), [contributed.name], options=wb.Options(haystack=text))
    assert scores.evidence[contributed.name]["status"] == "ok"
    assert ((scores.matrix(contributed.name) > 0) & (scores.matrix(contributed.name) < 1)).all()
    expected = np.mean([1 / row for row in range(2, 65)])
    np.testing.assert_allclose(scores.matrix(contributed.name, "null"), expected, rtol=1e-5)


def test_the_probe_of_contributing_keeps_the_contracts(contributed):
    from workbench.given import from_patterns

    card = random_model("llama").card
    prompts = wb.Prompts(np.random.default_rng(0).integers(3, 250, (2, 200)))

    def scored(on, head):
        pattern = np.stack([head.ideal(prompts, b) for b in range(prompts.count)])[:, None, None]
        return float(on.score(from_patterns(card, prompts, pattern, on.reads, np.ones((2, 1, 1, 200, 1)))).mean())

    kind = type(contributed.recipe("quick"))
    others = [other for other in PROBES.values() if other.recipes and type(other.recipe("quick")) is kind]
    assert scored(contributed, contributed) == pytest.approx(1)
    assert {other.name for other in others if scored(other, contributed) >= 0.5} == set(contributed.also)
    assert not [other.name for other in others if scored(contributed, other) >= 0.5]
    lazy = pattern_of(prompts, lambda _: [0])[None, None, None].repeat(2, 0)
    assert contributed.score(from_patterns(card, prompts, lazy, contributed.reads)).max() < 0.01
