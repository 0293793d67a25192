"""Is `Stream` what a short cache computes, token by token? Compared with a cache of keys before rotation, rotated anew at every step."""

import numpy as np
import pytest
import torch
from eager import random_ids, random_prompts, tiny
from test_implementations import ALL, assert_same, model_for, prompts_of
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from workbench.captures import capture, generate
from workbench.edits import Ablate, Calibrate, SinkRule, Stream
from workbench.errors import InputError
from workbench.heads import Head
from workbench.prompts import Prompts
from workbench.reads import Entropy, HeadOutput, Mass, NextToken, Pattern
from workbench.rotary import frequencies, rotated
from workbench.streaming_text import losses, recomputed
from workbench.tiny import ARCHITECTURES, random_model

T = 22
READS = [NextToken(), HeadOutput(), Pattern()]
ROTATING = [name for name in ARCHITECTURES if name != "gpt2"]


class ShortCache:
    """Keys before rotation and values of each layer, `sinks` and `window` of them; a token is taken in after room has been made."""

    def __init__(self, model, sinks: int, window: int, reposition: bool) -> None:
        self.model, self.sinks, self.window, self.reposition = model, sinks, window, reposition
        self.layers: dict[int, list] = {}
        (self.rotary,) = [module for name, module in model.hf.named_modules() if name.endswith("rotary_emb")]

    def rotate(self, layer: int, x_BHTE, position_T):
        kinds = getattr(self.model.config, "layer_types", None)
        more = [kinds[layer]] if type(self.rotary).__name__.startswith("Gemma3") else []
        cos, sin = self.rotary(x_BHTE, torch.tensor(position_T)[None], *more)
        return apply_rotary_pos_emb(x_BHTE, x_BHTE, cos, sin)[0]

    def attend(self, module, query, key, value, mask, scaling=None, softcap=None, sliding_window=None, **_):
        """One token; at position 0 the model has rotated nothing."""
        kept = self.layers.setdefault(module.layer_idx, [])
        kept.append((self.token, key, value))
        if len(kept) > self.sinks + self.window:
            del kept[self.sinks]
        assert len(kept) <= self.sinks + self.window
        place = [*range(len(kept))] if self.reposition else [token for token, _, _ in kept]
        k = self.rotate(module.layer_idx, torch.cat([k for _, k, _ in kept], 2), place)
        q = self.rotate(module.layer_idx, query, place[-1:])
        group = q.shape[1] // k.shape[1]
        v = torch.cat([v for *_, v in kept], 2).repeat_interleave(group, 1)
        score = q @ k.repeat_interleave(group, 1).mT * scaling
        score = score if softcap is None else softcap * (score / softcap).tanh()
        if sliding_window is not None:
            score = score.masked_fill(place[-1] - torch.tensor(place) >= sliding_window, -torch.inf)
        return (score.softmax(-1) @ v).transpose(1, 2), None

    def logits(self, ids: list[int]):
        AttentionInterface.register("short_cache", self.attend)
        AttentionMaskInterface.register("short_cache", flash_attention_mask)
        rows = []
        with self.model.attention("short_cache") as hf, torch.no_grad():
            for self.token, one in enumerate(ids):
                rows.append(hf(torch.tensor([[one]]), position_ids=torch.tensor([[0]]), use_cache=False).logits[0, 0])
        return torch.stack(rows)


def assert_streams(model, edit: Stream, prompts: Prompts, **how):
    seen = capture(model, prompts, READS, [edit], **how)
    for b, start in enumerate(prompts.start_B.tolist()):
        ids = prompts.ids_BT[b, start:].tolist()
        logprob = ShortCache(model, edit.sinks, edit.window, edit.reposition).logits(ids).log_softmax(-1)
        want = [logprob[t, ids[t + 1]] for t in range(len(ids) - 1)]
        np.testing.assert_allclose(seen[NextToken()].logprob[b, start:-1], want, atol=1e-3)
    return seen


@pytest.mark.parametrize("architecture", ROTATING)
@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_all_rows_at_once_are_a_cache_token_by_token(implementation, architecture):
    prompts = random_prompts(2, T, padding=np.array([0, 4]))
    assert_streams(tiny(architecture), Stream(2, 5), prompts, implementation=implementation)


@pytest.mark.parametrize("edit", [Stream(0, 5), Stream(3, 1), Stream(1, 6, reposition=False), Stream(4, 4), Stream(2, 9)])
@pytest.mark.parametrize("how", [{"implementation": "reference"}, {"implementation": "torch"}, {"implementation": "torch", "chunk": 5}])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_sinks_windows_and_positions(architecture, how, edit):
    assert_streams(tiny(architecture), edit, random_prompts(1, T), **how)


def test_with_triton():
    assert_streams(model_for("triton", "llama"), Stream(2, 5), random_prompts(2, T, padding=np.array([0, 4])), implementation="triton")


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("architecture", ROTATING)
def test_a_cache_larger_than_the_text_is_dense(architecture, implementation):
    model, prompts = tiny(architecture), random_prompts(2, T, padding=np.array([0, 4]))
    for edit in (Stream(4, T), Stream(T + 3, 1), Stream(2, T - 2, reposition=False)):
        clean, seen = (capture(model, prompts, READS, edits, implementation=implementation) for edits in ([], [edit]))
        for one, other in zip((clean[NextToken()].logprob, clean[Pattern()]), (seen[NextToken()].logprob, seen[Pattern()]), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_slots_are_always_sinks_and_window():
    seen = capture(tiny("llama"), random_prompts(1, T), [Pattern()], [Stream(3, 4)])[Pattern()]
    for row in range(T):
        assert ((seen[0, :, :, row] > 0).sum(-1) == min(row + 1, 7)).all()
        assert not seen[0, :, :, row, 3 : max(3, row - 3)].any()
    np.testing.assert_allclose(seen.sum(-1), 1, atol=1e-6)


def test_positions_matter_once_the_cache_is_full():
    model, prompts = tiny("llama"), random_prompts(1, T)
    moved, left = (capture(model, prompts, [Pattern()], [Stream(2, 5, reposition=how)])[Pattern()] for how in (True, False))
    np.testing.assert_allclose(moved[0, :, :, :7], left[0, :, :, :7], atol=1e-6)
    assert (np.abs(moved[0, 0] - left[0, 0]).max((0, 2))[8:] > 1e-3).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3_text"])
def test_rotating_on_is_rotating_at_once(architecture):
    model, layer = tiny(architecture), 1
    cache, x = ShortCache(model, 1, 1, True), torch.randn(2, 3, 6, model.shape.d_head)
    at, on = [3, 0, 11, 4, 9, 2], torch.tensor([[2, 5, -4, 0, -9, 100]])
    once = cache.rotate(layer, x, (torch.tensor(at) + on[0]).tolist())
    torch.testing.assert_close(rotated(cache.rotate(layer, x, at), on.expand(2, -1), frequencies(model, layer)), once, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- decoding, reads, composition, refusals


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_decoding_with_a_cache_is_decoding_without(architecture, implementation):
    model, reads, edits = tiny(architecture), [Entropy("answer")], [Stream(2, 5)]
    made = generate(model, Prompts(random_ids(1, 12)), reads, max_new_tokens=4, edits=edits, implementation=implementation)
    whole = capture(model, made.prompts, [*reads, NextToken("answer")], edits)
    np.testing.assert_array_equal(whole[NextToken("answer")].choice[0], made.prompts.ids_BT[0, 12:])
    np.testing.assert_allclose(made[reads[0]], whole[reads[0]], atol=3e-5)


@pytest.mark.parametrize("edits", [[Stream(3, 8)], [Stream(3, 8, (Head(0, 1), Head(1, 2)))]], ids=["all", "some"])
@pytest.mark.parametrize("chunk", [None, 19])
def test_every_read_sees_the_cache(edits, chunk):
    model, prompts = tiny("gemma2"), prompts_of(np.array([0, 16]))
    got, want = capture(model, prompts, ALL, edits, implementation="torch", chunk=chunk), capture(model, prompts, ALL, edits, implementation="reference")
    assert_same(got, want, ALL)


@pytest.mark.parametrize("order", [1, -1])
def test_calibration_acts_on_what_the_cache_shows(order):
    """Whatever the order: scores come before probabilities."""
    model, prompts = tiny("llama"), random_prompts(2, T, padding=np.array([0, 4]))
    stream, calibrate, ablate = Stream(2, 6), Calibrate(rule=SinkRule("share", 1.5), beta=0.25), Ablate((Head(0, 1),))
    alone = capture(model, prompts, [Pattern()], [stream], implementation="reference")[Pattern()]
    seen = {name: capture(model, prompts, READS, [stream, calibrate, ablate][::order], implementation=name) for name in ("reference", "torch")}
    assert_same(seen["torch"], seen["reference"], READS)
    ratio = seen["torch"][Pattern()][0, 0] / np.where(alone[0, 0] == 0, np.nan, alone[0, 0])
    assert np.isclose(ratio, 0.25, atol=1e-4).any()
    assert (np.isclose(ratio, 0.25, atol=1e-4) | (ratio > 0.99) | np.isnan(ratio)).all()
    assert not seen["torch"][HeadOutput()][:, 0, 1].any()


def test_heads_that_are_not_named_see_everything():
    model, prompts = tiny("llama"), random_prompts(1, T)
    clean, seen = (capture(model, prompts, [Mass(first=2), HeadOutput()], edits)[HeadOutput()] for edits in ([], [Stream(2, 4, (Head(0, 3),))]))
    np.testing.assert_array_equal(seen[0, 0, [0, 1, 2, 4, 5]], clean[0, 0, [0, 1, 2, 4, 5]])
    assert np.abs(seen[0, 0, 3] - clean[0, 0, 3]).max() > 1e-3


def test_nothing_remains():
    model, ids = random_model("llama"), torch.tensor(random_ids(2, T))
    before = model.hf(ids).logits
    capture(model, random_prompts(2, T), READS, [Stream(2, 5)])
    assert torch.equal(model.hf(ids).logits, before)


def test_models_without_rotation_are_refused_unless_positions_stay():
    model, prompts = tiny("gpt2"), random_prompts(1, T)
    with pytest.raises(InputError, match=r"does not rotate queries and keys.*reposition=False"):
        capture(model, prompts, [], [Stream(2, 5)])
    for edit in (Stream(0, 5), Stream(2, 5, reposition=False)):
        assert_same(*(capture(model, prompts, READS, [edit], implementation=name) for name in ("torch", "reference")), READS)


def test_frequencies_that_depend_on_the_length_are_refused():
    model = random_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(InputError, match="depend on the length of the text"):
        capture(model, random_prompts(1, T), [], [Stream(2, 5)])


@pytest.mark.parametrize("sizes", [(-1, 4), (4, 0)])
def test_sizes_are_checked(sizes):
    with pytest.raises(InputError, match="0 sinks or more and a window of 1"):
        Stream(*sizes)


def test_it_describes_itself():
    assert Stream(heads=(Head(1, 0),)).describe() == {"edit": "stream", "sinks": 4, "window": 252, "heads": ["L1H0"], "reposition": True}


# --------------------------------------------------------------------------------------------------------------- along a whole text


@pytest.mark.parametrize("chunk", [4, 9, 100])
@pytest.mark.parametrize("edits", [[], [Stream(2, 5)], [Calibrate(rule=SinkRule("share", 1.5), find="running")]], ids=["dense", "stream", "calibrated"])
def test_losses_in_chunks_are_those_of_one_pass(edits, chunk):
    prompts = random_prompts(1, T)
    want = -capture(tiny("llama"), prompts, [NextToken()], edits)[NextToken()].logprob[0, :-1]
    np.testing.assert_allclose(losses(tiny("llama"), prompts.ids_BT[0], edits, chunk=chunk), want, atol=1e-3)


def test_a_recomputed_window_is_a_text_of_its_own():
    model, ids, rows = tiny("llama"), random_ids(1, T)[0], np.array([4, 13, T - 2])
    for row, loss in zip(rows, recomputed(model, ids, 5, rows, batch=2), strict=True):
        assert loss == pytest.approx(losses(model, ids[row - 4 : row + 2])[-1], abs=1e-3)
    assert len(recomputed(model, ids, 5, rows[:0])) == 0
    for wrong in ([3], [T - 1]):
        with pytest.raises(InputError, match="rows lie between 4 and 20"):
            recomputed(model, ids, 5, np.array(wrong))


def test_a_text_of_one_token_has_no_loss():
    with pytest.raises(InputError, match="two tokens or more"):
        losses(tiny("llama"), np.array([5]))
