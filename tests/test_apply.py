"""Does a model under a policy compute what the policy says? Held to attention that is written out head by head and row by row."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.masking_utils import sdpa_mask

from workbench import choosing, policies, tiny
from workbench.captures import capture
from workbench.errors import InputError
from workbench.heads import Head
from workbench.kernels import cache as caches
from workbench.kernels import permutation
from workbench.kernels.applied import apply, choose
from workbench.kernels.permutation import permuted
from workbench.labels import HeadLabels
from workbench.policies import HeadPolicy
from workbench.reads import Received

TOKENS, SINKS, WINDOW = 29, 2, 5
HYBRIDS = [name for name in tiny.ARCHITECTURES if name != "mistral"]  # all of whose layers slide


def mixed(model, seed=0, **how):
    """A policy with full and streaming heads in arbitrary order; the first layer has both if it has two."""
    full_LG = np.random.default_rng(seed).random((model.shape.n_layers, model.shape.n_kv_heads)) < 0.5
    full_LG[-1, :2] = [False, True][: full_LG.shape[1]]
    return HeadPolicy(model.card, full_LG, **{"sinks": SINKS, "window": WINDOW, **how}).with_windows(model.windows)


def tokens(batch=2, length=TOKENS, seed=0):
    return torch.randint(3, 259, (batch, length), generator=torch.Generator().manual_seed(seed))


def keys_seen(policy, row, start, begin, end):
    """The positions that a streaming head's row sees by itself, and those that the compensation token stands for. The chunk is [begin, end)."""
    if policy.semantics == "decode" and row < end:
        return list(range(start, row + 1)), []
    low = min(row, begin) if policy.semantics == "chunk" else row
    seen = [key for key in range(start, row + 1) if key < start + policy.sinks or key > low - policy.window]
    return seen, [key for key in range(start, row + 1) if key not in seen] if policy.compensation else []


@contextmanager
def written_out(model, policy, starts, cuts):
    """The model with every head's attention written out as a loop over rows; the rows came in chunks that end at `cuts`."""

    def attention(module, query, key, value, mask, scaling=None, softcap=None, sliding_window=None, **_):
        group = query.shape[1] // key.shape[1]
        out = torch.zeros(query.shape[0], query.shape[2], query.shape[1], query.shape[3], dtype=query.dtype)
        for batch, head, row in np.ndindex(query.shape[0], query.shape[1], query.shape[2]):
            start, kv = starts[batch], head // group
            if row < start:
                continue
            begin = max([cut for cut in cuts if cut <= row], default=0)
            seen, dropped = list(range(start, row + 1)), []
            if sliding_window is not None:
                seen = [position for position in seen if position > row - sliding_window]
            elif policy is not None and not policy.full_LG[module.layer_idx, kv]:
                seen, dropped = keys_seen(policy, row, start, begin, policy.origin.get("prompt", TOKENS) if policy.semantics == "decode" else begin)
            k, v = (tensor[batch, kv].double() for tensor in (key, value))
            keys, values = [k[seen]], [v[seen]]
            if dropped:
                keys, values = [*keys, k[dropped].mean(0, keepdim=True)], [*values, v[dropped].mean(0, keepdim=True)]
            score = torch.cat(keys) @ query[batch, head, row].double() * scaling
            score = score if softcap is None else (score / softcap).tanh() * softcap
            if dropped:
                score[-1] += np.log(len(dropped))
            out[batch, row, head] = (score.softmax(0) @ torch.cat(values)).to(query.dtype)
        return out, None

    AttentionInterface.register("written_out", attention)
    AttentionMaskInterface.register("written_out", sdpa_mask)
    with model.attention("written_out") as hf:
        yield hf


def positions(starts, length=TOKENS):
    """The mask and the position ids of prompts padded on the left."""
    mask = torch.arange(length) >= torch.tensor(starts)[:, None]
    return mask.long(), (mask.long().cumsum(-1) - 1).clamp(min=0)


def expected(model, policy, ids, starts=(0, 0), cuts=()):
    mask, position = positions(starts, ids.shape[1])
    with torch.inference_mode(), written_out(model, policy, starts, cuts) as hf:
        return hf(ids, attention_mask=mask, position_ids=position, use_cache=False).logits


def in_pieces(hf, ids, sizes, starts=(0, 0), cache=None):
    """The logits of chunks that go through one after the other."""
    mask, position = positions(starts, ids.shape[1])
    logits, done = [], 0
    for size in sizes:
        end = done + size
        seen = None if not any(starts) else mask[:, :end]
        result = hf(ids[:, done:end], attention_mask=seen, position_ids=position[:, done:end], past_key_values=cache, use_cache=True)
        cache, done = result.past_key_values, end
        logits.append(result.logits)
    return torch.cat(logits, dim=1), cache


def off(one, other, starts=(0, 0)):
    """The largest difference behind the padding."""
    return max(float((one[batch, start:] - other[batch, start:]).abs().max()) for batch, start in enumerate(starts))


@pytest.mark.parametrize("architecture", HYBRIDS)
@pytest.mark.parametrize("starts", [(0, 0), (0, 6)])
def test_prefill_chunks_and_decoding_are_the_masked_attention(architecture, starts):
    model = tiny.random_model(architecture, seed=1)
    policy, ids = mixed(model), tokens()
    truth = expected(model, policy, ids, starts)
    assert off(truth, expected(model, None, ids, starts), starts) > 0.1  # the policy matters
    with apply(model, policy, implementation="torch") as applied, torch.inference_mode():
        for sizes in ([TOKENS], [4, 9, 1, 15], [1] * TOKENS, [20] + [1] * 9, [8, 8, 8, 5]):
            logits, cache = in_pieces(applied.hf, ids, sizes, starts)
            assert off(logits, truth, starts) < 1e-4, sizes
            assert cache.get_seq_length() == TOKENS
        mask, position = positions(starts)
        alone = applied.hf(ids, attention_mask=mask, position_ids=position, use_cache=False).logits
        assert off(alone, truth, starts) < 1e-4


@pytest.mark.parametrize(("change", "what"), [({"window": WINDOW + 1}, "window"), ({"window": WINDOW - 1}, "window"), ({"sinks": SINKS + 1}, "sinks")])
def test_a_policy_off_by_one_is_seen(change, what):
    model = tiny.random_model("llama", seed=1)
    policy, ids = mixed(model), tokens()
    truth = expected(model, policy, ids)
    with apply(model, replace(policy, **change), implementation="torch") as applied, torch.inference_mode():
        for sizes in ([TOKENS], [4, 9, 1, 15], [1] * TOKENS):
            assert off(in_pieces(applied.hf, ids, sizes)[0], truth) > 1e-2, what


@pytest.mark.parametrize("compensation", [False, True])
@pytest.mark.parametrize("semantics", policies.SEMANTICS)
@pytest.mark.parametrize("starts", [(0, 0), (3, 0)])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_semantics_and_compensation(architecture, starts, semantics, compensation):
    model = tiny.random_model(architecture, seed=2)
    ids, sizes = tokens(seed=3), [9, 11, *[1] * 9]
    policy = mixed(model, 3, semantics=semantics, compensation=compensation)
    told = replace(policy, origin={"prompt": 20})
    truth = expected(model, told, ids, starts, cuts=(9, *range(20, TOKENS)))
    with apply(model, policy, implementation="reference") as applied, torch.inference_mode():
        assert off(in_pieces(applied.hf, ids, sizes, starts)[0], truth, starts) < 1e-4


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_all_full_is_the_model_token_for_token(architecture):
    model = tiny.random_model(architecture, seed=1)
    ids = tokens(1, 20)
    plain = model.hf.generate(ids, max_new_tokens=12, do_sample=False)
    with apply(model, choosing.everything(model.card)) as applied:
        assert torch.equal(applied.generate(ids, max_new_tokens=12, do_sample=False), plain)


@pytest.mark.parametrize("fixed", ["full", "streaming"])
def test_all_heads_of_one_kind(fixed):
    model = tiny.random_model("qwen3", seed=4)
    policy = replace(choosing.everything(model.card) if fixed == "full" else choosing.uniform(model.card), sinks=SINKS, window=WINDOW)
    ids = tokens()
    truth = expected(model, policy, ids)
    with apply(model, policy) as applied, torch.inference_mode():
        assert off(in_pieces(applied.hf, ids, [4, 9, 1, 15])[0], truth) < 1e-4


@pytest.mark.parametrize("how", [{}, {"prefill_chunk_size": 7}, {"past_key_values": "own"}, {"past_key_values": "empty"}])
def test_generate_is_greedy_search_by_the_masked_attention(how):
    model = tiny.random_model("llama", seed=5)
    policy, ids = mixed(model, 2), tokens(1, 18, seed=4)
    wanted = ids
    for _ in range(8):
        wanted = torch.cat([wanted, expected(model, policy, wanted, (0,))[:, -1:].argmax(-1)], dim=1)
    with apply(model, policy) as applied:
        made = {"own": applied.cache(64), "empty": DynamicCache(config=model.config)}
        how = {name: made.get(value, value) for name, value in how.items()}
        assert torch.equal(applied.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, **how), wanted)


def test_a_padded_batch_generates_what_each_prompt_does_alone():
    model = tiny.random_model("llama", seed=5)
    policy, short, long = mixed(model, 2), tokens(1, 11, seed=6), tokens(1, 18, seed=7)
    ids = torch.cat([torch.cat([torch.zeros(1, 7, dtype=torch.long), short], dim=1), long])
    mask, _ = positions((7, 0), 18)
    how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with apply(model, policy) as applied:
        both = applied.generate(ids, attention_mask=mask, **how)
        assert torch.equal(both[:1, 18:], applied.generate(short, **how)[:, 11:])
        assert torch.equal(both[1:, 18:], applied.generate(long, **how)[:, 18:])


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_permuted_weights_give_the_same_logits(architecture):
    model = tiny.random_model(architecture, seed=6, dtype=torch.float64)
    ids, policy = tokens(), mixed(model, 1)
    state = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    before = model.hf(ids).logits
    with permuted(model, policy):
        moved = [name for name, tensor in model.hf.state_dict().items() if not torch.equal(tensor, state[name])]
        assert bool(moved) == any(policy.order(layer) != sorted(policy.order(layer)) for layer in policy.layers)
        assert (model.hf(ids).logits - before).abs().max() < 1e-12
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.hf.state_dict().items())


def test_the_model_is_restored_even_after_an_error():
    model = tiny.random_model("llama", seed=5)
    ids, policy = tokens(), mixed(model)
    before, name = model.hf(ids).logits, model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), apply(model, policy):
        raise ZeroDivisionError
    assert torch.equal(model.hf(ids).logits, before)
    assert model.config._attn_implementation == name
    assert not model.hf._forward_pre_hooks
    assert not any("workbench_policy" in vars(module) for module in model.weights.attentions)


def test_weights_that_were_not_moved_yet_are_not_moved_back(monkeypatch):
    model = tiny.random_model("llama", seed=5)
    state, calls, move = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}, [], permutation._move

    def third_time_full(*asked):
        calls.append(asked)
        if len(calls) == 3:
            raise MemoryError
        move(*asked)

    monkeypatch.setattr(permutation, "_move", third_time_full)
    with pytest.raises(MemoryError), apply(model, HeadPolicy(model.card, np.array([[False, True]] * 2))):
        pass
    assert len(calls) == 3 + 2
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.hf.state_dict().items())


def test_nobody_looks_at_moved_heads():
    model = tiny.random_model("llama", seed=5)
    with apply(model, mixed(model)), pytest.raises(InputError, match="has moved its heads"):
        capture(model, "text", [Received()])


@pytest.mark.parametrize("compensation", [False, True])
def test_the_cache_takes_what_the_policy_says(compensation):
    model = tiny.random_model("llama", seed=5)
    policy = mixed(model, compensation=compensation)
    with apply(model, policy) as applied, torch.inference_mode():
        for sizes in ([40], [17, 1, 1]):
            cache = applied.cache()
            in_pieces(applied.hf, tokens(3, sum(sizes)), sizes, (0, 0, 0), cache)
            assert caches.nbytes(cache) == policy.kv_bytes(sum(sizes), 4, batch=3)
            cache.reset()
            assert caches.nbytes(cache) == cache.get_seq_length() == 0


def test_sliding_layers_stay_as_they_are():
    model = tiny.random_model("gemma3_text", seed=5)
    policy = mixed(model)
    assert policy.layers == [1]
    with apply(model, policy) as applied, torch.inference_mode():
        cache = in_pieces(applied.hf, tokens(1, 20), [20], (0,))[1]
        assert [type(layer).__name__ for layer in cache.layers] == ["DynamicSlidingWindowLayer", "HybridLayer"]
        assert caches.nbytes(cache) == policy.kv_bytes(20, 4)


def test_reset_select_and_repeat():
    model = tiny.random_model("llama", seed=5)
    policy, ids = mixed(model, compensation=True), tokens()
    with apply(model, policy) as applied, torch.inference_mode():
        whole, cache = in_pieces(applied.hf, ids, [20, *[1] * 9])
        applied.cache().reset()  # of nothing yet
        cache.reset()
        again, _ = in_pieces(applied.hf, ids, [20, *[1] * 9], cache=cache)
        assert torch.equal(again, whole)
        _, cache = in_pieces(applied.hf, ids[:, :20], [20])
        cache.batch_select_indices(torch.tensor([1]))
        cache.batch_repeat_interleave(2)
        rest = applied.hf(ids[[1, 1], 20:21], past_key_values=cache).logits
        assert off(rest, whole[[1, 1], 20:21]) < 1e-4


def test_what_a_cache_cannot_do_raises():
    model = tiny.random_model("llama", seed=5)
    policy, ids = mixed(model), tokens(1)
    filled = model.hf(ids, use_cache=True).past_key_values
    with apply(model, policy) as applied:
        cache = applied.hf(ids).past_key_values
        with pytest.raises(InputError, match="cannot go back"):
            cache.crop(-3)
        with pytest.raises(InputError, match="beam search is not supported"):
            applied.generate(ids, num_beams=2, max_new_tokens=3)
        with pytest.raises(InputError, match="already holds keys of all heads"):
            applied.hf(ids, past_key_values=filled)
        with pytest.raises(InputError, match="cannot take over a StaticCache"):
            applied.hf(ids, past_key_values=StaticCache(config=model.config, max_cache_len=64))
        with pytest.raises(InputError, match="padding on the left"):
            applied.hf(ids, attention_mask=torch.ones_like(ids).index_fill(1, torch.tensor([TOKENS - 1]), 0))
    with apply(model, replace(policy, window=9)) as other, pytest.raises(InputError, match="made for another policy"):
        other.hf(ids, past_key_values=cache)


def test_what_apply_refuses():
    model, other = tiny.random_model("llama", seed=5), tiny.random_model("llama", seed=6)
    with pytest.raises(InputError, match="were made for"), apply(model, choosing.uniform(other.card)):
        pass
    with pytest.raises(InputError, match="unknown implementation 'fast'"), apply(model, mixed(model), implementation="fast"):
        pass
    with pytest.raises(InputError, match="unknown dense kernel 'fast'"), apply(model, mixed(model), dense="fast"):
        pass
    sliding = tiny.random_model("mistral", seed=5)
    with pytest.raises(InputError, match="nothing for a policy to decide"), apply(sliding, choosing.uniform(sliding.card)):
        pass
    model.weights.attentions[-1].register_parameter("head_gain", torch.nn.Parameter(torch.ones(model.shape.n_heads)))
    with pytest.raises(InputError, match=r"head_gain.*knows heads in a way"), apply(model, mixed(model, 1)):
        pass


def test_implementations_are_chosen_in_the_open():
    assert choose("auto", torch.device("cpu"), 64) == ("torch", "torch")
    assert choose("merged", torch.device("cuda"), 64) == ("merged", "torch")
    assert choose("reference", torch.device("cpu"), 64) == ("reference", "reference")


def test_labels_make_a_policy_and_carry_one(tmp_path):
    model = tiny.random_model("llama", seed=5)
    labels = HeadLabels(model.card, {Head(0, 4): ("retrieval",), Head(1, 0): ("local",)}, {})
    with apply(model, labels) as applied:
        assert [applied.policy.full(layer) for layer in (0, 1)] == [[1], []]
        assert applied.facts == {"implementation": "torch", "decoding": "torch", "dense": "auto"}
    policy = mixed(model)
    path = HeadLabels(model.card, labels.labels, {}, policy=policy.to_json()).save(tmp_path / "heads.json")
    with apply(model, path) as applied:
        assert applied.policy.to_json() == policy.to_json()
        assert applied.policy.sinks == SINKS
