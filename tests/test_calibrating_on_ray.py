"""Does a calibration by two workers write the same files as this process, with a worker killed in the middle of each phase?"""

import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest
import ray
import torch
from test_calibration import EDIT, made, questions
from typer.testing import CliRunner

from workbench.calibration import Asked, Crew, Setting, calibrate, calibrate_by
from workbench.cli import app
from workbench.executors import Wanted
from workbench.executors.on_ray import OnRay
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.models import load
from workbench.sweeping.tasks import call_on

pytestmark = pytest.mark.slow
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests

SETTING = ("--examples", 24, "--held-out", 20, "--beta", 0.2, "--rule", "uniform", "--threshold", 1.5, "--layers", "0,1,2,3", "--screen", 0.9)
DEADLY = ("screening", "measuring heads, block 2 of 3", "held-out answers")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A model and a file of questions, as addresses."""
    folder = tmp_path_factory.mktemp("asked")
    model = made("llama", seed=11)
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    lines = [json.dumps({"prompt": one.prompt, "options": one.options, "answer": one.answer}) for one in questions(44, seed=5)]
    (folder / "letters.jsonl").write_text("\n".join(lines))
    return str(folder / "model"), str(folder / "letters.jsonl")


@pytest.fixture(autouse=True)
def one_thread():
    """As many as a worker has: bytes are the same for the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_command_writes_the_same_files(cluster, asked, tmp_path):
    model, task = asked
    found = {}
    for name, options in (("local", ()), ("ray", ("--executor", "ray", "--address", cluster.address))):
        out = tmp_path / f"{name}.json"
        said = CliRunner().invoke(app, ["calibrate", "--model", model, "--task", task, *map(str, SETTING), "--cpus-per-task", "1", "--out", str(out), *options])
        assert said.exit_code == 0, said.output
        labels = json.loads(out.read_text())
        (evidence,) = labels["evidence"].values()
        found[name] = labels, evidence.pop("cost"), *(out.with_suffix(f".{table}.csv").read_bytes() for table in ("heads", "heldout"))
        assert "measuring heads, block 1 of 1" in said.stderr
    (local, cost_here, *tables), (there, cost_there, *others) = found["local"], found["ray"]
    assert others == tables
    assert there == local
    assert any(head["labels"] for head in local["heads"])
    assert cost_there["passes"] == cost_here["passes"] > 0
    assert set(cost_there) == set(cost_here)
    assert all(cost_there[f"{part}_cpu_seconds"] > 0 for part in ("screening", "measuring", "held_out"))


def test_a_worker_that_is_killed_costs_its_task_alone(cluster, asked, tmp_path):
    model, task = asked
    how = {"asked": Asked((task,), 24, 20), "setting": Setting(EDIT, screen=0.9, layers=(0, 1, 2, 3), block=8), "seeds": (0,)}
    counted = {}
    with closing(OnRay(cluster.address)) as executor:

        def each(what, function, calls):
            counted[what] = len(calls)
            how = {"folder": str(tmp_path), "function": function}
            named = [{**how, "name": f"{what} {number}", "call": call, "deadly": what in DEADLY and call is calls[-1]} for number, call in enumerate(calls)]
            return call_on(executor, Wanted(model), what, killed_once, named, lambda *_: None)

        assert executor.room() == 2
        there = calibrate_by(Crew.there(each, executor.room), **how)
    here = calibrate(load(model), **how)
    assert there.search.table.to_csv() == here.search.table.to_csv()
    assert there.held_out.to_csv() == here.held_out.to_csv()
    assert there.search.kept == here.search.kept
    assert there.provenance == here.provenance
    begun = sorted(path.name for path in tmp_path.iterdir())
    assert {"model", "questions", *DEADLY} < set(counted)
    assert counted["measuring heads, block 2 of 3"] > 1
    for what, count in counted.items():
        once = [f"{what} {number} {attempt}" for number in range(count) for attempt in range(2 if what in DEADLY and number == count - 1 else 1)]
        assert [name for name in begun if name.startswith(f"{what} ")] == sorted(once)


def test_labels_of_another_model_are_refused_before_anything_is_measured(cluster, asked, tmp_path):
    other = HeadLabels(made("llama", seed=3).card, {Head(0, 0): ("mine",)}, {}).save(tmp_path / "heads.json")
    out, ray_ = tmp_path / "c.json", ("--executor", "ray", "--address", cluster.address)
    said = CliRunner().invoke(app, ["calibrate", "--model", asked[0], "--task", asked[1], "--labels", str(other), "--out", str(out), *map(str, SETTING), *ray_])
    assert said.exit_code == 2
    assert "screening" not in said.stderr
    assert not out.exists()


def killed_once(model, folder, name, function, call, deadly):
    """A call whose worker is killed the first time if it is deadly; every time it begins is written down."""
    begun = len(list(Path(folder).glob(f"{name} *")))
    (Path(folder) / f"{name} {begun}").touch()
    if deadly and not begun:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(model, **call)
