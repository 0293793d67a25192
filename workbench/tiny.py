"""Models made in memory: random ones of each architecture, with a tokenizer of bytes (`compiled` makes those whose circuit is known)."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from workbench.errors import unknown
from workbench.models import HFModel

VOCABULARY = 260
"""Three special tokens (unknown, begin, end), the 256 bytes, and one spare id."""

_COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 4096}
_GQA = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 48}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 4096},
    "gpt_neox": {**_COMMON, "intermediate_size": 48},
    "llama": {**_GQA, "num_attention_heads": 6, "hidden_size": 48},
    "mistral": {**_GQA, "sliding_window": 8},
    "qwen2": {**_GQA, "num_key_value_heads": 1},
    "qwen3": {**_GQA, "head_dim": 12},
    "gemma2": {**_GQA, "head_dim": 12, "sliding_window": 8, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 10},
    "gemma3_text": {**_GQA, "head_dim": 12, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 3},
    "phi3": dict(_GQA),
}
"""Settings that make each supported architecture tiny and still show its peculiarities (GQA, odd head sizes, windows, capping)."""


def random_model(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> HFModel:
    """A tiny model of random weights, biases and norm gains included, of one of `ARCHITECTURES`, with `byte_tokenizer`.

    `settings` override the configuration. The weights are large enough that attention is far from uniform.
    """
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    config = AutoConfig.for_model(architecture, **{**ARCHITECTURES[architecture], **_IDS, **settings})
    hf = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in hf.parameters():
        spread = 0.3 if parameter.dim() > 1 else 0.2
        offset = 1.0 if parameter.dim() == 1 and parameter.data.mean() > 0.5 else 0.0
        parameter.data = offset + spread * torch.randn(parameter.shape, generator=generator)
    return HFModel(f"tiny-{architecture}", f"random {architecture}, seed {seed}", hf.to(dtype), byte_tokenizer())


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte; `<s>` is put in front, `</s>` ends, there is no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<unk>", "<s>", "</s>", *alphabet]
    core = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
