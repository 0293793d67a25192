"""Do reads of the residual stream give what their definitions say? Loops over stored outputs, planted activations, padding, chunks; no hook stays."""

import numpy as np
import pytest
import torch
from eager import random_ids, tiny

from workbench.captures import capture
from workbench.edits import Ablate
from workbench.errors import InputError
from workbench.given import from_patterns
from workbench.heads import Head
from workbench.prompts import Prompts
from workbench.reads import Activations, BlockOutput, FirstKeyCosine, HeadOutput, KeyNorm, QueryKey, ValueNorm, Written
from workbench.reads.stream import ActivationTallies
from workbench.tiny import ARCHITECTURES, random_model
from workbench.weights import FAMILIES

LENGTH, PADDING = 23, np.array([0, 9])
WAYS = {"whole": {}, "reference": {"implementation": "reference"}, "chunks": {"implementation": "torch", "chunk": 5}, "tokens": {"chunk": 1}}


def prompts_of(padding=None):
    rows = np.array([[20, 3, 3, 11], [22, 10, 19, 12]])
    return Prompts(random_ids(2, LENGTH), {}, {"some": rows}, padding=padding)


def tallied(h_TD, **settings):
    """The statistics of one block output of one prompt, without a model."""
    read, h_TD = Activations(**settings), torch.as_tensor(h_TD, dtype=torch.float32)
    tallies = ActivationTallies(read, Prompts(np.zeros((1, len(h_TD)), np.int64)))
    tallies.see(h_TD[None], 0)
    return tallies.value()


def by_loops(h_TD, top, eps=0.0):
    """Largest, kurtosis, median and the largest entries of the output [T, D] of one block, entry by entry."""
    entries = [(float(h_TD[t, d]), t, d) for t in range(h_TD.shape[0]) for d in range(h_TD.shape[1])]
    values = [value for value, _, _ in entries]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    kurtosis = sum((value - mean) ** 4 for value in values) / len(values) / (variance**2 + eps)
    median = sorted(map(abs, values))[(len(values) - 1) // 2]
    return max(map(abs, values)), kurtosis, median, sorted(entries, key=lambda entry: -abs(entry[0]))[:top]


# ---------------------------------------------------------------- statistics with known answers


def test_the_kurtosis_of_a_gaussian_is_3():
    found = tallied(np.random.default_rng(0).standard_normal((512, 256)))
    assert float(found.kurtosis[0]) == pytest.approx(3, abs=0.05)


def test_the_kurtosis_of_one_hot_is_its_size_and_much_less_with_the_papers_epsilon():
    one_hot = np.eye(1, 4096)
    assert float(tallied(one_hot).kurtosis[0]) == pytest.approx(4096, rel=1e-3)
    assert float(tallied(one_hot, eps=1e-6).kurtosis[0]) == pytest.approx(230, abs=1)


@pytest.mark.parametrize("size", [2, 3, 5, 1000, 1001])
def test_the_median_is_right_to_a_fifth_of_a_percent(size):
    h_TD = np.random.default_rng(size).standard_normal((1, size)) * 10.0 ** np.random.default_rng(size).integers(-6, 6, size)
    assert float(tallied(h_TD, top=1).median[0]) == pytest.approx(by_loops(h_TD, 1)[2], rel=2.1e-3)


def test_zeros_have_no_size():
    found = tallied(np.zeros((3, 4)))
    assert float(found.largest[0]) == float(found.norm.max()) == 0
    assert float(found.median[0]) < 1e-30


def test_statistics_are_those_of_loops():
    h_TD = np.random.default_rng(1).standard_normal((7, 12)).astype(np.float32)
    h_TD[2, 5], h_TD[6, 0] = -90, 70
    largest, kurtosis, median, top = by_loops(h_TD, 4, eps=1e-6)
    found = tallied(h_TD, top=4, eps=1e-6)
    assert float(found.largest[0]) == pytest.approx(largest)
    assert float(found.kurtosis[0]) == pytest.approx(kurtosis, rel=1e-5)
    assert float(found.median[0]) == pytest.approx(median, rel=2.1e-3)
    np.testing.assert_allclose(np.stack([found.value[0], found.token[0], found.dim[0]], axis=1), top)
    np.testing.assert_allclose(found.norm[0], np.linalg.norm(h_TD, axis=1), rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"top": 0}, {"eps": -1.0}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(InputError, match="Activations takes top ≥ 1 and eps ≥ 0"):
        Activations(**wrong)


# ---------------------------------------------------------------- block outputs of models


def hidden_states(model, prompts):
    """Block outputs as transformers gives them; the last one it gives behind the final norm, so it is left out."""
    mask = torch.arange(prompts.length) >= torch.tensor(prompts.start_B)[:, None]
    place = (torch.arange(prompts.length) - torch.tensor(prompts.start_B)[:, None]).clamp(min=0)
    with torch.inference_mode(), model.attention("eager") as hf:
        out = hf(torch.tensor(prompts.ids_BT), attention_mask=mask.long(), position_ids=place, output_hidden_states=True, use_cache=False)
    return torch.stack(out.hidden_states[1:-1], dim=1).numpy()


@pytest.mark.parametrize("padding", [None, PADDING], ids=["full", "padded"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_block_outputs_are_the_hidden_states_of_transformers(architecture, padding):
    prompts = prompts_of(padding)
    want = hidden_states(tiny(architecture), prompts)
    got = capture(tiny(architecture), prompts, [BlockOutput()])[BlockOutput()][:, : want.shape[1]]
    for b, start in enumerate(prompts.start_B):
        np.testing.assert_allclose(got[b, :, start:], want[b, :, start:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padding", [None, PADDING], ids=["full", "padded"])
@pytest.mark.parametrize("way", WAYS)
def test_statistics_of_a_pass_are_those_of_its_outputs(way, padding):
    prompts, reads = prompts_of(padding), [Activations(top=5), BlockOutput(), BlockOutput("some")]
    seen = capture(tiny("gemma2"), prompts, reads, **WAYS[way])
    found, h_BLTD = seen[reads[0]], seen[reads[1]]
    assert h_BLTD.shape == (2, 2, LENGTH, 32)
    for b, start in enumerate(prompts.start_B):
        np.testing.assert_array_equal(seen[reads[2]][b], h_BLTD[b][:, prompts.rows["some"][b]])
        for layer in range(2):
            largest, kurtosis, median, top = by_loops(h_BLTD[b, layer, start:], 5)
            assert found.largest[b, layer] == pytest.approx(largest)
            assert found.kurtosis[b, layer] == pytest.approx(kurtosis, rel=1e-4)
            assert found.median[b, layer] == pytest.approx(median, rel=2.1e-3)
            entries_K3 = np.stack([found.value[b, layer], found.token[b, layer] - start, found.dim[b, layer]], axis=1)
            np.testing.assert_allclose(entries_K3, top, rtol=1e-6)
            np.testing.assert_allclose(found.norm[b, layer, start:], np.linalg.norm(h_BLTD[b, layer, start:], axis=1), rtol=1e-5)
            assert np.isnan(found.norm[b, layer, :start]).all()


def test_only_the_asked_layers_are_read_in_their_order():
    model, prompts, reads = random_model("llama", num_hidden_layers=3), prompts_of(), [Activations(), BlockOutput(), Written()]
    whole, some = capture(model, prompts, reads), capture(model, prompts, reads, layers=[2, 0])
    np.testing.assert_array_equal(some[BlockOutput()], whole[BlockOutput()][:, [2, 0]])
    np.testing.assert_array_equal(some[Activations()].token, whole[Activations()].token[:, [2, 0]])
    np.testing.assert_array_equal(some[Written()].update, whole[Written()].update[:, [2, 0]])


def test_no_hook_stays_even_after_an_error(monkeypatch):
    model, prompts = random_model("llama"), prompts_of()
    blocks = model.hf.get_submodule(FAMILIES["llama"].blocks)
    capture(model, prompts, [])  # transformers keeps hooks of its own
    hooks, before = [list(block._forward_hooks) for block in blocks], model.hf(torch.tensor(prompts.ids_BT)).logits
    capture(model, prompts, [Activations(), Written()])
    monkeypatch.setattr(ActivationTallies, "see", lambda self, h_BTD, begin: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        capture(model, prompts, [Activations()])
    assert [list(block._forward_hooks) for block in blocks] == hooks
    assert torch.equal(model.hf(torch.tensor(prompts.ids_BT)).logits, before)


def test_a_planted_massive_activation_is_found_where_it_is():
    model = random_model("llama", num_hidden_layers=3)
    ids_BT = np.array([[5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        model.hf.model.embed_tokens.weight[9, 17] = -50_000.0  # the residual stream carries it through all blocks
    found = capture(model, Prompts(ids_BT), [Activations()])[Activations()]
    assert found.token[0, :, 0].tolist() == [4, 4, 4]
    assert found.dim[0, :, 0].tolist() == [17, 17, 17]
    assert (found.value[0, :, 0] < -40_000).all()
    assert (found.value[0, :, 0] < -1000 * found.median[0]).all()
    assert (np.abs(found.value[0, :, 1]) < 100).all()


# ---------------------------------------------------------------- what heads write, norms


@pytest.mark.parametrize("padding", [None, PADDING], ids=["full", "padded"])
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "mistral", "gemma2", "phi3"])
@pytest.mark.parametrize("way", ["whole", "reference", "chunks"])
def test_what_heads_write_is_their_output_and_values_through_the_output_projection(way, architecture, padding):
    model, prompts, edits = tiny(architecture), prompts_of(padding), [Ablate((Head(1, 0),), "uniform")]
    reads = [Written(), HeadOutput(), ValueNorm()]
    seen = capture(model, prompts, reads, edits, **WAYS[way])
    assert seen[Written()].update.shape == seen[Written()].value.shape == (2, 2, model.shape.n_heads, LENGTH)
    alone = capture(model, prompts, [HeadOutput()], edits, implementation="reference")[HeadOutput()]
    for b, start in enumerate(prompts.start_B):
        for head in model.shape.heads():
            o_ED = model.weights.o(head).numpy()
            norm_T = np.linalg.norm(alone[b, head.layer, head.index] @ o_ED, axis=1)
            got_T = seen[Written()].update[b, head.layer, head.index]
            np.testing.assert_allclose(got_T[start:], norm_T[start:], rtol=1e-3, atol=1e-3)
            assert np.isnan(got_T[:start]).all()
            first = seen[Written()].value[b, head.layer, head.index, start]
            assert first == pytest.approx(got_T[start], rel=1e-3)  # the first row attends to itself alone
    assert np.isfinite(seen[Written()].value[:, :, :, LENGTH - 1]).all()


def test_with_given_values_what_heads_write_are_lengths_of_outputs_and_values():
    rng, prompts = np.random.default_rng(0), Prompts(np.zeros((2, 5), np.int64))
    weight = np.tril(rng.random((2, 1, 4, 5, 5)))
    pattern_BLHQK, value_BLGKE = weight / weight.sum(-1, keepdims=True), rng.standard_normal((2, 1, 2, 5, 3))
    found = from_patterns(tiny("llama").card, prompts, pattern_BLHQK, [Written(), ValueNorm()], value_BLGKE)
    for b in range(2):
        for h in range(4):
            z_QE = sum(pattern_BLHQK[b, 0, h, :, [key]].T * value_BLGKE[b, 0, h // 2, key] for key in range(5))
            np.testing.assert_allclose(found[Written()].update[b, 0, h], np.linalg.norm(z_QE, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found[ValueNorm()], np.linalg.norm(value_BLGKE, axis=-1), rtol=1e-5)
    with pytest.raises(InputError, match="it has no head outputs"):
        from_patterns(tiny("llama").card, prompts, pattern_BLHQK, [Written()])


@pytest.mark.parametrize("padding", [None, PADDING], ids=["full", "padded"])
@pytest.mark.parametrize("way", WAYS)
def test_key_norms_and_cosines_are_those_of_queries_and_keys(way, padding):
    model, prompts = tiny("llama"), prompts_of(padding)
    whole = capture(model, prompts, [QueryKey()], implementation="reference")[QueryKey()]
    seen = capture(model, prompts, [KeyNorm(), FirstKeyCosine()], **WAYS[way])
    for b, start in enumerate(prompts.start_B):
        np.testing.assert_allclose(seen[KeyNorm()][b, :, :, start:], np.linalg.norm(whole.key[b, :, :, start:], axis=-1), rtol=1e-4)
        for h in range(6):
            q_LTE, k_LE = whole.query[b, :, h], whole.key[b, :, h // 3, start]
            cosine_LT = np.einsum("lte,le->lt", q_LTE, k_LE) / np.linalg.norm(q_LTE, axis=-1) / np.linalg.norm(k_LE, axis=-1)[:, None]
            np.testing.assert_allclose(seen[FirstKeyCosine()][b, :, h, start:], cosine_LT[:, start:], atol=1e-4)
            assert np.isnan(seen[FirstKeyCosine()][b, :, h, :start]).all()
