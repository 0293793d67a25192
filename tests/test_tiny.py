"""Are the random models repeatable and peculiar enough to be worth testing on, and do the bytes come back?"""

import numpy as np
import pytest
import torch
from eager import random_prompts, tiny

from workbench.captures import capture
from workbench.errors import InputError
from workbench.models import load
from workbench.reads import Entropy
from workbench.tiny import ARCHITECTURES, VOCABULARY, byte_tokenizer, random_model

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


@architectures
def test_a_seed_always_makes_the_same_model_and_another_seed_another(architecture):
    one, two = random_model(architecture, seed=0).hf.state_dict(), random_model(architecture, seed=1).hf.state_dict()
    assert all(torch.equal(weight, one[name]) for name, weight in tiny(architecture).hf.state_dict().items())
    assert not any(torch.equal(one[name], two[name]) for name, _ in tiny(architecture).hf.named_parameters())


@architectures
def test_no_weight_is_left_at_a_value_that_hides_a_mistake(architecture):
    """Biases that are zero, or gains that are one, would."""
    for name, weight in tiny(architecture).hf.named_parameters():
        assert weight.std() > 0.1, name


@architectures
def test_attention_is_far_from_uniform_and_from_certain(architecture):
    relative = capture(tiny(architecture), random_prompts(), [Entropy(relative=True)])[Entropy(relative=True)][..., 4:]
    assert 0.02 < relative.mean() < 0.9


def test_there_are_these_nine_architectures():
    assert set(ARCHITECTURES) == {"gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"}


def test_an_unknown_architecture_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match="unknown architecture 'bert'; there are: gemma2, gemma3_text, gpt2, gpt_neox, llama, mistral, phi3, qwen2, qwen3"):
        random_model("bert")


def test_settings_override_the_configuration():
    model = random_model("llama", num_hidden_layers=5, num_key_value_heads=3, dtype=torch.bfloat16, seed=4)
    assert (model.shape.n_layers, model.shape.n_kv_heads, model.dtype) == (5, 3, torch.bfloat16)
    assert (model.name, model.origin) == ("tiny-llama", "random llama, seed 4")


# ---------------------------------------------------------------------------------------------------------------------- the tokenizer


@pytest.mark.parametrize("text", ["", "ab", "  a b ", "naïve – 日本語 🙂\n\t", "<s> is no </s>".replace("<", "‹"), "\x00\x7f"])
def test_every_text_has_one_token_per_byte_behind_the_beginning(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert len(ids) == 1 + len(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_byte_has_an_id_within_the_vocabulary():
    tokenizer = byte_tokenizer()
    text = "".join(map(chr, range(0x800)))  # every byte that begins or continues two bytes
    ids = np.unique(tokenizer(text)["input_ids"][1:])
    assert ids.min() == 3
    assert ids.max() < VOCABULARY == 260
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.chat_template) == (2, 0, None)


def test_the_tokenizer_survives_on_disk(tmp_path):
    model = tiny("gpt2")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    text = "naïve – 日本語 🙂"
    assert load(str(tmp_path), device="cpu").tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
