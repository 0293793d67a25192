"""Do tasks on a real Ray cluster of two nodes give what they give here, byte for byte, whatever is killed in the middle?"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from two_nodes import SMALL

import workbench
from workbench import choosing
from workbench.cli.workers import called
from workbench.errors import InputError
from workbench.executors import Wanted, executor, joining, on_ray
from workbench.executors.on_ray import ATTEMPTS, OnRay
from workbench.models import load
from workbench.needles import NeedleTests
from workbench.runs import versions
from workbench.sweeping import Dataset, Sweep, run
from workbench.sweeping.tasks import Whole
from workbench.verification import Setting, measured, ways

pytestmark = pytest.mark.slow
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests

PROBES = ("previous_token", "induction", "attention_sink", "copying")
SOURCE = Path(workbench.__file__).parents[1]


@pytest.fixture
def chosen(cluster):
    with closing(OnRay(cluster.address)) as found:
        yield found


@pytest.fixture(scope="module")
def expected(folders, tmp_path_factory):
    """A sweep, and what it leaves when this process runs it alone."""
    root = tmp_path_factory.mktemp("local")
    sweep = Sweep(tuple(map(Wanted, folders)), PROBES, seeds=(0, 1))
    with closing(executor(cpus=1)) as alone:
        assert run(sweep, Dataset(root), alone).failed == {}
    return sweep, contents(root)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


@dataclass(frozen=True)
class Act:
    """A task of the tests: writes its number, does something, gives its number and its process."""

    number: int
    folder: str
    act: str = ""
    seconds: float = 0.0
    wanted: None = None

    @property
    def what(self):
        return f"act {self.number}"

    def run(self, desk):
        begun = len(list(Path(self.folder).glob(f"{self.number}.*")))
        (Path(self.folder) / f"{self.number}.{begun}").write_text(str(os.getpid()))
        if self.act == "die" or (self.act == "die once" and not begun):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act == "fail":
            raise ZeroDivisionError("by zero")
        time.sleep(self.seconds)
        return self.number, os.getpid()


def test_a_sweep_on_two_nodes_leaves_the_same_bytes(chosen, expected, tmp_path):
    sweep, there = expected
    done = run(sweep, Dataset(tmp_path), chosen)
    assert (done.found, done.made, done.failed) == (0, 4, {})
    assert contents(tmp_path) == there
    again = run(sweep, Dataset(tmp_path), chosen)
    assert (again.found, again.made) == (4, 0)


def test_names_of_files_mean_what_they_mean_here(chosen, folders, monkeypatch):
    monkeypatch.chdir(Path(folders[0]).parent)
    chosen.submit(Whole(Wanted(Path(folders[0]).name), "there", told))
    (found,) = chosen.outcomes()
    assert found.taken() == load(folders[0]).fingerprint


def test_a_worker_that_is_killed_is_replaced_and_its_task_done_again(chosen, tmp_path):
    chosen.submit(*(Act(number, str(tmp_path), "die once" if number == 2 else "") for number in range(5)))
    found = {one.task.number: one for one in chosen.outcomes()}
    assert [found[number].value[0] for number in range(5)] == list(range(5))
    assert [found[number].attempts for number in range(5)] == [1, 1, 2, 1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.0", "1.0", "2.0", "2.1", "3.0", "4.0"]


def test_a_task_that_kills_its_workers_is_given_up_and_one_that_fails_is_told(chosen, tmp_path):
    chosen.submit(Act(0, str(tmp_path), "die"), Act(1, str(tmp_path), "fail"), Act(2, str(tmp_path)))
    found = {one.task.number: one for one in chosen.outcomes()}
    assert found[0].error.startswith(f"{ATTEMPTS} workers died on it")
    assert found[1].error == "ZeroDivisionError: by zero"
    assert "in run" in found[1].details
    assert found[2].value[0] == 2
    assert len(list(tmp_path.glob("0.*"))) == ATTEMPTS


def test_tasks_run_at_once_on_both_nodes(chosen, tmp_path):
    chosen.submit(*(Act(number, str(tmp_path), seconds=1.0) for number in range(4)))
    assert len({one.value[1] for one in chosen.outcomes()}) == 2


def test_a_cluster_that_others_hold_is_said_and_waited_for(cluster, tmp_path, monkeypatch):
    @ray.remote(num_cpus=1)
    class Held:
        def there(self):
            return True

    monkeypatch.setattr(on_ray, "QUIET", (3.0, 600.0))
    others = [Held.options(scheduling_strategy="SPREAD").remote() for _ in range(2)]
    ray.get([one.there.remote() for one in others])
    said = []

    def say(text):
        said.append(text)
        ray.kill(others[0])

    with closing(executor("ray", cluster.address, say=say)) as chosen:
        chosen.submit(Act(0, str(tmp_path)), Act(1, str(tmp_path)))
        assert [one.value[0] for one in chosen.outcomes()] == [0, 1]
    ray.kill(others[1])
    assert said == ["no worker has begun yet, each takes 1 CPU; free are 0 of 2 CPUs, the rest is held by others or by workers that are beginning"]


def test_a_node_that_goes_takes_no_task_with_it(cluster, tmp_path):
    node = cluster.add_node(**SMALL)
    cluster.wait_for_nodes()
    with closing(OnRay(cluster.address)) as found:
        found.submit(*(Act(number, str(tmp_path), seconds=1.5) for number in range(9)))
        values = []
        for outcome in found.outcomes():
            values.append(outcome.value[0])
            if len(values) == 3:
                cluster.remove_node(node, allow_graceful=False)
    assert sorted(values) == list(range(9))


def test_what_the_cluster_cannot_do_is_refused(cluster):
    for given, said in (
        ({"gpus": 1.0}, r"a task takes 1 CPU, 1 GPU, and no node of the cluster has that: at most 1 CPUs and 0 GPUs"),
        ({"cpus": 3}, r"a task takes 3 CPUs, and no node"),
        ({"gpus": -1.0}, r"--gpus-per-task is 0 or more, got -1"),
    ):
        with pytest.raises(InputError, match=said):
            executor("ray", cluster.address, **given)


def sweeping(cluster, sweep, out, **environment):
    """A process that runs a sweep on the cluster, as a user would."""
    models = [part for wanted in sweep.models for part in ("--model", wanted.name)]
    asked = [*models, *(part for probe in sweep.probes for part in ("--probe", probe)), *(part for seed in sweep.seeds for part in ("--seed", str(seed)))]
    command = [sys.executable, "-m", "workbench.cli", "sweep", *asked, "--executor", "ray", "--address", cluster.address, "--out", str(out), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment, cwd=SOURCE)


def test_a_driver_that_is_killed_goes_on_where_it_was(cluster, expected, tmp_path):
    sweep, there = expected
    first = sweeping(cluster, sweep, tmp_path)
    while len(list(tmp_path.rglob("part-*.parquet"))) < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(2)  # its workers are told
    left = contents(tmp_path)
    assert set(left) < set(there)
    assert all(content == there[name] for name, content in left.items())  # none is half-written
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in left}
    second = sweeping(cluster, sweep, tmp_path)
    said, remarks = second.communicate(timeout=240)
    assert second.returncode == 0, remarks
    assert json.loads(said)["failed"] == {}
    assert contents(tmp_path) == there
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in left} == before
    assert not list(tmp_path.rglob("*.part"))


def test_two_users_do_not_mix(cluster, expected, folders, tmp_path):
    sweep, there = expected
    other = Sweep((Wanted(folders[1]),), ("attention_sink",), seeds=(5,))
    both = [sweeping(cluster, sweep, tmp_path / "one"), sweeping(cluster, other, tmp_path / "two")]
    for process in both:
        _, remarks = process.communicate(timeout=240)
        assert process.returncode == 0, remarks
    assert contents(tmp_path / "one") == there
    table = pd.read_parquet(tmp_path / "two" / "scores")
    assert set(table["probe"]) == {"attention_sink"}
    assert set(table["seed"]) == {5}


def test_workers_with_other_versions_are_refused(chosen, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "versions", lambda: {**versions(), "torch": "1.0", "code": "00000000"})
    said = rf"node .* has other versions than this process: torch {torch.__version__} instead of 1\.0; code {versions()['code']} instead of 00000000; results"
    chosen.submit(Act(0, str(tmp_path)))
    with pytest.raises(InputError, match=said.replace("+", r"\+")):
        list(chosen.outcomes())
    assert not list(tmp_path.iterdir())


def test_workers_that_cannot_begin_are_told(chosen, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, threads, folder):
            raise ModuleNotFoundError("No module named 'workbench'")

        def ready(self):
            pass

    monkeypatch.setattr(on_ray, "Worker", Broken)
    chosen.submit(Act(0, str(tmp_path)))
    with pytest.raises(InputError, match=r"workers cannot begin, the last of several ended so: ModuleNotFoundError: No module named 'workbench'"):
        list(chosen.outcomes())


def told(model):
    return model.fingerprint


def numbered(model, number):
    return number, model.fingerprint


def test_calls_of_a_function_come_back_in_their_order(cluster, folders):
    found = called(("ray", cluster.address, None, None), Wanted(folders[1]), "calls", numbered, [{"number": number} for number in range(5)])
    assert found == [(number, load(folders[1]).fingerprint) for number in range(5)]


def test_ways_of_a_verification_are_measured_alike_on_a_worker(cluster, folders):
    model = load(folders[0])
    setting = Setting(NeedleTests(lengths_=(600,), depths=(0.5,), per_cell=1, teacher_forced=False), (0.5,), (0,), text_tokens=64, answer_tokens=3)
    ranking = {"mine": np.arange(4.0).reshape(2, 2)}
    how = {"policy": choosing.uniform(model.card, sinks=2, window=5), "rankings": ranking, "setting": setting}
    count = len(list(ways(how["policy"], ranking, setting, saved=False)))
    there = called(("ray", cluster.address, None, None), Wanted(folders[0]), "policies", measured, [{**how, "number": number} for number in range(count)])
    assert count == 4
    for number, one in enumerate(there):
        here = measured(model, number=number, **how)
        assert (one.shown, one.answers, one.kv_share, one.facts) == (here.shown, here.answers, here.kv_share, here.facts)
        assert one.nll == pytest.approx(here.nll, rel=1e-6)
        np.testing.assert_array_equal(one.choice, here.choice)


def test_a_cluster_that_is_gone_is_told_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConnectionRefusedError):
        joining.check_there("auto")


@pytest.mark.parametrize("before", ["", joining.CLIENT])
def test_a_port_that_is_none_of_rays_is_told_at_once(before):
    """Ray's dashboard, say, which speaks HTTP."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConnectionError, match="something else listens there"):
            joining.check_there(f"{before}127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("here", ""),
        ("a:b", "an address is auto, host:port, or ray://host:port"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("ray://here", "an address is auto, host:port, or ray://host:port"),
    ],
)
def test_no_cluster_at_the_address_is_told(address, reason):
    asked = [sys.executable, "-m", "workbench.cli", "score", "--probe", "copying", "--executor", "ray", "--address", address]
    said = subprocess.run(asked, capture_output=True, text=True, env=os.environ | {"WORKBENCH_RUNS": "runs"}, cwd=SOURCE, timeout=240, check=False)
    assert said.returncode == 2
    assert f"there is no Ray cluster at {address}: " in said.stderr
    assert reason in said.stderr
    assert "ray start --head" in said.stderr
