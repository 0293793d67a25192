"""Does a program compiled by Tracr compute in our model what it computes in Tracr's own?"""

import itertools
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from workbench.circuits.tracr import PROGRAMS, START, compiled_program
from workbench.errors import InputError
from workbench.heads import Head

needs_tracr = pytest.mark.skipif(find_spec("tracr") is None, reason="needs tracr-pypi")


@pytest.fixture(scope="module", params=sorted(PROGRAMS))
def compiled(request):
    return request.param, compiled_program(request.param, 5)


def sequences(name, count=40):
    every = [list(values) for length in (3, 5) for values in itertools.product(PROGRAMS[name].values, repeat=length)]
    return [every[index] for index in np.random.default_rng(0).permutation(len(every))[:count]]


@needs_tracr
def test_outputs_are_those_of_tracr(compiled):
    name, made = compiled
    for values in sequences(name):
        expected = made.tracr.apply([START, *values]).decoded[1:]
        found = made.run(values)
        assert found == (expected if made.outputs else pytest.approx(expected, abs=1e-4))


@needs_tracr
def test_residual_streams_are_those_of_tracr(compiled):
    name, made = compiled
    values = sequences(name)[0]
    ours = made.tracr.apply([START, *values])
    ids = made.model.tokenizer(" ".join(map(str, values)))["input_ids"]
    states = made.model.hf(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    assert ids[0] == made.model.tokenizer.bos_token_id
    for layer, state_1TD in enumerate(states[1:]):
        expected_TD = np.array(ours.residuals[2 * layer + 1])[0]
        np.testing.assert_allclose(state_1TD[0, :, : expected_TD.shape[1]], expected_TD, atol=1e-4)
        assert not state_1TD[0, :, expected_TD.shape[1] :].any()


@needs_tracr
def test_live_heads_are_those_that_write():
    assert compiled_program("frac_prevs").live == {Head(1, 0)}
    assert compiled_program("hist").live == {Head(0, 0)}
    assert compiled_program("sort").live == {Head(1, 0), Head(2, 0)}
    dyck = compiled_program("dyck", 4)
    assert 1 < len(dyck.live) < dyck.model.shape.n_layers * dyck.model.shape.n_heads
    assert {Head(1, 0), Head(1, 1)} <= dyck.live


@needs_tracr
def test_what_programs_compute():
    assert compiled_program("frac_prevs").run(["a", "b", "a", "c"]) == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2], abs=1e-3)
    assert compiled_program("hist").run(["a", "b", "a", "a"]) == [1, 1, 2, 3]
    assert compiled_program("shift").run(["a", "b", "c"])[1:] == ["a", "b"]


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    with pytest.raises(InputError, match="unknown program 'quine'"):
        compiled_program("quine")
    with pytest.raises(InputError, match="two values or more"):
        compiled_program("hist", 1)
    monkeypatch.setattr("workbench.circuits.tracr.find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install tracr-pypi"):
        compiled_program("hist")
