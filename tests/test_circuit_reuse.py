"""Is the overlap of circuits what counting says, is its chance level what simulation says, and do transfer and specificity tell planted cases apart?"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench.circuits.reuse import Ceiling, agreement, chance_jaccard, overlap, overlaps, resampled_jaccard, split_half, top
from workbench.circuits.transfer import dissociation, matrix, measured, random_like, specificity
from workbench.errors import InputError

RNG = np.random.default_rng(0)


def heads(*chosen, layers=4, width=6):
    table_LH = np.zeros((layers, width), bool)
    for layer, head in chosen:
        table_LH[layer, head] = True
    return table_LH


def merullo():
    """28 and 29 of 384 heads, 25 of them shared."""
    flat = np.arange(384)
    return (flat < 28).reshape(24, 16), ((flat >= 3) & (flat < 32)).reshape(24, 16)


def test_the_published_example_has_two_heads_expected_and_25_shared():
    found = overlap(*merullo())
    assert (found.shared, found.first, found.second, found.heads) == (25, 28, 29, 384)
    assert found.expected == pytest.approx(2.1, abs=0.02)
    assert found.p < 1e-20
    assert found.jaccard == pytest.approx(25 / 32)
    assert found.containment == pytest.approx(25 / 28)


def test_chance_is_what_simulation_says():
    first_LH, second_LH = RNG.random((2, 4, 6)) < 0.4
    found = overlap(first_LH, second_LH, draws=20_000)
    shuffled = [int((first_LH.ravel() & RNG.permutation(second_LH.ravel())).sum()) for _ in range(8000)]
    assert found.expected == pytest.approx(np.mean(shuffled), abs=0.05)
    assert found.p == pytest.approx(np.mean(np.array(shuffled) >= found.shared), abs=0.02)
    layered = np.array([[(first_LH & random_like(second_LH, seed)).sum(), (first_LH | random_like(second_LH, seed)).sum()] for seed in range(8000)])
    assert found.layer_expected == pytest.approx(layered[:, 0].mean(), abs=0.05)
    assert found.p_layer == pytest.approx(np.mean(layered[:, 0] >= found.shared), abs=0.02)
    assert found.excess == pytest.approx(found.jaccard - (layered[:, 0] / layered[:, 1]).mean(), abs=0.01)


def test_heads_of_one_layer_overlap_by_chance_there_but_not_over_all_layers():
    first_LH, second_LH = heads(*[(3, head) for head in range(5)]), heads(*[(3, head) for head in range(1, 6)])
    found = overlap(first_LH, second_LH)
    assert found.p < 0.02
    assert found.p_layer == 1
    assert found.layer_expected > 4
    assert found.excess < 0.01


def test_heads_left_out_are_left_out_of_both_sets_and_of_chance():
    generic_LH = heads((0, 0), (0, 1), (1, 1))
    found = overlap(heads((0, 0), (0, 1), (2, 2)), heads((0, 0), (0, 1), (2, 3)), generic_LH)
    assert (found.shared, found.first, found.second, found.heads) == (0, 1, 1, 21)
    assert found.expected == pytest.approx(1 / 21)
    assert found.p == found.p_layer == 1


def test_empty_sets_share_nothing():
    found = overlap(heads(), heads((1, 1)))
    assert (found.jaccard, found.containment, found.expected, found.p, found.p_layer) == (0, 0, 0, 1, 1)


@pytest.mark.parametrize(("share", "expected"), [(0.02, 0.01), (0.1, 0.053), (0.2, 0.11)])
def test_chance_jaccard_is_that_of_the_specification(share, expected):
    assert chance_jaccard(share) == pytest.approx(expected, abs=0.002)
    size = round(share * 1000)
    drawn = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in ((RNG.permutation(1000)[:size], RNG.permutation(1000)[:size]) for _ in range(50))]
    assert np.mean(drawn) == pytest.approx(expected, abs=0.01)
    with pytest.raises(InputError, match="between 0 and 1"):
        chance_jaccard(2.0)


def test_agreement_of_scores():
    a_LH, b_LH = RNG.normal(size=(2, 3, 4))
    found = agreement(a_LH, b_LH)
    assert found.weighted == pytest.approx(np.minimum(abs(a_LH), abs(b_LH)).sum() / np.maximum(abs(a_LH), abs(b_LH)).sum())
    assert found.spearman == pytest.approx(np.corrcoef(stats.rankdata(a_LH), stats.rankdata(b_LH))[0, 1])
    same = agreement(a_LH, a_LH)
    assert (same.weighted, same.kendall) == (pytest.approx(1), pytest.approx(1))
    assert np.isnan(agreement(a_LH, np.zeros((3, 4))).spearman)
    with pytest.raises(InputError, match="finite"):
        agreement(a_LH, np.full((3, 4), np.nan))


def test_the_top_is_by_size_and_ties_go_to_the_earlier_head():
    score_LH = np.array([[0.5, -2.0, 1.0], [1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(top(score_LH, 3), [[False, True, True], [True, False, False]])
    assert not top(score_LH, 0).any()
    with pytest.raises(InputError, match="of 6 heads, 7"):
        top(score_LH, 7)


def test_the_ceiling_is_1_for_a_stable_circuit_and_chance_for_noise():
    effect_NLH = RNG.normal(size=(40, 10, 10))
    noise = split_half(effect_NLH, 10)
    assert noise.mean == pytest.approx(chance_jaccard(0.1), abs=0.04)
    effect_NLH[:, 4] += 5
    stable = split_half(effect_NLH, 10)
    assert (stable.mean, stable.sd) == (1, 0)
    with pytest.raises(InputError, match="two prompts"):
        split_half(effect_NLH[:1], 10)


def test_an_interval_of_the_jaccard_index_holds_that_of_the_prompts():
    one_NLH, other_NLH = RNG.normal(size=(2, 60, 4, 5))
    one_NLH[:, 0] += 1
    other_NLH[:, 0] += 1
    low, high = resampled_jaccard(one_NLH, other_NLH, 5)
    assert 0.4 < low <= high == 1


def test_the_table_of_all_pairs_is_corrected_for_their_number():
    circuits = {name: RNG.random((6, 8)) < 0.3 for name in "abcd"}
    circuits["e"] = circuits["a"].copy()
    table = overlaps(circuits, ceilings=dict.fromkeys(circuits, Ceiling(0.8, 0.1, 100)))
    assert len(table) == 10
    same = table[(table.first_task == "a") & (table.second_task == "e")].iloc[0]
    assert same.jaccard == 1
    assert same.of_ceiling == pytest.approx(1.25)
    assert same.q == pytest.approx(min(1, same.p * 10 * sum(1 / k for k in range(1, 11))))
    assert (table.q >= table.p).all()
    assert (table.q_layer >= table.p_layer).all()
    assert set(overlaps(circuits).columns) == set(table.columns) - {"ceiling", "of_ceiling"}
    with pytest.raises(InputError, match="two tasks"):
        overlaps({"a": circuits["a"]})


def test_random_circuits_have_as_many_heads_in_every_layer():
    circuit_LH = RNG.random((6, 8)) < 0.3
    drawn = [random_like(circuit_LH, seed) for seed in range(20)]
    assert all((one.sum(1) == circuit_LH.sum(1)).all() for one in drawn)
    assert len({one.tobytes() for one in drawn}) > 15


def test_transfer_is_measured_for_every_pair_and_against_random_circuits():
    circuits = {"one": heads((0, 0), (1, 1)), "two": heads((2, 2)), "three": heads((0, 0), (2, 2))}
    asked = []

    def measure(circuit_LH, task):
        asked.append(task)
        return (circuit_LH & circuits[task]).sum() / circuits[task].sum()

    table = measured(circuits, measure, randoms=4)
    assert len(asked) == 9 * 5
    value = matrix(table)
    assert list(value.index) == list(value.columns) == ["one", "two", "three"]
    np.testing.assert_allclose(value, [[1, 0, 0.5], [0, 1, 0.5], [0.5, 1, 1]])
    assert (matrix(table, "random_mean") < 0.8).all().all()
    assert matrix(measured(circuits, measure, randoms=0), "value").equals(value)
    with pytest.raises(InputError, match="unknown column 'worth'"):
        matrix(table, "worth")
    with pytest.raises(InputError, match="two tasks"):
        measured({"one": circuits["one"]}, measure)


def test_specificity_is_the_share_of_the_damage_on_the_own_task():
    names = ["a", "b", "c"]
    drop = pd.DataFrame([[0.8, 0.2, 0.2], [0.3, 0.3, 0.3], [-0.5, 0.0, 0.0]], index=names, columns=names)
    found = specificity(drop)
    assert found["a"] == pytest.approx(0.8)
    assert found["b"] == pytest.approx(0.5)
    assert np.isnan(found["c"])
    with pytest.raises(InputError, match="the same order"):
        specificity(drop[["b", "a", "c"]])


def test_a_double_dissociation_is_told_from_a_circuit_that_hurts_everything():
    noise_22N = RNG.normal(0, 0.1, (2, 2, 30))
    apart = dissociation(noise_22N[0] + [[0.5], [0.0]], noise_22N[1] + [[0.0], [0.4]])
    assert apart.double()
    assert apart.interaction == pytest.approx(0.9, abs=0.1)
    assert apart.p < 0.001
    stronger = dissociation(noise_22N[0] + [[0.5], [0.1]], noise_22N[1] + [[0.5], [0.1]])
    assert not stronger.double()
    assert stronger.first > 0 > stronger.second
    assert stronger.p > 0.01
    uneven = dissociation(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[0.0] * 5, [1.0] * 5]))
    assert (uneven.first, uneven.second, uneven.interaction) == (pytest.approx(1), pytest.approx(1), pytest.approx(2))
