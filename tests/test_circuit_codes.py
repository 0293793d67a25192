"""Are integer codes, their scores for heads and edges, and the controls what loops over single examples say? Do planted codes come out?"""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.circuits.code_controls import distinct, information, label_null, norms, sensitivity, stability
from workbench.circuits.code_edges import edge_scores, endpoint_counts, pair_scores
from workbench.circuits.codes import Codes, CodeSettings, _Autoencoder, encode, node_scores, probabilities
from workbench.circuits.statistics import Curve, auroc
from workbench.errors import InputError
from workbench.heads import Head

RNG = np.random.default_rng(0)
FEW = CodeSettings(latents=12, examples=6, epochs=40)
LABELS = np.repeat([True, False], 20)


def random_codes(latents=8, layers=3, heads=2, pairs=20, seed=0):
    rng = np.random.default_rng(seed)
    return Codes(rng.integers(latents, size=(2 * pairs, layers, heads)), np.repeat([True, False], pairs), CodeSettings(latents=latents))


@pytest.fixture(scope="module")
def planted():
    """Head L1H0 writes one direction on positives and another on negatives; L0H0 one at all times; L2H1 anything at any time, loudly; the rest noise."""
    rng = np.random.default_rng(1)
    write_NLHD = 0.01 * rng.normal(size=(40, 3, 2, 16))
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    write_NLHD[:20, 1, 0] += 2 * directions[0]
    write_NLHD[20:, 1, 0] += 2 * directions[1]
    write_NLHD[:, 0, 0] += 2 * directions[2]
    write_NLHD[:, 2, 1] += 5 * rng.normal(size=(40, 16))
    return write_NLHD.astype(np.float32)


def test_a_planted_head_has_a_code_on_positives_only(planted):
    codes = encode(planted, LABELS, CodeSettings(latents=50, examples=10, epochs=200))
    assert len(set(codes.code_NLH[:20, 1, 0])) == len(set(codes.code_NLH[20:, 1, 0])) == 1
    score_LH = node_scores(codes)
    assert score_LH[1, 0] == 1
    assert score_LH[0, 0] == 0
    assert score_LH[2, 1] > 1  # the loud head wins without knowing the label
    assert node_scores(codes, normalise=True)[1, 0] == 0.5


def test_the_null_and_the_information_tell_the_planted_head_from_the_loud_one(planted):
    codes = encode(planted, LABELS, CodeSettings(latents=50, examples=10, epochs=200))
    null, told = label_null(codes), information(codes)
    assert null.p_LH[1, 0] == told.p_LH[1, 0] == pytest.approx(1 / 201)
    assert null.p_LH[0, 0] == told.p_LH[0, 0] == 1
    assert told.score_LH[1, 0] == pytest.approx(1)
    assert told.excess_LH.argmax() == 2
    assert abs(null.excess_LH[2, 1]) < 3
    assert min(norms(planted)[2, 1], distinct(codes)[2, 1]) > max(norms(planted)[1, 0], distinct(codes)[1, 0])


def test_codes_are_the_most_active_latent_and_depend_on_the_seed_alone(planted):
    codes = encode(planted, LABELS, FEW)
    again, other = encode(planted, LABELS, FEW), encode(planted, LABELS, replace(FEW, seed=1))
    np.testing.assert_array_equal(codes.code_NLH, again.code_NLH)
    assert (codes.code_NLH != other.code_NLH).any()
    assert codes.code_NLH.shape == (40, 3, 2)
    assert codes.loss == again.loss > 0


@pytest.mark.parametrize("lower", [0.0, 1.5], ids=["many latents", "few latents"])
def test_training_is_that_of_a_plain_loop(lower):
    x_ND = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    trained = _Autoencoder(6, replace(FEW, epochs=25))
    e, d, c, b = (one.clone() for one in (trained.encoder_FD, trained.decoder_DF, trained.bias_F, trained.bias_D))
    assert b.abs().max() == 0
    assert c.abs().max() <= 6**-0.5
    trained.bias_F -= lower
    c = c - lower
    assert bool((trained.latents(x_ND) > 0).any(1).all()) == (lower == 0)
    loss = trained.train(x_ND)
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in (e, d, c, b)]
    for step in range(1, 26):
        e, d = e / e.norm(dim=1, keepdim=True), d / d.norm(dim=1, keepdim=True)
        parts = [one.detach().requires_grad_() for one in (e, d, c, b)]
        latents = ((x_ND - parts[3]) @ parts[0].T + parts[2]).clamp(min=0)
        value = ((latents @ parts[1].T + parts[3] - x_ND) ** 2).mean() + FEW.l1 * latents.abs().sum(1).mean()
        grads = list(torch.autograd.grad(value, parts))
        for index in (0, 1):
            grads[index] = grads[index] - (grads[index] * parts[index]).sum(1, keepdim=True) * parts[index]
        moments = [(0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2) for (m, v), g in zip(moments, grads, strict=True)]
        e, d, c, b = (
            (part - FEW.rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)).detach() for part, (m, v) in zip(parts, moments, strict=True)
        )
    torch.testing.assert_close(trained.encoder_FD, e / e.norm(dim=1, keepdim=True), atol=1e-4, rtol=0)
    torch.testing.assert_close(trained.bias_D, b, atol=1e-4, rtol=0)
    assert loss == pytest.approx(float(value.detach()), rel=1e-4)


def test_a_vector_without_latents_has_code_0():
    write_NLHD = np.zeros((12, 1, 1, 8), np.float32)
    codes = encode(write_NLHD, np.repeat([True, False], 6), replace(FEW, l1=1.0, epochs=400))
    assert set(codes.code_NLH.ravel()) == {0}


@pytest.mark.parametrize("normalise", [False, True])
def test_node_scores_are_differences_of_sets(normalise):
    codes = random_codes(30)
    for layer, head in np.ndindex(3, 2):
        positive, negative = (set(codes.code_NLH[rows, layer, head]) for rows in (codes.positive_N, ~codes.positive_N))
        expected = len(positive - negative) / (len(positive | negative) if normalise else 1)
        assert node_scores(codes, normalise)[layer, head] == pytest.approx(expected)
        assert distinct(codes)[layer, head] == len(positive | negative)


@pytest.mark.parametrize("normalise", [False, True])
def test_pair_scores_are_differences_of_sets_of_pairs(normalise):
    codes = random_codes()
    flat = codes.code_NLH.reshape(40, -1)
    score_HH = pair_scores(codes, normalise)
    for a, b in itertools.product(range(6), repeat=2):
        positive, negative = ({(row[a], row[b]) for row in flat[rows]} for rows in (codes.positive_N, ~codes.positive_N))
        expected = len(positive - negative) / (len(positive) + len(negative) if normalise else 1)
        assert score_HH[a, b] == pytest.approx(expected if a != b else 0)


@pytest.mark.parametrize("entries", [None, 1, 7, 72])
def test_endpoints_are_counted_in_the_flat_list(entries):
    codes = random_codes()
    score_HH = pair_scores(codes)
    pairs = sorted(itertools.product(range(6), repeat=2), key=lambda pair: -score_HH[pair])
    counted = Counter([end for pair in pairs for end in pair][: entries or 18])
    np.testing.assert_array_equal(endpoint_counts(codes, entries).ravel(), [counted[head] for head in range(6)])


def test_edges_go_to_later_layers_only():
    codes = random_codes()
    edges = edge_scores(codes)
    assert len(edges.score_E) == 12
    assert all(sender.layer < receiver.layer for sender, receiver in edges.pairs())
    at = edges.pairs().index((Head(0, 1), Head(2, 0)))
    assert edges.score_E[at] == pair_scores(codes)[1, 4]


def test_a_planted_pair_of_heads_scores_as_an_edge_where_neither_does_alone():
    code_NLH = np.zeros((40, 2, 2), int)
    code_NLH[:, 0, 0] = np.tile([0, 1], 20)
    code_NLH[:20, 1, 1] = np.tile([0, 1], 10)  # the same on positives, the opposite on negatives
    code_NLH[20:, 1, 1] = np.tile([1, 0], 10)
    codes = Codes(code_NLH, LABELS, CodeSettings(latents=4))
    assert node_scores(codes).max() == 0
    edges = edge_scores(codes)
    assert edges.pairs()[edges.score_E.argmax()] == (Head(0, 0), Head(1, 1))
    assert edges.score_E.max() == 2


def test_a_softmax_over_all_heads_keeps_the_order_and_one_over_layers_does_not():
    score_LH, truth_LH = RNG.integers(0, 40, (4, 5)).astype(float), RNG.random((4, 5)) < 0.4
    whole_LH = probabilities(score_LH)
    assert whole_LH.sum() == pytest.approx(1)
    assert auroc(whole_LH, truth_LH) == auroc(score_LH, truth_LH)
    across_LH = probabilities(score_LH, "across_layers")
    np.testing.assert_allclose(across_LH.sum(0), 1)
    np.testing.assert_allclose(across_LH, np.exp(score_LH) / np.exp(score_LH).sum(0))
    with pytest.raises(InputError, match="unknown softmax 'heads'"):
        probabilities(score_LH, "heads")


def test_p_values_of_noise_are_uniform_but_for_ties():
    codes = random_codes(latents=60, layers=20, heads=20, pairs=40)
    for p_LH in (label_null(codes).p_LH, information(codes).p_LH):
        for level in (0.05, 0.2, 0.5):
            assert (p_LH <= level).mean() <= level + 0.05
        assert p_LH.mean() < 0.65
    assert abs(label_null(codes).excess_LH.mean()) < 0.35
    assert abs(information(codes).excess_LH.mean()) < 0.01
    assert information(codes).score_LH.mean() > 0.2  # which is bias


def test_the_null_is_that_of_swapping_labels_one_by_one():
    codes = random_codes(latents=10, pairs=6)
    positive, negative = codes.pairs
    every = []
    for turned in itertools.product([False, True], repeat=6):
        a, b = np.where(np.array(turned)[:, None, None], negative, positive), np.where(np.array(turned)[:, None, None], positive, negative)
        every.append([[len(set(a[:, layer, head]) - set(b[:, layer, head])) for head in range(2)] for layer in range(3)])
    expected_LH = (np.array(every) >= node_scores(codes)).mean(0)
    null = label_null(codes, permutations=4000)
    np.testing.assert_allclose(null.p_LH, expected_LH, atol=0.03)
    np.testing.assert_allclose(null.excess_LH, node_scores(codes) - np.mean(every, axis=0), atol=0.06)


def test_information_is_that_of_the_definition():
    codes = random_codes(latents=4)
    for layer, head in np.ndindex(3, 2):
        joint = Counter(zip(codes.code_NLH[:, layer, head].tolist(), codes.positive_N.tolist(), strict=True))
        code, label = Counter(codes.code_NLH[:, layer, head].tolist()), Counter(codes.positive_N.tolist())
        expected = sum(n / 40 * np.log2(n * 40 / (code[c] * label[y])) for (c, y), n in joint.items())
        assert information(codes, 2).score_LH[layer, head] == pytest.approx(expected)


def test_the_released_f1_is_far_above_the_real_one_where_few_heads_are_true():
    example = Curve(np.array([0.5]), np.array([208]), np.array([236]), 260, 1440)
    assert example.f1_released[0] == pytest.approx(0.80, abs=0.005)
    assert example.f1[0] == pytest.approx(0.59, abs=0.005)


def test_stability_and_sensitivity_give_one_row_per_setting(planted):
    found = stability(planted, LABELS, FEW, seeds=(0, 1, 2))
    assert found.score_SLH.shape == (3, 3, 2)
    expected = [stats.spearmanr(found.score_SLH[i].ravel(), found.score_SLH[j].ravel()).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.correlation == pytest.approx(np.mean(expected), nan_ok=True)
    truth_LH = np.zeros((3, 2), bool)
    truth_LH[1, 0] = True
    table = sensitivity(planted, LABELS, truth_LH, FEW, examples=(4, 8), latents=(10, 20), seeds=(0,), pairs=(5, 20))
    assert len(table) == 8
    assert set(table["latents"]) == {10, 20}
    last = table[(table.examples == 8) & (table.latents == 20) & (table.pairs == 20)].iloc[0]
    codes = encode(planted, LABELS, replace(FEW, examples=8, latents=20))
    assert last.auroc == auroc(node_scores(codes), truth_LH)
    assert last.codes == distinct(codes).mean()
    assert len(sensitivity(planted, LABELS, truth_LH, FEW, examples=(4,), seeds=(0, 1))) == 2


def test_what_cannot_be_coded_is_refused(planted):
    with pytest.raises(InputError, match="trained on 41 examples, and there are 40"):
        encode(planted, LABELS, replace(FEW, examples=41))
    with pytest.raises(InputError, match="0 of 40 are positive"):
        encode(planted, np.zeros(40, bool), FEW)
    with pytest.raises(InputError, match="finite"):
        encode(np.full_like(planted, np.nan), LABELS, FEW)
    with pytest.raises(InputError, match="not the settings"):
        CodeSettings(latents=0)
    lone = Codes(np.zeros((3, 1, 1), int), np.array([True, True, False]))
    with pytest.raises(InputError, match="there are 2 and 1"):
        label_null(lone)
    with pytest.raises(InputError, match="codes lie between 0 and 199"):
        Codes(np.full((2, 1, 1), 200), np.array([True, False]))
    with pytest.raises(InputError, match="21 cannot be taken"):
        random_codes().only(21)
    with pytest.raises(InputError, match="73 cannot be counted"):
        endpoint_counts(random_codes(), 73)
    with pytest.raises(InputError, match="two seeds"):
        stability(planted, LABELS, FEW, seeds=(0,))
