"""Is what the dashboard tells of a calibrated text what the edit does? Against its definition, plain captures, and sinks counted by the edit itself."""

import numpy as np
import pytest

from workbench.calibration import shift, trial
from workbench.captures import capture, generate
from workbench.edits import Calibrate, SinkRule
from workbench.errors import InputError
from workbench.heads import Head
from workbench.prompts import Prompts
from workbench.reads import NextToken, Pattern
from workbench.tiny import random_model

TEXT = "abcab cabba ccab"
HEAD = Head(1, 3)
EDIT = Calibrate(beta=0.3, rule=SinkRule("uniform", 1.5))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request):
    return random_model(request.param)


def alone(head):
    return Calibrate((head,), EDIT.beta, EDIT.rule)


def test_a_head_calibrated_alone_keeps_beta_of_its_sinks_and_gives_the_rest_in_proportion(model):
    changed = 0
    for head in (head for head in model.shape.heads() if model.windows[head.layer] is None):
        seen = shift(model, TEXT, alone(head), head)
        sink_K = np.isin(np.arange(len(seen.tokens)), seen.sinks["position"])
        mass_Q1 = (1 - EDIT.beta) * seen.before_QK[:, sink_K].sum(1, keepdims=True)
        kept_QK = seen.before_QK[:, ~sink_K]
        expected = seen.before_QK.copy()
        expected[:, sink_K] *= EDIT.beta
        expected[:, ~sink_K] = kept_QK * (1 + mass_Q1 / kept_QK.sum(1, keepdims=True))
        np.testing.assert_allclose(seen.after_QK, expected, atol=1e-6)
        np.testing.assert_allclose(seen.after_QK.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(seen.sinks["after"], seen.after_K[sink_K])
        assert (seen.sinks["received"] > seen.sinks["limit"]).all()
        assert not sink_K[0]  # the first token is never one
        changed += sink_K.sum()
    assert changed


def test_sinks_are_as_many_as_the_edit_found(model):
    for head in model.shape.heads():
        found_LH = trial(model, TEXT, alone(head), answer_tokens=1).found_LH
        assert found_LH[head.layer, head.index] == len(shift(model, TEXT, alone(head), head).sinks)
        assert found_LH.sum() == found_LH[head.layer, head.index]


def test_the_limit_is_that_of_the_mean():
    seen = shift(random_model("llama"), TEXT, Calibrate((HEAD,), 0.3, SinkRule("absolute", 0.1)), HEAD)
    assert len(seen.sinks)
    np.testing.assert_allclose(seen.sinks["limit"], 0.1, rtol=1e-5)
    expected = [seen.before_QK[key:, key].mean() for key in seen.sinks["position"]]
    np.testing.assert_allclose(seen.sinks["received"], expected, rtol=1e-4)


def test_a_trial_is_plain_captures_with_the_edits(model):
    edit = Calibrate((Head(1, 1), Head(0, 2)), 0.1, EDIT.rule)
    result = trial(model, TEXT, edit, answer_tokens=3)
    assert {head.layer for head in result.control} == {0, 1}
    assert not set(result.control) & set(edit.heads)
    prompts = Prompts.from_text(model, TEXT)
    for name, edits in (("plain", []), ("calibrated", [edit]), ("control", [Calibrate(result.control, 0.1, EDIT.rule)])):
        seen = capture(model, prompts, [NextToken()], edits)[NextToken()]
        best = result.following.loc[result.following[name].idxmax(), "token"]
        assert best == model.tokenizer.decode([int(seen.choice[0, -1])])
        if name in result.answers:
            assert result.answers[name] == generate(model, prompts, [], max_new_tokens=3, edits=edits).prompts.facts[0]["response"]
    assert (result.following[["plain", "calibrated", "control"]].sum() <= 1 + 1e-5).all()
    assert not np.allclose(result.following["plain"], result.following["calibrated"], atol=1e-4)


def test_all_heads_have_no_control():
    result = trial(random_model("llama"), TEXT, EDIT, answer_tokens=1)
    assert result.control == ()
    assert list(result.following) == ["token", "plain", "calibrated"]
    assert (result.found_LH > 0).sum() > 2


def test_the_shift_of_a_plain_head_behind_calibrated_ones_is_theirs():
    model, first = random_model("llama"), tuple(Head(0, index) for index in range(6))
    seen = shift(model, TEXT, Calibrate(first, 0.1, EDIT.rule), HEAD)
    after = capture(model, TEXT, [Pattern()], [Calibrate(first, 0.1, EDIT.rule)])[Pattern()][0, 1, 3]
    np.testing.assert_allclose(seen.after_QK, after, atol=1e-6)
    assert np.abs(seen.after_QK - seen.before_QK).max() > 1e-3


@pytest.mark.parametrize(
    ("text", "edit", "head", "words"),
    [
        ("", EDIT, HEAD, "there is no text"),
        (TEXT, Calibrate((), 0.5), HEAD, "no head"),
        (TEXT, EDIT, Head(7, 0), "no head L7H0"),
        (TEXT, Calibrate((Head(9, 0),), 0.5), HEAD, "L9H0"),
        (TEXT, Calibrate(tokens=(5,)), HEAD, "fixed tokens"),
        ("a" * 600, EDIT, HEAD, "at most 512"),
    ],
)
def test_what_cannot_be_shown_is_refused(text, edit, head, words):
    model = random_model("llama")
    with pytest.raises(InputError, match=words):
        shift(model, text, edit, head)
