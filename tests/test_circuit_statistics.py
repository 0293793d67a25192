"""Are p-values, intervals and rankings what brute force and other libraries say?"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.circuits.statistics import (
    auroc,
    average_precision,
    curve,
    false_discoveries,
    interval,
    precision_at_truth,
    recovery,
    share_interval,
    sign_flips,
)
from workbench.errors import InputError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("hits", "count"), [(0, 12), (12, 12), (3, 31), (1, 1)])
def test_intervals_of_shares_are_those_of_scipy(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.9, "wilson")
    assert share_interval(hits / count, count, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_interval_of_no_share_is_refused():
    for share, count in ((0.5, 0), (1.2, 5), (float("nan"), 5)):
        with pytest.raises(InputError, match="share between 0 and 1"):
            share_interval(share, count)


@st.composite
def rankings(draw):
    """Scores with many ties, and a truth that is neither all nor nothing."""
    size = draw(st.integers(2, 12))
    score = np.array(draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)), float)
    truth = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    truth[:2] = [True, False]
    return score, truth


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_few_prompts_are_flipped_in_every_way(count):
    effect_NLH = RNG.normal(0.3, 1, (count, 2, 3))
    flips = list(itertools.product([1, -1], repeat=count))
    for layer, head in np.ndindex(2, 3):
        sums = [abs(np.dot(signs, effect_NLH[:, layer, head])) for signs in flips]
        expected = np.mean([one >= sums[0] - 1e-12 for one in sums])
        assert sign_flips(effect_NLH)[layer, head] == pytest.approx(expected)


def test_many_prompts_agree_with_scipy():
    effect_NH = RNG.normal(0.25, 1, (40, 4))
    p_H = sign_flips(effect_NH, draws=20_000)
    expected = stats.permutation_test(
        (effect_NH,), np.mean, permutation_type="samples", vectorized=True, n_resamples=5000, batch=500, axis=0, rng=np.random.default_rng(1)
    ).pvalue
    np.testing.assert_allclose(p_H, expected, atol=0.03)
    assert sign_flips(np.ones((40, 1)), draws=999)[0] == pytest.approx(1 / 1000)


def test_flips_of_single_precision_effects_that_give_the_same_sum_count():
    effect_NH = np.full((10, 1), 0.1, np.float32)
    assert sign_flips(effect_NH)[0] == pytest.approx(2 / 1024)
    assert sign_flips(np.zeros((20, 3)))[1] == 1


def test_the_p_values_of_heads_without_effect_are_uniform():
    p_H = sign_flips(RNG.normal(size=(30, 2000)), draws=2000)
    assert stats.kstest(p_H, "uniform").pvalue > 0.001


def test_the_same_seed_gives_the_same_flips():
    effect_NH = RNG.normal(size=(30, 3))
    np.testing.assert_array_equal(sign_flips(effect_NH, 500, seed=1), sign_flips(effect_NH, 500, seed=1))
    assert (sign_flips(effect_NH, 500, seed=1) != sign_flips(effect_NH, 500, seed=2)).any()


@pytest.mark.parametrize("method", ["bh", "by"])
def test_adjusted_p_values_are_those_of_the_definition(method):
    p_LH = RNG.random((3, 4)) ** 3
    flat = np.sort(p_LH.ravel())
    factor = 1 if method == "bh" else sum(1 / k for k in range(1, 13))
    raw = [min(1, flat[i] * 12 / (i + 1) * factor) for i in range(12)]
    expected = {flat[i]: min(raw[i:]) for i in range(12)}
    found_LH = false_discoveries(p_LH, method)
    for place in np.ndindex(3, 4):
        assert found_LH[place] == pytest.approx(expected[p_LH[place]])


def test_false_discoveries_stay_below_the_level():
    shares = []
    for seed in range(40):
        effect_NH = np.random.default_rng(seed).normal(size=(20, 60))
        effect_NH[:, :20] += 1.2
        chosen_H = false_discoveries(sign_flips(effect_NH, 3000)) <= 0.1
        shares.append(chosen_H[20:].sum() / max(chosen_H.sum(), 1))
    assert np.mean(shares) <= 0.1


def test_an_interval_holds_the_mean_as_often_as_it_says():
    holds = []
    for seed in range(20):
        low_H, high_H = interval(np.random.default_rng(seed).normal(2, 1, (60, 100)), 0.9, 500, seed)
        holds.append(((low_H <= 2) & (high_H >= 2)).mean())
    assert np.mean(holds) == pytest.approx(0.9, abs=0.03)


def test_an_interval_is_that_of_drawing_prompts_one_by_one():
    effect_NLH = RNG.normal(size=(50, 2, 3)).astype(np.float32)
    low_LH, high_LH = interval(effect_NLH, draws=4000)
    means_SLH = np.array([effect_NLH[RNG.integers(50, size=50)].mean(0) for _ in range(4000)])
    np.testing.assert_allclose(low_LH, np.quantile(means_SLH, 0.025, axis=0), atol=0.04)
    np.testing.assert_allclose(high_LH, np.quantile(means_SLH, 0.975, axis=0), atol=0.04)


@settings(deadline=None)
@given(rankings())
def test_auroc_counts_pairs_and_ties_as_half(ranking):
    score, truth = ranking
    pairs = [(a > b) + (a == b) / 2 for a in score[truth] for b in score[~truth]]
    assert auroc(score, truth) == pytest.approx(np.mean(pairs))


@settings(deadline=None)
@given(rankings())
def test_average_precision_sums_over_thresholds(ranking):
    score, truth = ranking
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        chosen = score >= threshold
        now = truth[chosen].sum() / truth.sum()
        expected, recall = expected + (now - recall) * truth[chosen].mean(), now
    assert average_precision(score, truth) == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(rankings())
def test_precision_at_truth_is_the_mean_over_the_orders_of_ties(ranking):
    score, truth = ranking
    rng, count = np.random.default_rng(0), truth.sum()
    drawn = [truth[np.lexsort((rng.random(len(score)), -score))[:count]].mean() for _ in range(3000)]
    assert precision_at_truth(score, truth) == pytest.approx(np.mean(drawn), abs=0.05)


def test_a_perfect_ranking_a_reversed_one_and_one_without_information():
    truth_LH = np.zeros((3, 4), bool)
    truth_LH[1, :3] = True
    best = recovery(truth_LH.astype(float), truth_LH)
    assert (best.auroc, best.average_precision, best.precision_at_truth, best.chance) == (1, 1, 1, 0.25)
    assert auroc(-truth_LH.astype(float), truth_LH) == 0
    same = recovery(np.zeros((3, 4)), truth_LH)
    assert (same.auroc, same.average_precision, same.precision_at_truth) == (0.5, 0.25, 0.25)


def test_the_curve_of_a_small_ranking_is_as_counted_by_hand():
    seen = curve(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, False]))
    np.testing.assert_array_equal(seen.threshold, [0.9, 0.5, 0.1])
    np.testing.assert_array_equal(seen.recall, [0.5, 1, 1])
    np.testing.assert_array_equal(seen.fallout, [0, 0.5, 1])
    np.testing.assert_allclose(seen.precision, [1, 2 / 3, 0.5])


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(InputError, match="at least one prompt"):
        sign_flips(np.zeros((0, 3)))
    with pytest.raises(InputError, match="finite"):
        interval(np.array([[np.inf]]))
    with pytest.raises(InputError, match="level"):
        interval(np.ones((3, 1)), level=95.0)
    with pytest.raises(InputError, match="unknown correction 'bonferroni'"):
        false_discoveries(np.ones(3), "bonferroni")
    with pytest.raises(InputError, match="between 0 and 1"):
        false_discoveries(np.array([0.5, np.nan]))
    with pytest.raises(InputError, match="0 of 3 are true"):
        auroc(np.zeros(3), np.zeros(3, bool))
    with pytest.raises(InputError, match="numbers"):
        auroc(np.array([np.nan, 1]), np.array([True, False]))
