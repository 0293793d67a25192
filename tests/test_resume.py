"""Is a pass from the middle of a model the whole pass?"""

import pytest
import torch

from workbench import tiny
from workbench.errors import InputError
from workbench.resume import blocks, residuals, resumed


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("padding", [0, 3])
def test_resumed_passes_give_the_same_logits(architecture, padding):
    model = tiny.random_model(architecture, seed=1, **({"n_layer": 3} if architecture == "gpt2" else {"num_hidden_layers": 3, "layer_types": None}))
    ids = torch.randint(3, 259, (2, 15), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(15) >= torch.tensor([[0], [padding]])).long()
    with torch.inference_mode():
        plain = model.hf(ids, attention_mask=mask, use_cache=False).logits
        residual, logits = residuals(model, ids, attention_mask=mask)
        assert residual.shape == (3, 2, 15, model.shape.d_model)
        assert torch.allclose(logits, plain[:, -1], atol=1e-4)
        for layer in (1, 2):
            with resumed(model, layer, residual[layer]) as hf:
                assert torch.equal(hf(ids, attention_mask=mask, use_cache=False).logits, plain)
            with resumed(model, layer, residual[layer] * 1.5) as hf:
                assert not torch.allclose(hf(ids, attention_mask=mask, use_cache=False).logits, plain, atol=1e-2)
        assert torch.equal(model.hf(ids, attention_mask=mask, use_cache=False).logits, plain)


def test_blocks_below_compute_nothing_and_are_restored_after_an_error():
    model = tiny.random_model("llama", seed=1)
    ids = torch.randint(3, 259, (1, 9))
    residual, _ = residuals(model, ids)
    ran = []
    handle = blocks(model)[0].mlp.register_forward_hook(lambda *_: ran.append(0))
    with resumed(model, 1, residual[1]) as hf:
        hf(ids, use_cache=False)
    assert not ran
    with pytest.raises(ZeroDivisionError), resumed(model, 1, residual[1]):
        raise ZeroDivisionError
    model.hf(ids)
    assert ran
    handle.remove()
    assert not any("forward" in vars(block) or block._forward_pre_hooks for block in blocks(model))


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_where_a_pass_cannot_be_resumed(layer):
    model = tiny.random_model("llama", seed=1)
    with pytest.raises(InputError, match="at layers 1 to 1"), resumed(model, layer, torch.zeros(1, 2, model.shape.d_model)):
        pass
