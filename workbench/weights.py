"""What does each head write and read? A model's weights seen head by head, whatever its architecture packs together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from workbench.heads import Head, Shape

Projections = tuple[Tensor, Tensor, Tensor]
"""Weights of q [D, H·E], k [D, G·E] and v [D, G·E], heads outermost, input dimension first."""


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its blocks, attention, norms and embeddings, and how it packs q, k and v."""

    blocks: str
    attention: str
    output: str
    qkv: Callable[[Any, Shape], Projections]
    input_norm: str = "input_layernorm"
    final_norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    gain_offset: float = 0.0  # Gemma stores its RMSNorm gain minus one
    centred: bool = False  # LayerNorm subtracts the mean, RMSNorm does not


def _separate(attention: Any, shape: Shape) -> Projections:
    return attention.q_proj.weight.T, attention.k_proj.weight.T, attention.v_proj.weight.T


def _concatenated(attention: Any, shape: Shape) -> Projections:
    sizes = [shape.n_heads * shape.d_head, *[shape.n_kv_heads * shape.d_head] * 2]
    q, k, v = attention.qkv_proj.weight.T.split(sizes, dim=1)
    return q, k, v


def _conv1d(attention: Any, shape: Shape) -> Projections:
    q, k, v = attention.c_attn.weight.split(shape.d_model, dim=1)
    return q, k, v


def _interleaved(attention: Any, shape: Shape) -> Projections:
    packed = rearrange(attention.query_key_value.weight, "(h three e) d -> three d (h e)", h=shape.n_heads, three=3)
    return packed[0], packed[1], packed[2]


_LLAMA = Family("model.layers", "self_attn", "o_proj", _separate)
_GEMMA = Family("model.layers", "self_attn", "o_proj", _separate, gain_offset=1.0)

FAMILIES: dict[str, Family] = {
    "gpt2": Family("transformer.h", "attn", "c_proj", _conv1d, "ln_1", "transformer.ln_f", "transformer.wte", centred=True),
    "gpt_neox": Family(
        "gpt_neox.layers", "attention", "dense", _interleaved, final_norm="gpt_neox.final_layer_norm", embedding="gpt_neox.embed_in", centred=True
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": Family("model.layers", "self_attn", "o_proj", _concatenated),
}
"""The architectures that are proven by tests, by transformers' `model_type`."""


class HeadWeights:
    """Per-head views of the weights. All are float32, input dimension first; KV weights are indexed by query head."""

    def __init__(self, hf: Any, config: Any, shape: Shape) -> None:
        self._hf, self._shape = hf, shape
        self._family = FAMILIES[config.model_type]
        self.attentions: tuple[Any, ...] = tuple(block.get_submodule(self._family.attention) for block in self._blocks)
        self.outputs: tuple[Any, ...] = tuple(module.get_submodule(self._family.output) for module in self.attentions)
        """Each layer's attention module, and its output projection, whose input is the heads' outputs side by side."""

    @property
    def _blocks(self) -> Any:
        return self._hf.get_submodule(self._family.blocks)

    def q(self, head: Head) -> Float[Tensor, "D E"]:
        """W_Q of a head."""
        return self._projection(head, 0, head.index)

    def k(self, head: Head) -> Float[Tensor, "D E"]:
        """W_K of the KV head that this query head reads."""
        return self._projection(head, 1, self._shape.kv_head(head))

    def v(self, head: Head) -> Float[Tensor, "D E"]:
        """W_V of the KV head that this query head reads."""
        return self._projection(head, 2, self._shape.kv_head(head))

    def o(self, head: Head) -> Float[Tensor, "E D"]:
        """W_O of a head: z @ W_O is what the head adds to the residual stream (before a block's own post-norm, where it has one)."""
        self._shape.check(head)
        module = self.outputs[head.layer]
        weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
        return rearrange(weight, "(h e) d -> h e d", h=self._shape.n_heads)[head.index].float()

    def output_bias(self, layer: int) -> Float[Tensor, " D"]:
        """The bias of the attention block's output; it belongs to no head."""
        bias = self.outputs[layer].bias
        return torch.zeros(self._shape.d_model, device=self.outputs[layer].weight.device) if bias is None else bias.float()

    def embedding(self) -> Float[Tensor, "V D"]:
        """W_E, one row per token id."""
        return self._hf.get_submodule(self._family.embedding).weight.float()

    def unembedding(self) -> Float[Tensor, "D V"]:
        """W_U, one column per token id, less its mean over the tokens, which no probability depends on."""
        weight_VD = self._hf.get_output_embeddings().weight.float()
        return (weight_VD - weight_VD.mean(0)).T

    def input_norm(self, layer: int) -> Float[Tensor, "D D"]:
        """The linear part of the norm in front of a layer's attention: gain, after centring where the norm centres."""
        return self._norm(self._blocks[layer].get_submodule(self._family.input_norm))

    def final_norm(self) -> Float[Tensor, "D D"]:
        """The linear part of the norm in front of the unembedding."""
        return self._norm(self._hf.get_submodule(self._family.final_norm))

    def _norm(self, module: Any) -> Tensor:
        gain = torch.diag(module.weight.float() + self._family.gain_offset)
        return (torch.eye(len(gain), device=gain.device) - 1 / len(gain)) @ gain if self._family.centred else gain

    def _projection(self, head: Head, which: int, index: int) -> Tensor:
        self._shape.check(head)
        packed = self._family.qkv(self.attentions[head.layer], self._shape)[which]
        return rearrange(packed, "d (h e) -> h d e", e=self._shape.d_head)[index].float()


@dataclass(frozen=True, eq=False)
class Weights:
    """Evidence for probes that need no prompt: the OV weights of every layer, and the vocabulary seen through them.

    With a `shuffle` seed, embeddings are dealt to the wrong tokens: the control.
    """

    heads: HeadWeights
    shape: Shape
    shuffle: int | None = None

    @property
    def layers(self) -> Iterator[tuple[Float[Tensor, "H D E"], Float[Tensor, "H E D"]]]:
        """W_V and W_O of every head, layer by layer."""
        for layer in range(self.shape.n_layers):
            heads = [Head(layer, index) for index in range(self.shape.n_heads)]
            yield torch.stack([self.heads.v(head) for head in heads]), torch.stack([self.heads.o(head) for head in heads])

    @cached_property
    def full_DD(self) -> list[Float[Tensor, "D D"]]:
        """Per layer: from what a head writes, through final norm, unembedding, embedding and the layer's norm, to what it reads."""
        embedding = self.heads.embedding()
        if self.shuffle is not None:
            order = torch.randperm(len(embedding), generator=torch.Generator().manual_seed(self.shuffle))
            embedding = embedding[order.to(embedding.device)]
        through = self.heads.final_norm() @ (self.heads.unembedding() @ embedding)
        return [through @ self.heads.input_norm(layer) for layer in range(self.shape.n_layers)]
