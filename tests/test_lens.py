"""Does the TransformerLens bridge see the same model, from the same memory, without touching ours? And does SmolLM2 score as computed by hand?"""

import numpy as np
import pytest
import torch
from eager import eager, random_prompts, tiny

from workbench.attention import Tap
from workbench.captures import capture
from workbench.given import from_patterns
from workbench.heads import Head
from workbench.prompts import Prompts
from workbench.reads import HeadOutput, Mass, Pattern, Received
from workbench.tiny import ARCHITECTURES

READS = [Mass(first=4), Mass(at="duplicate"), Received()]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def bridged(request):
    """A model, prompts, and what TransformerLens's cache holds for them."""
    model, prompts = tiny(request.param), random_prompts()
    with torch.no_grad():
        _, cache = model.lens.run_with_cache(torch.tensor(prompts.ids_BT))
    return request.param, model, prompts, cache


def stacked(cache, hook):
    return torch.stack([cache[f"blocks.{layer}.attn.{hook}"] for layer in range(2)], 1).numpy()


@pytest.mark.slow
def test_the_bridge_has_the_same_patterns_and_outputs(bridged):
    _, model, prompts, cache = bridged
    seen = capture(model, prompts, [Pattern(), HeadOutput()])
    np.testing.assert_allclose(stacked(cache, "hook_pattern"), seen[Pattern()], atol=1e-5)
    np.testing.assert_allclose(stacked(cache, "hook_z").transpose(0, 1, 3, 2, 4), seen[HeadOutput()], atol=2e-5)


@pytest.mark.slow
def test_a_capture_can_be_made_from_a_bridge_cache(bridged):
    architecture, model, prompts, cache = bridged
    given, seen = from_patterns(model.card, prompts, stacked(cache, "hook_pattern"), READS), capture(model, prompts, READS)
    for read in READS[: 2 if architecture in ("mistral", "gemma2", "gemma3_text") else 3]:  # `Received` counts rows in the window
        np.testing.assert_allclose(given[read], seen[read], atol=2e-5)


@pytest.mark.slow
def test_the_bridge_has_the_same_weights_by_head(bridged):
    _, model, _, _ = bridged
    for layer, block in enumerate(model.lens.blocks):
        for index in range(model.shape.n_heads):
            head = Head(layer, index)
            torch.testing.assert_close(block.attn.W_Q[index], model.weights.q(head))
            torch.testing.assert_close(block.attn.W_V[model.shape.kv_head(head)], model.weights.v(head))
            torch.testing.assert_close(block.attn.W_O[index], model.weights.o(head))


@pytest.mark.slow
def test_the_bridge_holds_no_second_set_of_weights(bridged):
    _, model, _, _ = bridged
    ours = {weight.data_ptr() for weight in model.hf.parameters()}
    assert ours <= {weight.data_ptr() for weight in model.lens.original_model.parameters()}


@pytest.mark.slow
def test_our_model_is_untouched(bridged, monkeypatch):
    architecture, model, prompts, _ = bridged
    calls, whole = [], Tap.__call__
    monkeypatch.setattr(Tap, "__call__", lambda self, *args: calls.append(args[0]) or whole(self, *args))
    np.testing.assert_allclose(capture(model, prompts, [Pattern()])[Pattern()], eager(model, prompts.ids_BT).pattern, atol=1e-5)
    assert calls == [0, 1]
    assert model.lens.original_model is not model.hf
    assert not any("transformer_lens" in type(module).__module__ for module in model.hf.modules())
    assert (model.tokenizer.pad_token, model.tokenizer("a")["input_ids"]) == (None, [1, 67])
    assert model.config._attn_implementation == ("eager" if architecture == "gemma2" else "sdpa")


@pytest.mark.model
def test_head_scores_of_smollm2_are_those_of_an_eager_computation(smollm2):
    """Sink, previous token, duplicate and induction masses on a random half and its repetition, with loops over the eager patterns."""
    half = np.random.default_rng(0).integers(1000, 40000, 19)
    ids = np.concatenate([[0], half, half])[None]
    reads = {"sink": Mass(first=1), "previous": Mass(at="previous"), "duplicate": Mass(at="duplicate"), "induction": Mass(at="induction")}
    seen, pattern = capture(smollm2, Prompts(ids), list(reads.values())), eager(smollm2, ids).pattern
    keys = {
        "sink": lambda q: [0],
        "previous": lambda q: [q - 1] if q else [],
        "duplicate": lambda q: [q - 19] if q > 19 else [],
        "induction": lambda q: [q - 18] if q > 19 else [],
    }
    assert len(set(half)) == 19
    for name, read in reads.items():
        expected = np.stack([pattern[..., q, keys[name](q)].sum(-1) for q in range(39)], -1)
        np.testing.assert_allclose(seen[read], expected, atol=1e-4, err_msg=name)
    assert (seen[reads["induction"]][..., 20:].mean((0, -1)) > 0.4).any()  # it has induction heads
