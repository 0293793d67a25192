"""Which heads does a policy keep, and what do its keys and values weigh?"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import choosing
from workbench.errors import InputError
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.policies import HeadPolicy

SHAPE = Shape(n_layers=3, n_heads=4, n_kv_heads=2, d_head=8, d_model=32)
CARD = ModelCard("a model", "here", "f00d", SHAPE)


def some(*rows):
    return np.array(rows, bool)


SCORE_LG = np.array([[0.1, 0.9], [0.5, 0.5], [0.7, 0.0]])  # order: (0, 1), (2, 0), (1, 0), (1, 1), (0, 0), (2, 1)


def full(policy):
    return [policy.full(layer) for layer in range(SHAPE.n_layers)]


def test_bytes_are_counted_vector_by_vector():
    policy = HeadPolicy(CARD, some([1, 0], [1, 1], [0, 0]), sinks=2, window=5)
    kept = 0
    for whole in policy.full_LG.ravel():
        kept += 2 * 8 * 2 * (100 if whole else 7)
    assert policy.kv_bytes(100) == kept
    assert policy.kv_bytes(100, dtype_bytes=4, batch=3) == 6 * kept
    assert policy.share(100) == kept / (6 * 2 * 8 * 2 * 100)
    sums = 3 * 2 * 8 * 4  # two of float32 for each of the streaming heads
    assert HeadPolicy(CARD, policy.full_LG, 2, 5, compensation=True).kv_bytes(100) == kept + sums


def test_a_layer_with_a_window_of_its_own_is_not_decided_about():
    policy = HeadPolicy(CARD, some([1, 0], [0, 0], [0, 0]), sinks=2, window=5, windows=(None, 9, None))
    assert policy.layers == [0, 2]
    assert policy.full_share == 1 / 4
    assert policy.kv_bytes(100) == 2 * 8 * 2 * (100 + 3 * 7 + 2 * 8)
    assert policy.kv_bytes(4) == 2 * 8 * 2 * (4 + 3 * 7 + 2 * 4)
    every = choosing.by_budget(CARD, SCORE_LG, 1.0, windows=(None, 9, None))
    assert full(every) == [[0, 1], [], [0, 1]]
    with pytest.raises(InputError, match="nothing for a policy to decide"):
        policy.with_windows([9, 9, 9])


@pytest.mark.parametrize(("budget", "kept"), [(0, []), (1 / 6, [(0, 1)]), (0.49, [(0, 1), (2, 0)]), (0.5, [(0, 1), (2, 0), (1, 0)]), (1, None)])
def test_a_budget_of_heads_takes_the_best_and_the_earlier_of_equals(budget, kept):
    policy = choosing.by_budget(CARD, SCORE_LG, budget)
    assert {(layer, head) for layer, heads in enumerate(full(policy)) for head in heads} == set(kept if kept is not None else np.ndindex(3, 2))


@given(st.floats(0, 1), st.integers(8, 4000), st.integers(0, 3), st.integers(1, 4))
def test_a_budget_of_bytes_is_kept_and_used_up(budget, length, sinks, window):
    how = {"sinks": sinks, "window": window}
    if budget * 6 * length < 6 * (sinks + window) and budget < 1:
        with pytest.raises(InputError, match="needs smaller ones"):
            choosing.by_budget(CARD, SCORE_LG, budget, length=length, **how)
        return
    policy = choosing.by_budget(CARD, SCORE_LG, budget, length=length, **how)
    heads = int(policy.full_LG.sum())
    assert policy.share(length) <= budget + 1e-9
    if heads < 6:
        more = choosing.by_budget(CARD, SCORE_LG, (heads + 1) / 6, **how)
        assert more.share(length) > budget - 1e-9


def test_quantile_is_duo_attentions_without_noise():
    assert full(choosing.by_quantile(CARD, SCORE_LG, 0.5)) == [[1], [0, 1], [0]]  # the median is 0.5, and both that have it stay
    assert full(choosing.by_quantile(CARD, SCORE_LG, 1)) == [[], [], []]
    assert full(choosing.by_quantile(CARD, SCORE_LG, 0)) == [[0, 1]] * 3


def test_controls():
    assert not choosing.uniform(CARD).full_LG.any()
    assert choosing.everything(CARD).full_LG.all()
    drawn = [choosing.at_random(CARD, 0.5, seed) for seed in range(20)]
    assert {int(policy.full_LG.sum()) for policy in drawn} == {3}
    assert len({str(full(policy)) for policy in drawn}) > 5
    assert full(drawn[3]) == full(choosing.at_random(CARD, 0.5, 3))
    assert drawn[3].origin["seed"] == 3


def test_labels_keep_the_group_of_a_labelled_head():
    labels = HeadLabels(CARD, {Head(0, 3): ("retrieval",), Head(2, 0): ("razor_echo", "local"), Head(1, 1): ("local",)}, {})
    assert full(choosing.by_labels(labels)) == [[1], [], [0]]
    assert full(choosing.by_labels(labels, ["local"], sinks=3)) == [[], [0], [0]]
    assert choosing.by_labels(labels, ["local"], sinks=3).sinks == 3
    with pytest.raises(InputError, match="decide nothing"):
        choosing.by_labels(labels, ["induction"])


def test_scores_of_kv_heads_are_those_of_the_best_query_head():
    score = np.array([[0, 5, 1, 0], [2, 2, 2, 2], [9, 0, 0, 0.5]])
    labels = HeadLabels(CARD, {}, {"one": score, "other": np.ones((3, 4))})
    best = np.array([[5, 1], [2, 2], [9, 0.5]])
    assert (choosing.kv_scores(labels, "one") == best).all()
    assert (choosing.kv_scores(labels, "one + other") == best + 1).all()
    assert (choosing.kv_scores(labels, "one", "min") == [[0, 0], [2, 2], [0, 0]]).all()
    assert (choosing.kv_scores(labels, "one", combine="ranks") * 5).tolist() == [[4, 1], [2, 2], [5, 0]]
    assert (choosing.kv_scores(labels, "one+other", combine="ranks") == choosing.kv_scores(labels, "one", combine="ranks")).all()
    with pytest.raises(InputError, match="unknown probe among the labels 'three'"):
        choosing.kv_scores(labels, "one+three")
    with pytest.raises(InputError, match="unknown probe among the labels 'razor_echo'"):
        choosing.kv_scores(labels)
    with pytest.raises(InputError, match="unknown way to combine scores 'product'"):
        choosing.kv_scores(labels, "one", combine="product")


def test_a_policy_travels_in_a_labels_file(tmp_path):
    policy = HeadPolicy(CARD, some([1, 0], [1, 1], [0, 0]), 2, 5, "decode", True, (None, None, 9), {"by": "hand"})
    path = HeadLabels(CARD, {}, {}, policy=policy.to_json()).save(tmp_path / "heads.json")
    again = choosing.policy_of(HeadLabels.load(path))
    assert again.to_json() == policy.to_json()
    assert (again.full_LG == policy.full_LG).all()
    data = json.loads(path.read_text())
    data["policy"]["full"][0] = [2]
    with pytest.raises(InputError, match="do not fit 3 layers × 2 KV heads"):
        choosing.policy_of(HeadLabels.from_json(data))
    data["policy"]["window"] = 0
    with pytest.raises(InputError, match=r"\$\.policy\.window"):
        HeadLabels.from_json(data)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"full_LG": some([1, 0])}, "shape"),
        ({"sinks": -1}, "sinks ≥ 0"),
        ({"window": 0}, "window ≥ 1"),
        ({"semantics": "loose"}, "unknown semantics 'loose'"),
        ({"windows": (None,)}, "1 windows for 3 layers"),
    ],
)
def test_what_makes_no_policy(wrong, said):
    with pytest.raises(InputError, match=said):
        HeadPolicy(**{"card": CARD, "full_LG": np.ones((3, 2), bool), **wrong})


def test_what_makes_no_choice():
    with pytest.raises(InputError, match="a share, 0 to 1"):
        choosing.by_budget(CARD, SCORE_LG, 1.5)
    with pytest.raises(InputError, match="share of streaming heads"):
        choosing.by_quantile(CARD, SCORE_LG, -0.1)
    with pytest.raises(InputError, match="finite scores"):
        choosing.by_budget(CARD, SCORE_LG * np.nan, 0.5)


def test_a_policy_cannot_be_written_to():
    policy = choosing.uniform(CARD)
    with pytest.raises(ValueError, match="read-only"):
        policy.full_LG[0, 0] = True
    with pytest.raises(TypeError):
        policy.origin["by"] = "me"
