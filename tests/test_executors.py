"""Does every executor run the same tasks, keep a model loaded, and tell what became of each?"""

import sys
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from workbench.errors import InputError
from workbench.executors import Desk, Local, Outcome, Wanted, executor
from workbench.executors import task as tasks
from workbench.executors.local import _distance
from workbench.models import HFModel


@dataclass(frozen=True)
class Told:
    """A task that gives its number, the model that the desk has, or an error."""

    number: int
    wanted: Wanted | None = None
    raises: Any = None

    @property
    def what(self):
        return f"task {self.number}"

    def run(self, desk):
        if self.raises is not None:
            raise self.raises
        return self.number, None if self.wanted is None else desk.model(self.wanted).name


A, B = Wanted("a"), Wanted("b")


@pytest.fixture
def loads(monkeypatch, tiny_llama):
    """Which models were loaded: all the same one, by other names."""
    made = []
    monkeypatch.setattr(tasks, "load", lambda name, **how: made.append((name, how)) or HFModel(name, "here", tiny_llama.hf))
    return made


def test_outcomes_are_those_of_the_tasks(loads):
    with closing(executor()) as chosen:
        chosen.submit(Told(1, A), Told(2, raises=InputError("no such thing")), Told(3, raises=ZeroDivisionError("by zero")), Told(4))
        found = list(chosen.outcomes())
    found = sorted(found, key=lambda one: one.task.number)
    assert found[0].taken() == (1, "a")
    assert found[3].taken() == (4, None)
    assert [(one.error, one.refused) for one in found[1:3]] == [("no such thing", True), ("ZeroDivisionError: by zero", False)]
    with pytest.raises(InputError, match=r"^no such thing$"):
        found[1].taken()
    with pytest.raises(RuntimeError, match=r"task 3 failed: ZeroDivisionError: by zero\nTraceback"):
        found[2].taken()
    assert all(one.attempts == 1 and one.seconds >= 0 and one.node for one in found)


def test_tasks_of_the_loaded_model_come_first_and_each_model_is_loaded_once(loads):
    with closing(executor()) as chosen:
        chosen.submit(Told(1, A), Told(2, B), Told(3, A), Told(4, B), Told(5))
        assert [one.task.number for one in chosen.outcomes()] == [5, 1, 3, 2, 4]
    assert [name for name, _ in loads] == ["a", "b"]


def test_tasks_can_be_submitted_while_others_run_and_before_those_that_wait():
    with closing(executor()) as chosen:
        chosen.submit(Told(1), Told(2))
        order = []
        for outcome in chosen.outcomes():
            order.append(outcome.task.number)
            if outcome.task.number == 1:
                chosen.submit(Told(10), Told(11), first=True)
                chosen.submit(Told(12))
        assert order == [1, 10, 11, 2, 12]
        assert list(chosen.outcomes()) == []


def test_a_free_worker_prefers_its_model_then_one_that_nobody_has():
    assert [_distance(wanted, A, {A, B}) for wanted in (None, A, Wanted("c"), B)] == [0, 0, 1, 2]


def test_a_desk_keeps_what_was_made_for_its_model(loads):
    desk, made = Desk(), []

    def make(name):
        return desk.made(A, name, lambda model: made.append(name) or (model.name, name))

    assert make("x") == ("a", "x")
    assert [make(name) for name in ("x", "y", "x")] == [("a", "x"), ("a", "y"), ("a", "x")]
    assert made == ["x", "y"]
    make("z")  # takes the place of the oldest
    make("x")
    assert made == ["x", "y", "z", "x"]
    desk.model(B)
    make("x")
    assert made == ["x", "y", "z", "x", "x"]
    assert [name for name, _ in loads] == ["a", "b", "a"]


def test_the_model_is_loaded_as_it_is_wanted(loads):
    wanted = Wanted("m", "main", "cpu", "bfloat16")
    Desk().model(wanted)
    assert loads == [("m", {"device": "cpu", "dtype": "bfloat16", "revision": "main"})]
    assert wanted.words == "m (main, cpu, bfloat16)"
    assert Wanted("m").words == "m"


def test_threads_are_those_of_a_task(loads):
    import torch

    @dataclass(frozen=True)
    class Threads(Told):
        def run(self, desk):
            return torch.get_num_threads()

    with closing(executor(cpus=2)) as chosen:
        chosen.submit(Threads(1, A))
        assert next(chosen.outcomes()).value == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "slurm"}, "unknown executor 'slurm'"),
        ({"address": "auto"}, "--address concerns --executor ray"),
        ({"gpus": 1.0}, "--gpus-per-task concerns --executor ray"),
        ({"cpus": 0}, "--cpus-per-task is 1 or more, got 0"),
    ],
)
def test_options_that_do_not_concern_it_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        executor(**given)


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "workbench.executors.on_ray", raising=False)
    with pytest.raises(InputError, match=r"--executor ray needs Ray; install it with: pip install 'attention-head-workbench\[ray\]'"):
        executor("ray")


def test_what_is_closed_has_nothing_left(loads):
    chosen = Local()
    chosen.submit(Told(1, A), Told(2, B))
    assert next(chosen.outcomes()).value == (1, "a")
    chosen.close()
    assert list(chosen.outcomes()) == []
    chosen.submit(Told(3, A))
    assert next(chosen.outcomes()).value == (3, "a")
    assert len(loads) == 2
    assert isinstance(Outcome(Told(1)).task, Told)
