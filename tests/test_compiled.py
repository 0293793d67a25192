"""Is the circuit of the compiled model the one that its text tells, and do probes, edits and labels find just that?"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from workbench import groups, measure
from workbench.captures import capture
from workbench.compiled import INDUCTION, NEAREST, PREVIOUS, _codes, _one_back, induction_model
from workbench.edits import Ablate
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import label
from workbench.probes import PROBES
from workbench.prompts import Prompts
from workbench.reads import HeadOutput, NextToken, Pattern
from workbench.recipes import RepeatedTokens
from workbench.tiny import VOCABULARY, byte_tokenizer
from workbench.weights import Weights

REPEATED = RepeatedTokens(length=30, repeats=2, count=4)
IDLE = [Head(layer, index) for layer in range(2) for index in range(4) if Head(layer, index) not in (PREVIOUS, INDUCTION)]


@pytest.fixture(scope="module")
def model():
    return induction_model()


@pytest.fixture(scope="module")
def prompts(model):
    return REPEATED.build(model, 3)[0]


@pytest.fixture(scope="module")
def pattern_BLHQK(model, prompts):
    return capture(model, prompts, [Pattern()])[Pattern()]


def accuracy(model, prompts, edits=()):
    """How often the next token of the repeated part is predicted."""
    rows = prompts.rows["repeat"][0][:-1]
    choice_BT = capture(model, prompts, [NextToken()], edits)[NextToken()].choice
    return float((choice_BT[:, rows] == prompts.ids_BT[:, rows + 1]).mean())


def others(score_LH, head):
    return np.delete(score_LH.ravel(), head.layer * score_LH.shape[1] + head.index)


def test_the_previous_token_head_attends_one_back_and_no_other_does(pattern_BLHQK):
    score_LH = np.mean([pattern_BLHQK[..., row, row - 1] for row in range(1, 60)], axis=(0, 1))
    assert score_LH[PREVIOUS.layer, PREVIOUS.index] >= 0.99
    assert others(score_LH, PREVIOUS).max() < 0.5


def test_the_induction_head_attends_behind_the_earlier_copy_from_every_row(pattern_BLHQK):
    mass = np.array([pattern_BLHQK[:, 1, INDUCTION.index, row, row - 29] for row in range(30, 60)])
    assert mass.min() >= 0.99  # also from the copy of the very first token, whose own slot was filled by itself


def test_the_first_row_of_the_previous_token_head_attends_to_itself(pattern_BLHQK):
    np.testing.assert_allclose(pattern_BLHQK[:, 0, PREVIOUS.index, 0, 0], 1)


def test_an_earlier_token_that_occurred_twice_shares_the_attention(model):
    ids = np.array([[20, 40, 41, 42, 40, 43, 44, 40]])
    pattern_QK = capture(model, Prompts(ids), [Pattern()])[Pattern()][0, 1, INDUCTION.index]
    np.testing.assert_allclose(pattern_QK[7, [2, 5]], 0.5, atol=0.005)


@pytest.mark.parametrize("head", IDLE, ids=str)
def test_idle_heads_attend_uniformly_or_to_themselves(pattern_BLHQK, head):
    pattern_QK = pattern_BLHQK[0, head.layer, head.index]
    expected = np.eye(60) if head.index % 2 else np.tril(np.ones((60, 60))) / np.arange(1, 61)[:, None]
    np.testing.assert_allclose(pattern_QK, expected, atol=0.01)


def test_idle_heads_write_nothing(model, prompts):
    z_BLHQE = capture(model, prompts, [HeadOutput()])[HeadOutput()]
    written = {head: np.abs(z_BLHQE[:, head.layer, head.index] @ model.weights.o(head).numpy()).max() for head in (*IDLE, PREVIOUS, INDUCTION)}
    assert [head for head, most in written.items() if most > 0] == [PREVIOUS, INDUCTION]


def test_every_vector_before_a_norm_has_mean_0_and_comes_out_of_it_as_it_went_in(model, prompts):
    seen = []
    norms = [model.hf.transformer.h[0].ln_1, model.hf.transformer.h[1].ln_1]
    handles = [norm.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))) for norm in norms]
    try:
        model.hf(torch.tensor(np.array(prompts.ids_BT)))
    finally:
        for handle in handles:
            handle.remove()
    for before, after in seen:
        torch.testing.assert_close(before.mean(-1), torch.zeros(before.shape[:-1]), atol=1e-7, rtol=0)
        torch.testing.assert_close(before, after, atol=0.01, rtol=0)


def test_the_repeated_token_is_predicted_every_time_and_with_confidence(model, prompts):
    assert accuracy(model, prompts) == 1.0
    rows = prompts.rows["repeat"][0][:-1]
    logprob_BT = capture(model, prompts, [NextToken()])[NextToken()].logprob
    assert np.exp(logprob_BT[:, rows]).min() > 0.99


def test_nothing_is_predicted_where_nothing_repeats(model):
    prompts = replace(REPEATED, repeated=False).build(model, 3)[0]
    assert accuracy(model, prompts) < 0.1


@pytest.mark.parametrize("kind", ["zero", "uniform"])
@pytest.mark.parametrize("head", [PREVIOUS, INDUCTION], ids=str)
def test_without_either_head_of_the_circuit_nothing_is_predicted(model, prompts, head, kind):
    assert accuracy(model, prompts, [Ablate((head,), kind)]) < 0.1


@pytest.mark.parametrize("kind", ["zero", "uniform"])
def test_without_all_idle_heads_everything_is_predicted(model, prompts, kind):
    assert accuracy(model, prompts, [Ablate(tuple(IDLE), kind)]) == 1.0


def test_the_induction_head_copies_and_no_other_head_does(model):
    (score_LH,) = PROBES["copying"].score(Weights(model.weights, model.shape))
    assert score_LH[1, INDUCTION.index] == pytest.approx(1, abs=1e-4)
    assert np.abs(others(score_LH, INDUCTION)).max() < 1e-6


@dataclass(frozen=True)
class RandomTokens:
    """Text for a model without a tokenizer: random ids, and uniform attention as the null."""

    def build(self, model, seed):
        return [Prompts(np.random.default_rng(seed).integers(3, model.vocabulary, (4, 60)))]

    def control(self):
        return None

    def lengths(self, model):
        return [60] * 4


@pytest.fixture(scope="module")
def labels(model):
    names = ("previous_token", "induction", "duplicate_token", "razor_echo", "razor_induction", "copying")
    text = replace(PROBES["previous_token"], recipes={"quick": RandomTokens()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "probe", lambda name: text if name == "previous_token" else PROBES[name])
        return label(measure.score(model, names))


def test_labels_stand_at_exactly_the_heads_of_the_circuit(labels):
    found = {head: set(names) for head, names in labels.labels.items() if names}
    assert found == {PREVIOUS: {"previous_token"}, INDUCTION: {"induction", "razor_induction", "copying"}}


def test_scores_of_the_circuit_are_nearly_1_and_those_of_the_other_heads_below_a_half(labels):
    known = {"previous_token": PREVIOUS, "induction": INDUCTION, "razor_induction": INDUCTION, "copying": INDUCTION}
    for probe, score_LH in labels.scores.items():
        if probe in known:
            assert score_LH[known[probe].layer, known[probe].index] >= 0.99
            assert others(score_LH, known[probe]).max() < 0.5
        else:
            assert score_LH.max() < 0.5, probe


def test_with_a_tokenizer_it_reads_and_continues_text(model):
    assert model.tokenizer is None
    large = induction_model(VOCABULARY, 16, byte_tokenizer())
    text = capture(large, "abcab", [NextToken(), Pattern()])
    assert large.tokenizer.decode(text[NextToken()].choice[0, -2:].tolist()) == "bc"


def test_position_codes_have_norm_1_differ_by_enough_and_turn_one_back():
    code_TP = _codes(torch.arange(1024))
    product_TT = code_TP @ code_TP.T
    torch.testing.assert_close(product_TT.diagonal(), torch.ones(1024))
    assert (product_TT - 2 * torch.eye(1024)).max() < 1 - NEAREST
    torch.testing.assert_close(code_TP[1:] @ _one_back(), code_TP[:-1], atol=1e-5, rtol=0)


def test_the_longest_text_still_has_sharp_heads():
    model = induction_model(100, 1024)
    ids = np.random.default_rng(0).integers(3, 100, (1, 1024))
    pattern_QK = capture(model, Prompts(ids), [Pattern()])[Pattern()][0, 0, PREVIOUS.index]
    assert np.diagonal(pattern_QK, -1).min() >= 0.99


@pytest.mark.parametrize(("vocabulary", "length"), [(20, 64), (100, 1), (100, 1025)])
def test_sizes_for_which_the_construction_fails_are_refused(vocabulary, length):
    with pytest.raises(InputError, match="a compiled model has 21 tokens or more and a length of 2–1024"):
        induction_model(vocabulary, length)


def test_the_smallest_model_works():
    model = induction_model(21, 4)
    ids = np.array([[3, 4, 5, 4]])
    assert capture(model, Prompts(ids), [NextToken()])[NextToken()].choice[0, -1] == 5
