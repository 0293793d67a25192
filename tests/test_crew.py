"""Is a calibration the same whoever measures? Calls that go through a pickle, out of order, with layers in other groups, give the same bytes."""

import pickle
import time

import numpy as np
import pytest
from test_calibration import EDIT, made, questions

from workbench.calibration import Crew, Setting, evaluate, search
from workbench.calibration.crew import Clock
from workbench.calibration.measuring import cost_of, effects, shares, tasks_of, work_of
from workbench.errors import InputError
from workbench.heads import Head
from workbench.prompts import Prompts
from workbench.questions import batches, encode

LARGEST = 20_000
"""Bytes of a task of these tests, at most: the tokens of a batch, and which heads are measured."""


def scattered(model, seen, workers=5):
    """A crew whose calls are done backwards, and of which each is told only what a pickle holds."""

    def each(what, function, calls):
        found = {}
        for number in reversed(range(len(calls))):
            sent = pickle.dumps((function, calls[number]))
            seen.append((what, len(sent)))
            there, call = pickle.loads(sent)
            found[number] = pickle.loads(pickle.dumps(there(model, **call)))
        return [found[number] for number in range(len(calls))]

    return Crew.there(each, lambda: workers)


@pytest.fixture(scope="module")
def asked():
    model = made("llama", seed=11)
    return model, {"x": [encode(model, one) for one in questions(30, seed=5)], "y": [encode(model, one) for one in questions(15, seed=6)]}


def test_a_search_by_others_gives_the_same_bytes(asked):
    model, tasks = asked
    setting, seen = Setting(EDIT, screen=1.0, layers=(0, 1, 2, 3), block=10), []
    here, there = search(model, tasks, setting), search(scattered(model, seen), tasks, setting)
    assert there.table.to_csv() == here.table.to_csv()
    assert len(set(here.table["n"])) > 1  # heads were left at different blocks
    assert there.kept == here.kept
    assert there.agreement == here.agreement
    assert there.evidence.first_NLH.tobytes() == here.evidence.first_NLH.tobytes()
    assert there.cost["passes"] == here.cost["passes"]
    measured = [what for what, _ in seen if what.startswith("measuring heads, block 1 of 5")]
    assert len(measured) > 1
    assert max(size for _, size in seen) < LARGEST


def test_held_out_answers_by_others_are_the_same(asked):
    model, tasks = asked
    kept, candidates = (Head(1, 2),), tuple(Head(layer, index) for layer in (1, 2) for index in range(6))
    seen = []
    tables = [evaluate(crew, tasks, EDIT, kept, candidates, (0, 1)) for crew in (model, scattered(model, seen))]
    assert tables[0].to_csv() == tables[1].to_csv()
    parts = len(batches([one for task in tasks.values() for one in task], range(45), 1024))
    assert [what for what, _ in seen] == ["model", *["held-out answers"] * 5 * parts]  # none, kept, all, two random sets


def test_a_layer_gives_the_same_numbers_whatever_is_measured_beside_it(asked):
    model, tasks = asked
    batch = batches(tasks["x"], range(6), 10**6)[0]
    pairs = {layer: [(place, head) for place in range(6) for head in range(6) if (place + head + layer) % 3] for layer in range(4)}
    loss_B, after = effects(model, batch, EDIT, pairs)
    for group in ([2], [0, 3]):
        alone_B, found = effects(model, batch, EDIT, {layer: pairs[layer] for layer in group})
        assert alone_B.tobytes() == loss_B.tobytes()
        assert {layer: [one.tobytes() for one in found[layer]] for layer in found} == {layer: [one.tobytes() for one in after[layer]] for layer in group}


@pytest.mark.parametrize("seed", range(6))
def test_shares_are_whole_layers_of_about_equal_work(seed):
    rng = np.random.default_rng(seed)
    layers, count = 24, 1 + seed
    pairs = {layer: [(0, head) for head in range(rng.integers(0, 60))] for layer in range(2, 23)}
    groups = shares(pairs, count, layers)
    assert {layer: mine for group in groups for layer, mine in group.items()} == pairs
    assert sum(map(len, groups)) == len(pairs)
    work = [sum(work_of(group, layers)) for group in groups]
    assert len(groups) == count
    assert max(work) - min(work) <= 2 * max(work_of(pairs, layers))


def test_a_layer_is_not_divided():
    assert shares({3: [], 5: []}, 4, 10) == [{3: [], 5: []}]
    assert [list(group) for group in shares({0: [(0, 0)] * 30, 5: [(0, 0)] * 60}, 4, 10)] == [[0], [5]]
    assert [list(group) for group in shares({0: [(0, 0)], 5: [(0, 0)], 9: [(0, 0)]}, 1, 10)] == [[0, 5, 9]]


def test_tasks_are_as_many_as_make_the_workers_end_soonest(asked):
    """A batch of two questions in a model of 8 layers: a plain pass is 16 blocks; costs are worked out by hand."""
    ordered = sorted(asked[1]["x"], key=lambda one: len(one.ids))
    other, batch = (batches([one] * 2, [0, 1], 10**6)[0] for one in (ordered[0], ordered[-1]))
    assert batch.prompts.length * 144 > other.prompts.length * 272
    pairs = {0: [(0, 0)] * 16, 4: [(1, 0)] * 32}  # 16 rows of 8 blocks, and 32 of 4: 128 each

    def blocks(todo, workers):
        return [cost_of(*task, 8) / task[0].prompts.length for task in tasks_of(todo, workers, 8)]

    assert blocks([(batch, pairs)], 1) == [16 + 256]
    assert blocks([(batch, pairs)], 2) == blocks([(batch, pairs)], 9) == [16 + 128] * 2
    both = tasks_of([(other, pairs), (batch, pairs)], 1, 8)
    assert both == [(batch, pairs), (other, pairs)]  # the longer first
    assert blocks([(other, pairs), (batch, pairs)], 4) == [144, 144, 272]  # the shorter ends before in one piece
    little = {0: [(0, 0)], 7: [(0, 0)]}  # 24 blocks instead of 25 are not worth a second plain pass
    assert blocks([(batch, little)], 4) == [25]
    assert tasks_of([], 4, 8) == []


def test_seconds_of_the_processor_add_up_over_calls_and_are_not_those_of_who_asks(asked):
    crew = Crew.here(asked[0])
    clock = Clock(crew)
    crew.run("work", busy, [{"seconds": 0.2}] * 3)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    read = clock.read("work")
    assert read["work_cpu_seconds"] == pytest.approx(0.6, abs=0.15)
    assert read["work_seconds"] >= 0.9


def test_what_a_call_raises_comes_out(asked):
    with pytest.raises(InputError, match="4 layers, from 0"):
        search(scattered(asked[0], []), asked[1], Setting(EDIT, layers=(7,)))


def busy(_model, seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_prompts_that_travelled_are_the_same_and_read_only():
    prompts = Prompts(np.array([[0, 3, 4], [5, 6, 7]]), {"a": np.array([[1, 2], [0, 3]])}, {"r": np.array([[2], [1]])}, padding=np.array([1, 0]))
    there = pickle.loads(pickle.dumps(prompts))
    assert there.fingerprint == prompts.fingerprint
    assert there.spans["a"].tolist() == [[1, 2], [0, 3]]
    with pytest.raises(ValueError, match="read-only"):
        there.ids_BT[0, 0] = 1
    with pytest.raises(TypeError, match="mappingproxy"):
        there.spans["b"] = there.spans["a"]
