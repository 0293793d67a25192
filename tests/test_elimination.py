"""Do heads go in the order in which the model misses them, and is the surprise that decides what its definition says?"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.compiled import INDUCTION, induction_model
from workbench.elimination import PROBE, Answers, Eliminating, eliminate, surprise
from workbench.errors import InputError
from workbench.labels import HeadLabels
from workbench.matching import words_of
from workbench.mixture import Mixture
from workbench.needle_files import load_needles
from workbench.prompts import Prompts
from workbench.recipes import RepeatedTokens
from workbench.tiny import ARCHITECTURES, random_model

SMALL = Eliminating(sinks=2, window=8, prompts=2, each=4, seed=3)
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def answered(length, count=1, seed=0, rows=6):
    ids = np.random.default_rng(seed).integers(3, 250, (count, length))
    return Prompts(ids, rows={"answer": np.tile(np.arange(length - rows - 1, length - 1), (count, 1))})


def repeated(model, seed=3):
    """Repeated tokens; the last row has no token behind it and is left out."""
    return [
        Prompts(batch.ids_BT, rows={"answer": batch.rows["repeat"][:, :-1]})
        for batch in RepeatedTokens(length=30, repeats=2, count=4, batch=1).build(model, seed)
    ]


def test_the_induction_head_goes_last():
    model = induction_model()
    said: list[str] = []
    order = eliminate(model, repeated(model), SMALL, say=said.append)
    assert np.argmax(order.place_LG) == INDUCTION.layer * 4 + INDUCTION.index
    np.testing.assert_allclose(np.sort(order.place_LG, axis=None), np.arange(8) / 7)
    assert [len(step["heads"]) for step in order.steps] == [2, 1, 1, 1, 1, 1, 1]
    last = order.steps[-1]
    assert last["heads"] == [[INDUCTION.layer, INDUCTION.index]]
    assert last["after"] > last["before"] + 1
    assert all(abs(step["after"] - step["before"]) < 1e-3 for step in order.steps[:-1])
    assert said[-1].startswith("0 of 8 open; gone 1.2; surprise")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_surprise_is_that_of_the_model_itself_whatever_the_lengths(architecture):
    model = random_model(architecture)
    prompts = [answered(70, 2), answered(40, 1, seed=1, rows=3)]
    open_LG = torch.ones(model.shape.n_layers, model.shape.n_kv_heads)
    told = []
    for batch in prompts:
        with torch.no_grad():
            logp = model.hf(torch.tensor(batch.ids_BT.copy())).logits.float().log_softmax(-1).numpy()
        for number, (ids, rows) in enumerate(zip(batch.ids_BT, batch.rows["answer"], strict=True)):
            told.append(-np.mean([logp[number, row, ids[row + 1]] for row in rows]))
    assert surprise(model, Answers.of(model, prompts), Mixture(open_LG, 2, 8)) == pytest.approx(np.mean(told), abs=2e-4)


def test_the_same_seed_gives_the_same_order_and_closing_is_felt():
    model, prompts = random_model("llama"), [answered(60, seed=seed) for seed in range(5)]
    first, again = (eliminate(model, prompts, SMALL) for _ in range(2))
    np.testing.assert_array_equal(first.place_LG, again.place_LG)
    assert first.steps == again.steps != eliminate(model, prompts, replace(SMALL, seed=4)).steps
    answers, every = Answers.of(model, prompts), torch.ones(model.shape.n_layers, model.shape.n_kv_heads)
    assert surprise(model, answers, Mixture(every, 2, 8)) != surprise(model, answers, Mixture(every * 0, 2, 8))
    assert surprise(model, answers, Mixture(every, 0, 100)) == pytest.approx(surprise(model, answers, Mixture(every * 0, 0, 100)), abs=1e-5)


def test_layers_with_windows_of_their_own_are_left_alone():
    order = eliminate(random_model("gemma2"), [answered(50)], SMALL)
    assert order.place_LG[0].max() == 0
    assert order.place_LG[1].max() == 1
    assert all(head[0] == 1 for step in order.steps for head in step["heads"])
    with pytest.raises(InputError, match="every layer of tiny-mistral has a window of its own"):
        eliminate(random_model("mistral"), [answered(50)], SMALL)


def test_the_order_is_kept_with_all_that_led_to_it(tmp_path):
    model = random_model("llama")
    order = eliminate(model, [answered(50)], SMALL)
    with pytest.raises(ValueError, match="read-only"):
        order.place_LG[0, 0] = 1
    read = HeadLabels.load(order.labels(machine="a machine").save(tmp_path / "order.json"))
    np.testing.assert_array_equal(model.shape.to_kv(read.scores[PROBE]), order.place_LG)
    told = read.provenance
    assert {"sinks": 2, "window": 8, "prompts": 2, "seed": 3, "of": 1, "device": "cpu", "dtype": "float32", "machine": "a machine"}.items() <= told.items()
    assert json.loads(json.dumps(told["steps"])) == [dict(step) for step in order.steps]


def test_rows_without_a_token_behind_them_are_refused():
    prompts = Prompts(np.ones((1, 9), np.int64), rows={"answer": np.array([[8]])})
    with pytest.raises(InputError, match="need a token behind each"):
        eliminate(random_model("llama"), [prompts], SMALL)


@pytest.mark.parametrize("wrong", [{"sinks": -1}, {"window": 0}, {"prompts": 0}, {"each": 0}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(InputError, match="an elimination needs sinks ≥ 0"):
        Eliminating(**wrong)


def test_heads_are_chosen_by_other_needles_than_those_that_test_them():
    chosen, shipped = load_needles(BENCHMARKS / "needles_to_choose_by.jsonl"), load_needles("needles")
    assert not {needle.id for needle in chosen} & {needle.id for needle in shipped}
    for ours in shipped:
        words = {word for word in words_of(ours.answer) if word not in words_of(ours.question)}
        for other in chosen:
            assert len(words & set(words_of(other.needle))) <= len(words) / 2
