"""Are the weights by head those of the model? Norms and vocabulary against what the modules do; q, k, v and o are held in test_models.py."""

import pytest
import torch
from eager import eager, random_ids, random_prompts, tiny

from workbench.captures import capture
from workbench.errors import InputError
from workbench.heads import Head
from workbench.reads import NextToken
from workbench.tiny import ARCHITECTURES
from workbench.weights import FAMILIES, Weights

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)
CENTRED = {"gpt2", "gpt_neox"}


def test_every_tiny_architecture_is_supported_and_every_supported_one_is_tested():
    assert set(FAMILIES) == set(ARCHITECTURES)


def normed(x_TD: torch.Tensor, architecture: str, matrix_DD: torch.Tensor) -> torch.Tensor:
    """x @ matrix over the length that the norm divides by."""
    centre = x_TD.mean(-1, keepdim=True) if architecture in CENTRED else 0
    return x_TD @ matrix_DD / (x_TD - centre).pow(2).mean(-1, keepdim=True).sqrt()


@architectures
def test_the_norm_in_front_of_attention_is_its_linear_part_and_a_length(architecture):
    model, residual = tiny(architecture), []
    names = {id(module): name for name, module in model.hf.named_modules()}
    blocks = [model.hf.get_submodule(names[id(attention)].rpartition(".")[0]) for attention in model.weights.attentions]
    hooks = [block.register_forward_pre_hook(lambda module, args: residual.append(args[0])) for block in blocks]
    inputs = eager(model, random_ids(1, 12)).input
    for hook in hooks:
        hook.remove()
    for layer, (block, x_BTD) in enumerate(zip(blocks, residual, strict=True)):
        bias = {"gpt2": "ln_1", "gpt_neox": "input_layernorm"}.get(architecture)
        expected = inputs[layer] - (getattr(block, bias).bias if bias else 0)
        torch.testing.assert_close(normed(x_BTD, architecture, model.weights.input_norm(layer)), expected, atol=2e-4, rtol=1e-3)


@architectures
def test_embedding_norm_and_unembedding_predict_as_the_model_does(architecture):
    """The hidden state in front of the final norm, through our matrices, has the model's log-probabilities (uncapped)."""
    model, before, logits = tiny(architecture), [], []
    names = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
    norm = model.hf.get_submodule(names.get(architecture, "model.norm"))
    hooks = [norm.register_forward_pre_hook(lambda module, args: before.append(args[0]))]
    hooks += [model.hf.get_output_embeddings().register_forward_hook(lambda module, args, out: logits.append(out))]
    capture(model, random_prompts(1, 12), [NextToken()])
    for hook in hooks:
        hook.remove()
    final = normed(before[0][0], architecture, model.weights.final_norm()) + (norm.bias if architecture in CENTRED else 0)
    got = (final @ model.weights.unembedding()).log_softmax(-1)
    torch.testing.assert_close(got, logits[0][0].log_softmax(-1), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(model.weights.embedding(), model.hf.get_input_embeddings().weight)


def test_the_unembedding_is_centred_over_the_vocabulary():
    unembedding_DV = tiny("llama").weights.unembedding()
    assert unembedding_DV.shape == (48, 260)
    torch.testing.assert_close(unembedding_DV.mean(1), torch.zeros(48), atol=1e-6, rtol=0)


def test_query_heads_of_a_group_share_keys_and_values_only():
    weights = tiny("llama").weights
    for view in (weights.k, weights.v):
        assert torch.equal(view(Head(1, 3)), view(Head(1, 5)))
        assert not torch.equal(view(Head(1, 2)), view(Head(1, 3)))
    assert not torch.equal(weights.q(Head(1, 3)), weights.q(Head(1, 5)))
    assert not torch.equal(weights.o(Head(1, 3)), weights.o(Head(1, 5)))


@architectures
def test_views_have_the_input_dimension_first_in_float32(architecture):
    model = tiny(architecture)
    sizes = [getattr(model.weights, name)(Head(0, 1)).shape for name in "qkvo"]
    d_model, d_head = model.shape.d_model, model.shape.d_head
    assert sizes == [(d_model, d_head)] * 3 + [(d_head, d_model)]


@pytest.mark.parametrize("view", ["q", "k", "v", "o"])
@pytest.mark.parametrize("head", [Head(2, 0), Head(0, 6)])
def test_a_head_that_the_model_lacks_has_no_weights(view, head):
    with pytest.raises(InputError, match=f"no head {head} in a model"):
        getattr(tiny("llama").weights, view)(head)


def test_an_attention_block_without_bias_has_a_bias_of_zero():
    assert not tiny("llama").weights.output_bias(0).any()
    assert torch.equal(tiny("gpt2").weights.output_bias(1), tiny("gpt2").hf.transformer.h[1].attn.c_proj.bias)


# ------------------------------------------------------------------------------------------------- the vocabulary seen through heads


def test_layers_hold_the_value_and_output_weights_of_every_head():
    model = tiny("llama")
    layers = list(Weights(model.weights, model.shape).layers)
    assert len(layers) == 2
    for layer, (value_HDE, output_HED) in enumerate(layers):
        for index in range(6):
            assert torch.equal(value_HDE[index], model.weights.v(Head(layer, index)))
            assert torch.equal(output_HED[index], model.weights.o(Head(layer, index)))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_the_full_circuit_goes_from_output_over_the_vocabulary_to_input(architecture):
    model = tiny(architecture)
    weights, full = model.weights, Weights(model.weights, model.shape).full_DD
    for layer in range(2):
        vocabulary = weights.final_norm() @ weights.unembedding() @ weights.embedding() @ weights.input_norm(layer)
        torch.testing.assert_close(full[layer], vocabulary, atol=1e-3, rtol=1e-3)


def test_the_control_deals_the_embeddings_to_the_wrong_tokens():
    model = tiny("llama")
    weights = model.weights
    order = torch.randperm(260, generator=torch.Generator().manual_seed(3))
    expected = weights.final_norm() @ weights.unembedding() @ weights.embedding()[order] @ weights.input_norm(1)
    torch.testing.assert_close(Weights(weights, model.shape, shuffle=3).full_DD[1], expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(Weights(weights, model.shape, shuffle=4).full_DD[1], expected, atol=0.1)
    assert not torch.allclose(Weights(weights, model.shape).full_DD[1], expected, atol=0.1)
