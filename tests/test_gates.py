"""Do gates close on the heads that need no context and stay open on those that do, and is the mixture what its definition says?"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from workbench.compiled import INDUCTION, induction_model
from workbench.errors import InputError
from workbench.formats import Export, read, write
from workbench.gates import MEAN, PROBE, Gates, Training, distance, hidden, train
from workbench.heads import ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.mixture import Mixture, attend, gated
from workbench.passkeys import WORDS, Passkeys
from workbench.prompts import Prompts
from workbench.recipes import RepeatedTokens
from workbench.tiny import ARCHITECTURES, random_model

REPEATED = RepeatedTokens(length=30, repeats=2, count=1)
SHORT = Training(sinks=2, window=8, steps=3)
FREE = [name for name in ARCHITECTURES if name != "mistral"]


def random_prompts(length=70, count=2):
    ids = np.random.default_rng(0).integers(3, 250, (count, length))
    return Prompts(ids, rows={"answer": np.tile(np.arange(length), (count, 1))})


def gates_of(model, value):
    return torch.full((model.shape.n_layers, model.shape.n_kv_heads), float(value))


@pytest.fixture(scope="module")
def compiled():
    return induction_model()


@pytest.fixture(scope="module")
def compiled_gates(compiled):
    torch.set_num_threads(1)  # fixtures of a module come before those of a test
    return train(compiled, Training(sinks=2, window=8, steps=24, rate=0.1, weight=0.002), REPEATED.build(compiled, 3), rows="repeat")


# ---- what is trained


def test_the_induction_head_stays_open_and_all_others_close(compiled_gates):
    # the circuit's other head looks one back, which every window holds
    alpha_LG = compiled_gates.alpha_LG
    assert alpha_LG[INDUCTION.layer, INDUCTION.index] > 0.5
    assert np.delete(alpha_LG.ravel(), INDUCTION.layer * 4 + INDUCTION.index).max() < 0.01
    assert (compiled_gates.sinks, compiled_gates.window) == (2, 8)


def test_the_mean_ranks_what_has_closed_too(compiled_gates):
    model = random_model("llama")
    gates = train(model, replace(SHORT, steps=2), [random_prompts()])
    one = train(model, replace(SHORT, steps=1), [random_prompts()])
    np.testing.assert_array_equal(one.mean_LG, one.alpha_LG)
    assert (gates.mean_LG > gates.alpha_LG).all()
    closed_LG = compiled_gates.alpha_LG == 0
    assert compiled_gates.mean_LG[closed_LG].min() > 0
    assert np.argmax(compiled_gates.mean_LG) == INDUCTION.layer * 4 + INDUCTION.index


def test_with_a_window_that_reaches_far_enough_every_gate_closes(compiled):
    gates = train(compiled, Training(sinks=0, window=31, steps=30, rate=0.1, weight=0.002), REPEATED.build(compiled, 3), rows="repeat")
    assert gates.alpha_LG.max() == 0
    assert max(gates.provenance["loss"]) == pytest.approx(0, abs=1e-6)


def test_without_a_price_every_gate_stays_open(compiled):
    gates = train(compiled, replace(SHORT, weight=0.0), REPEATED.build(compiled, 3), rows="repeat")
    np.testing.assert_array_equal(gates.alpha_LG, np.ones((2, 4)))
    assert gates.provenance["loss"] == [0.0, 0.0, 0.0]


def test_the_same_seed_gives_the_same_gates_and_another_seed_others():
    model, passkeys = random_model("llama"), Passkeys((700, 800), 2, 3)
    first, again = (train(model, replace(SHORT, seed=seed), passkeys) for seed in (1, 1))
    np.testing.assert_array_equal(first.alpha_LG, again.alpha_LG)
    assert first.provenance["loss"] == again.provenance["loss"] != train(model, replace(SHORT, seed=2), passkeys).provenance["loss"]


def test_weights_are_frozen_and_everything_is_restored(compiled):
    before = {name: tensor.clone() for name, tensor in compiled.hf.state_dict().items()}
    former = compiled.config._attn_implementation
    train(compiled, SHORT, REPEATED.build(compiled, 3), rows="repeat")
    assert all(torch.equal(before[name], tensor) for name, tensor in compiled.hf.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in compiled.hf.parameters())
    with pytest.raises(InputError, match="stop"), gated(compiled, Mixture(None, 0, 1)):
        _stop(compiled)
    assert compiled.config._attn_implementation == former
    assert not any(hasattr(module, "workbench_gate") for module in compiled.weights.attentions)


def _stop(model):
    assert model.config._attn_implementation == "workbench_gated"
    raise InputError("stop")


def test_provenance_tells_settings_seed_versions_and_every_loss(compiled_gates):
    told = compiled_gates.provenance
    assert {"sinks": 2, "window": 8, "steps": 24, "rate": 0.1, "weight": 0.002, "seed": 42, "device": "cpu", "dtype": "float32"}.items() <= told.items()
    assert len(told["loss"]) == 24
    assert told["loss"][0] == 0
    assert set(told["versions"]) >= {"torch", "transformers", "workbench"}
    assert json.loads(json.dumps(dict(told))) == dict(told)
    for gate_LG in (compiled_gates.alpha_LG, compiled_gates.mean_LG):
        with pytest.raises(ValueError, match="read-only"):
            gate_LG[0, 0] = 1
    with pytest.raises(TypeError):
        told["seed"] = 1


def test_layers_with_windows_of_their_own_have_no_gate():
    for architecture, first in (("gemma2", 0), ("gemma3_text", 0)):
        alpha_LG = train(random_model(architecture), SHORT, [random_prompts()]).alpha_LG
        assert alpha_LG[first].max() == 0
        assert alpha_LG[1].min() > 0.8
    with pytest.raises(InputError, match="every layer of tiny-mistral has a window of its own"):
        train(random_model("mistral"), SHORT, [random_prompts()])


@pytest.mark.parametrize("wrong", [{"sinks": -1}, {"window": 0}, {"steps": 0}, {"rate": 0.0}, {"weight": -1.0}, {"weight": float("nan")}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(InputError, match="gates need sinks ≥ 0"):
        Training(**wrong)


def test_a_distance_that_is_not_finite_stops_the_training():
    model = random_model("llama")
    model.hf.model.norm.weight.data.fill_(float("inf"))
    with pytest.raises(InputError, match="step 1: the distance from the full model is"):
        train(model, SHORT, [random_prompts()])


# ---- the mixture


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_open_gates_are_the_model_itself(architecture):
    model, prompts = random_model(architecture), random_prompts()
    full = hidden(model, prompts, "answer", Mixture(None, 2, 8))
    assert torch.equal(hidden(model, prompts, "answer", Mixture(gates_of(model, 1), 2, 8)), full)
    with torch.no_grad():
        own = model.hf.base_model(torch.tensor(np.array(prompts.ids_BT))).last_hidden_state
    torch.testing.assert_close(full, own, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", FREE)
def test_gates_do_nothing_where_the_window_holds_everything(architecture):
    model, prompts = random_model(architecture), random_prompts()
    full = hidden(model, prompts, "answer", Mixture(None, 2, 8))
    for sinks, window in ((0, 70), (3, 1000), (66, 4)):
        torch.testing.assert_close(hidden(model, prompts, "answer", Mixture(gates_of(model, 0), sinks, window)), full, atol=2e-5, rtol=1e-5)
    assert (hidden(model, prompts, "answer", Mixture(gates_of(model, 0), 0, 68)) - full).abs().max() > 1e-3


@pytest.mark.parametrize(("sinks", "window", "length"), [(0, 1, 5), (2, 8, 70), (3, 8, 64), (5, 3, 4), (16, 7, 50), (9, 4, 30), (1, 40, 30)])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_a_closed_gate_is_sinks_and_window_row_by_row(sinks, window, length, softcap):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, length, 8, generator=generator) for heads in (6, 2, 2))
    row, key = torch.arange(length)[:, None], torch.arange(length)[None]
    visible = (key <= row) & ((key < sinks) | (key > row - window))
    z = Mixture(torch.zeros(1, 2), sinks, window)(0, q, k, v, 0.4, softcap, None)
    torch.testing.assert_close(z, attend(q, k, v, visible, 0.4, softcap), atol=1e-5, rtol=1e-5)
    if softcap is None:
        expected = scaled_dot_product_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), visible, scale=0.4)
        torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)


def test_each_gate_mixes_the_query_heads_of_its_own_kv_head():
    q, k, v = (torch.randn(1, heads, 20, 8, generator=torch.Generator().manual_seed(heads)) for heads in (6, 2, 2))
    full, streaming = (Mixture(alpha, 1, 3)(1, q, k, v, 0.4, None, None) for alpha in (None, torch.zeros(2, 2)))
    mixed = Mixture(torch.tensor([[9.0, 9.0], [0.25, 1.0]]), 1, 3)(1, q, k, v, 0.4, None, None)
    torch.testing.assert_close(mixed[:, :3], 0.25 * full[:, :3] + 0.75 * streaming[:, :3])
    torch.testing.assert_close(mixed[:, 3:], full[:, 3:])


def test_the_gradient_is_that_of_finite_differences():
    model, prompts = random_model("gpt2", dtype=torch.float64), random_prompts(40, 1)  # its norms stay in float64
    alpha_LG = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)).double()

    def loss(alpha):
        with torch.no_grad():
            full = _double(model, prompts, Mixture(None, 1, 4))
        return (_double(model, prompts, Mixture(alpha, 1, 4)) - full).square().mean()

    leaf = alpha_LG.clone().requires_grad_()
    (gradient_LG,) = torch.autograd.grad(loss(leaf), leaf)
    for place in np.ndindex(2, 4):
        step = torch.zeros_like(alpha_LG)
        step[place] = 1e-5
        with torch.no_grad():
            slope = (loss(alpha_LG + step) - loss(alpha_LG - step)) / 2e-5
        torch.testing.assert_close(gradient_LG[place], slope, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(distance(model, prompts, "answer", Mixture(alpha_LG, 1, 4)).double(), loss(alpha_LG), rtol=1e-5, atol=0)


def _double(model, prompts, mixture):
    with gated(model, mixture) as hf:
        return hf.base_model(torch.tensor(np.array(prompts.ids_BT))).last_hidden_state


# ---- passkeys


def test_the_rows_are_those_that_produce_the_words_of_the_passkeys():
    model, passkeys = random_model("llama"), Passkeys((900, 1000), 3, 4)
    rng = np.random.default_rng(5)
    lengths = set()
    for _ in range(5):
        prompts = passkeys.draw(model, rng)
        ids_T, rows = prompts.ids_BT[0], prompts.rows["answer"][0]
        text = model.tokenizer.decode(ids_T)
        answers = model.tokenizer.decode(ids_T[rows + 1]).split()
        assert len(answers) == 12
        assert set(answers) <= set(WORDS)
        for number, name in enumerate(("first", "second", "third")):
            key = " ".join(answers[4 * number : 4 * number + 4])
            assert text.count(f"it's the {name} passkey to the vault: {key}") == 1
            assert text.count(f"what is the {name} passkey to the vault?\nPasskey: {key}") == 1
        assert text.startswith("<s> This is a very long story book: <book>")
        assert 900 <= len(ids_T) <= 1000
        lengths.add(len(ids_T))
    assert len(lengths) > 2


def test_passkeys_that_do_not_fit_are_refused(tmp_path):
    model, rng = random_model("llama"), np.random.default_rng(0)
    with pytest.raises(InputError, match=r"5 passkeys of 12 words take [0-9]+ tokens and the haystack has [0-9]+; a prompt of 300 cannot be made"):
        Passkeys((300, 300)).draw(model, rng)
    with pytest.raises(InputError, match="cannot be made"):
        Passkeys((5000, 5000), 1, 1).draw(random_model("gpt2"), rng)
    (tmp_path / "short.txt").write_text("A short text. " * 3, encoding="utf-8")
    with pytest.raises(InputError, match="the haystack has 42; a prompt of 900"):
        Passkeys((900, 900), 1, 1, tmp_path / "short.txt").draw(model, rng)
    for wrong in ({"count": 0}, {"count": 11}, {"words": 0}, {"lengths": (5, 4)}, {"lengths": (0, 4)}):
        with pytest.raises(InputError, match="passkeys: 1–10 of them"):
            Passkeys(**wrong)


# ---- the file


CARD = ModelCard("toy", "memory", "abc", Shape(2, 4, 2, 8, 32))


def test_gates_come_back_from_their_file_as_they_are(tmp_path):
    gates = Gates(CARD, np.array([[0.0, 1.0], [1.0, 0.375]]), np.array([[0.25, 1.0], [1.0, 0.5]]), 4, 9, {"seed": 3, "loss": [0.5, 0.25]})
    labels = gates.labels(machine="this one")
    assert labels.evidence == {PROBE: {"n": 2}, MEAN: {"n": 2}}
    np.testing.assert_array_equal(labels.scores[MEAN], [[0.25, 0.25, 1, 1], [1, 1, 0.5, 0.5]])
    write(labels, tmp_path / "gates", "duo")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "gates/full_attention_heads.tsv"), gates.alpha_LG)
    config = json.loads((tmp_path / "gates/config.json").read_text(encoding="utf-8"))
    assert (config["sink_size"], config["recent_size"], config["scores"]) == (4, 9, "gates in [0, 1]")
    again = read(tmp_path / "gates", "duo")
    np.testing.assert_array_equal(again.scores[PROBE], labels.scores[PROBE])
    assert again.provenance == {**labels.provenance, "format": "duo", "file": "gates"}
    write(again, tmp_path / "again", "duo", Export(probe=PROBE))
    assert (tmp_path / "again/full_attention_heads.tsv").read_bytes() == (tmp_path / "gates/full_attention_heads.tsv").read_bytes()
    write(again, tmp_path / "other", "duo", Export(sink=1, recent=2))
    other = json.loads((tmp_path / "other/config.json").read_text(encoding="utf-8"))
    assert (other["sink_size"], other["recent_size"]) == (1, 2)


def test_beside_a_retrieval_score_gates_are_written_when_asked_for(tmp_path):
    both = HeadLabels(CARD, {}, {"retrieval": np.zeros((2, 4)), PROBE: np.full((2, 4), 0.5)})
    write(both, tmp_path / "ranks", "duo")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "ranks/full_attention_heads.tsv"), [[1, 0.75], [0.5, 0.25]])
    write(both, tmp_path / "gates", "duo", Export(probe=PROBE))
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "gates/full_attention_heads.tsv"), np.full((2, 2), 0.5))
