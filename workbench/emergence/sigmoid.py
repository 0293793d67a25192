"""What if no head had to look anywhere? Llama whose attention weights are sigmoids of the scores, without normalisation (Gu et al. 2024, 2410.10781).

A row's weights are σ(q·k · scaling) for the keys that it may see: each 0–1, together anything from 0 to the number of keys. Such a model has a type of its
own, so that neither transformers' `Auto` classes nor `workbench.load` open it: they would run it with a softmax, without a word. `opened` does.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.masking_utils import sdpa_mask

from workbench.errors import InputError
from workbench.models import HFModel, choose_device
from workbench.prompts import Prompts
from workbench.runs import fingerprint_of

SIGMOID = "workbench_sigmoid"
"""The name of the attention function among transformers' own."""


def sigmoid_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **_: object
) -> tuple[Float[Tensor, "B Q H E"], Float[Tensor, "B H Q K"]]:
    """transformers' attention interface: the outputs Σ σ(q·k · scaling) v over the keys that a row may see, and the weights themselves."""
    if attention_mask is None or scaling is None:
        raise RuntimeError("sigmoid attention needs the mask and the scale of its scores")
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    weight_BHQK = (query @ key.transpose(-1, -2) * scaling).sigmoid().masked_fill(~attention_mask, 0.0)
    return (weight_BHQK @ value).transpose(1, 2).contiguous(), weight_BHQK


def _visible(*args: Any, **kwargs: Any) -> Tensor | None:
    """True where a query may see a key, [B, 1, Q, K]; never left out."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


AttentionInterface.register(SIGMOID, sigmoid_attention)
AttentionMaskInterface.register(SIGMOID, _visible)


@no_type_check  # transformers gives it settings that its signature does not have
class SigmoidConfig(LlamaConfig):
    """The configuration of a Llama with sigmoid attention; its type says so in `config.json`."""

    model_type = "llama_sigmoid"


class SigmoidLlama(LlamaForCausalLM):
    """A Llama that runs with `sigmoid_attention` and no other."""

    config_class = SigmoidConfig

    def __init__(self, config: SigmoidConfig) -> None:
        config._attn_implementation = SIGMOID
        super().__init__(config)


class SigmoidModel(HFModel):
    """A model with sigmoid attention: prompts are made for it and its weights are seen head by head, but no pass may replace its attention.

    `capture`, `score` and all else that runs it with an attention function of the workbench raise `InputError`; `reading.pattern_scores` reads its own weights.
    """

    def __post_init__(self) -> None:
        self.hf.eval().requires_grad_(False)

    @cached_property
    def config(self) -> LlamaConfig:
        """The settings of a Llama of this size: where its parts lie and how large they are."""
        return LlamaConfig(**{name: value for name, value in self.hf.config.to_dict().items() if name != "model_type"})

    @cached_property
    def fingerprint(self) -> str:
        """Another one than that of a Llama with the same weights, which computes something else."""
        return fingerprint_of({"attention": SIGMOID, "llama": HFModel.fingerprint.func(self)})

    def attention(self, implementation: str) -> NoReturn:
        """Raises `InputError`: every other attention function would make a softmax of the scores."""
        raise InputError(
            f"{self.name} has sigmoid attention, whose rows do not sum to 1; {implementation} would run it as if it were softmax. "
            "workbench.emergence.reading.pattern_scores scores what it really does"
        )

    def patterns(self, prompts: Prompts) -> Float[Tensor, "B L H Q K"]:
        """The weights of all heads as they are used in a pass, not normalised."""
        with torch.inference_mode():
            seen = self.hf(torch.tensor(prompts.ids_BT, device=self.device), use_cache=False, output_attentions=True)
        return torch.stack(seen.attentions, dim=1).float().cpu()


def opened(folder: Path, device: str = "auto") -> SigmoidModel:
    """A folder that `grow` wrote with sigmoid attention, as a model. Raises `InputError` for any other."""
    try:
        config = SigmoidConfig.from_pretrained(folder, local_files_only=True)
        if config.to_dict()["model_type"] != SigmoidConfig.model_type or '"llama_sigmoid"' not in (folder / "config.json").read_text(encoding="utf-8"):
            raise InputError(f"{folder} has softmax attention; workbench.load opens it")
        hf = SigmoidLlama.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot open {folder}: {str(error).strip().partition(chr(10))[0]}") from error
    return SigmoidModel(folder.name, str(folder), hf.to(choose_device(device)), tokenizer)
