"""What one head matches, adds and where it writes most, against loops over the model's own modules and a head that is known."""

import numpy as np
import pytest
import torch
from test_patching import model_of

from workbench.circuits.anatomy import taken_apart
from workbench.circuits.one_head import contributes, matches
from workbench.compiled import INDUCTION, PREVIOUS, induction_model
from workbench.errors import InputError
from workbench.examples import AROUND, Observed, observe, strongest
from workbench.heads import Head
from workbench.tiny import byte_tokenizer

TEXT = "abcab"


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "qwen3", "gpt_neox"])
def test_matches_are_the_scores_that_the_layer_gives_two_tokens_at_one_place(architecture):
    model, head = model_of(architecture), Head(1, 3)
    table = matches(model, TEXT, head, count=3)
    ids = list(dict.fromkeys(model.tokenizer(TEXT)["input_ids"]))
    assert list(table["token"]) == [model.tokenizer.decode([one]) for one in ids]
    weights, vocabulary = model.weights, len(model.weights.embedding())
    x = weights.embedded(torch.arange(vocabulary))
    x = x + weights.mlp0(x)
    with torch.no_grad(), taken_apart(model, 1) as anatomy:
        q, k, _ = anatomy.qkv(1, x[:, None])
        for row, one in enumerate(ids):
            scores = [float(anatomy.scored(1, (q[one, head.index] * k[key, model.shape.kv_head(head)]).sum())) for key in range(vocabulary)]
            order = np.argsort(scores)
            assert table["seeks"][row][0] == model.tokenizer.decode([int(order[-1])])
            assert table["avoids"][row][0] == model.tokenizer.decode([int(order[0])])
            assert table["itself"][row] == 1 + sum(score > scores[one] for score in scores)
            assert table["spread"][row] == pytest.approx(np.std(scores, ddof=1), rel=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_contributions_are_what_the_logits_lose_with_the_norm_held(architecture):
    """With the final norm's scale and the last MLP's output held, leaving out a head of the last layer takes away exactly its share."""
    model, head = model_of(architecture), Head(2, 3)
    table = contributes(model, TEXT, head, count=2)
    ids = torch.tensor(model.tokenizer(TEXT)["input_ids"])[None]
    norm, mlp = model.weights.final_norm_module, [module for name, module in model.hf.named_modules() if name.endswith("mlp")][head.layer]
    bias, size, kept = getattr(norm, "bias", torch.zeros(1)), model.shape.d_head, {}

    def held(_module, args, out):
        straight = (args[0] - args[0].mean(-1, keepdim=True) if "LayerNorm" in type(norm).__name__ else args[0]) * norm.weight
        return straight * kept.setdefault("scale", (out - bias) / straight) + bias

    def silenced(_module, args):
        z = args[0].clone()
        z[..., head.index * size : (head.index + 1) * size] = 0
        return z, *args[1:]

    handles = [norm.register_forward_hook(held), mlp.register_forward_hook(lambda _m, _i, out: kept.setdefault("mlp", out))]
    with torch.no_grad():
        whole = model.hf(ids).logits[0]
        handles.append(model.weights.outputs[head.layer].register_forward_pre_hook(silenced))
        changed = model.hf(ids).logits[0]
    for handle in handles:
        handle.remove()
    lost = whole - changed
    lost = lost - lost.mean(-1, keepdim=True)
    for place in range(ids.shape[1] - 1):
        assert table["logit"][place] == pytest.approx(float(lost[place, ids[0, place + 1]]), abs=2e-4)
    assert np.isnan(table["logit"].iloc[-1])
    assert list(table["by"]) == pytest.approx(lost.max(-1).values.tolist(), abs=2e-4)
    assert table["raises"][0][0] == model.tokenizer.decode([int(lost[0].argmax())])


def test_an_induction_head_raises_what_came_next():
    """In the compiled model the induction head alone brings up the token that followed; the head of the previous token adds nothing to it."""
    model = induction_model(vocabulary=300, length=32, tokenizer=byte_tokenizer())
    table, before = contributes(model, "abcdabc", INDUCTION), contributes(model, "abcdabc", PREVIOUS)
    assert table["raises"].iloc[-1][0] == "d"
    assert (table["logit"].iloc[-3:-1] > 1).all()  # “a” and “b” come again
    assert abs(before["logit"].iloc[-3:-1]).max() < 1e-3


def test_the_strongest_examples_are_the_longest_writes_apart():
    model = model_of("llama")
    rng = np.random.default_rng(0)
    ids, size = rng.integers(97, 122, (2, 40)), rng.random((2, 3, 6, 40))
    size[:, 1, 2] = 1
    size[1, 1, 2, [20, 22, 33]] = [9, 8, 7]
    size[0, 1, 2, [0, 5]] = [99, 4]
    key = np.broadcast_to(np.maximum(np.arange(40) - 3, 0), size.shape)
    table = strongest(model, Observed(ids, size, key, np.full(size.shape, 0.5), "x"), Head(1, 2), count=3)
    assert table["size"].tolist() == [9, 7, 4]
    assert table["times"].tolist() == [9, 7, 4]
    assert table["back"].tolist() == [3, 3, 3]
    assert table["before"][0] == model.tokenizer.decode(ids[1, 20 - AROUND : 20])
    assert (table["token"][0], table["looks_at"][0]) == (model.tokenizer.decode(ids[1, [20]]), model.tokenizer.decode(ids[1, [17]]))


def test_what_is_observed_is_what_the_head_writes(tmp_path):
    model = model_of("llama")
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 4, encoding="utf-8")
    seen = observe(model, pieces=3, length=24, path=path)
    assert seen.written_BLHT.shape == (3, 3, 6, 24)
    with taken_apart(model, 24) as anatomy, torch.no_grad():
        trace = anatomy.trace(torch.tensor(seen.ids_BT))
        z, o = trace.z[2][:, 5], model.weights.o(Head(2, 5))
        np.testing.assert_allclose(seen.written_BLHT[:, 2, 5], (z @ o).norm(dim=-1), rtol=1e-3)
        pattern = anatomy.pattern(2, trace.q[2], trace.k[2])[:, 5]
        np.testing.assert_array_equal(seen.key_BLHT[:, 2, 5], pattern.argmax(-1))
        np.testing.assert_allclose(seen.share_BLHT[:, 2, 5], pattern.amax(-1), rtol=1e-4)
    path.write_text("short", encoding="utf-8")
    with pytest.raises(InputError, match="piece"):
        observe(model, pieces=1, length=64, path=path)


def test_heads_that_are_not_there_are_refused():
    model = model_of("llama")
    for ask in (matches, contributes):
        with pytest.raises(InputError, match="L7H0"):
            ask(model, TEXT, Head(7, 0))
