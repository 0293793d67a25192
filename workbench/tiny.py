"""Models made in memory: random ones of each architecture, and (in `compiled.py`) ones whose circuit is known."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.errors import unknown
from workbench.models import HFModel

_COMMON = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
_GQA = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 48}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {**_COMMON, "intermediate_size": 48},
    "llama": {**_GQA, "num_attention_heads": 6, "hidden_size": 48},
    "mistral": {**_GQA, "sliding_window": 8},
    "qwen2": {**_GQA, "num_key_value_heads": 1},
    "qwen3": {**_GQA, "head_dim": 12},
    "gemma2": {**_GQA, "head_dim": 12, "sliding_window": 8, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 10},
    "gemma3_text": {**_GQA, "head_dim": 12, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": dict(_GQA),
}
"""Settings that make each supported architecture tiny and still show its peculiarities (GQA, odd head sizes, windows, capping)."""


def random_model(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> HFModel:
    """A tiny model of random weights, biases and norm gains included, of one of `ARCHITECTURES`; no tokenizer.

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
    return HFModel(f"tiny-{architecture}", f"random {architecture}, seed {seed}", hf.to(dtype))
