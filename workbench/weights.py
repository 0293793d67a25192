"""What does each head write and read? A model's weights seen head by head, and its first MLP, whatever its architecture packs together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from workbench.heads import Head, Shape
from workbench.parameters import at_hand, in_float32, own, place_of, whole

Projections = tuple[Tensor, Tensor, Tensor]
"""Weights of q [D, H·E], k [D, G·E] and v [D, G·E], heads outermost, input dimension first; or their biases, with D = 1."""

Take = Callable[[Any], Tensor]
"""What is wanted of a projection: its weight [D, N], or its bias [1, N]."""


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its blocks, attention, MLPs, norms and embeddings, and how it packs q, k and v.

    `mlp_norm` stands in front of the MLP; `attention_post_norm` and `mlp_post_norm` behind attention and MLP, where a block has such.
    """

    blocks: str
    attention: str
    output: str
    qkv: Callable[[Any, Shape, Take], Projections]
    input_norm: str = "input_layernorm"
    final_norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    gain_offset: float = 0.0  # Gemma stores its RMSNorm gain minus one
    centred: bool = False  # LayerNorm subtracts the mean, RMSNorm does not
    mlp_norm: str = "post_attention_layernorm"
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None


def _separate(attention: Any, shape: Shape, take: Take) -> Projections:
    return take(attention.q_proj), take(attention.k_proj), take(attention.v_proj)


def _concatenated(attention: Any, shape: Shape, take: Take) -> Projections:
    sizes = [shape.n_heads * shape.d_head, *[shape.n_kv_heads * shape.d_head] * 2]
    q, k, v = take(attention.qkv_proj).split(sizes, dim=1)
    return q, k, v


def _conv1d(attention: Any, shape: Shape, take: Take) -> Projections:
    q, k, v = take(attention.c_attn).split(shape.d_model, dim=1)
    return q, k, v


def _interleaved(attention: Any, shape: Shape, take: Take) -> Projections:
    packed = rearrange(take(attention.query_key_value), "d (h three e) -> three d (h e)", h=shape.n_heads, three=3)
    return packed[0], packed[1], packed[2]


def _weight(module: Any) -> Tensor:
    weight = own(module.weight)
    return weight.T if isinstance(module, nn.Linear) else weight


def _bias(module: Any) -> Tensor:
    return _weight(module).new_zeros(1, _weight(module).shape[1]) if module.bias is None else own(module.bias)[None]


_LLAMA = Family("model.layers", "self_attn", "o_proj", _separate)
_GEMMA = Family(
    "model.layers",
    "self_attn",
    "o_proj",
    _separate,
    gain_offset=1.0,
    mlp_norm="pre_feedforward_layernorm",
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

FAMILIES: dict[str, Family] = {
    "gpt2": Family("transformer.h", "attn", "c_proj", _conv1d, "ln_1", "transformer.ln_f", "transformer.wte", centred=True, mlp_norm="ln_2"),
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
        self.device = place_of(hf)
        """Where all that is given out lies."""

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
        return self.every_o(head.layer)[head.index].float()

    def every_o(self, layer: int) -> Shaped[Tensor, "H E D"]:
        """W_O of every head of a layer, in the model's precision."""
        return rearrange(self._taken(self.outputs[layer], _weight), "(h e) d -> h e d", h=self._shape.n_heads)

    def v_bias(self, head: Head) -> Float[Tensor, " E"]:
        """The bias of a head's values; zeros where it has none."""
        return self._projection(head, 2, self._shape.kv_head(head), _bias)[0]

    def output_bias(self, layer: int) -> Float[Tensor, " D"]:
        """The bias of the attention block's output; it belongs to no head."""
        none = torch.zeros(self._shape.d_model, device=self.device)
        return self._taken(self.outputs[layer], lambda module: none if module.bias is None else whole(module.bias)).float()

    def embedding(self) -> Float[Tensor, "V D"]:
        """W_E, one row per token id."""
        return self._all(self._hf.get_submodule(self._family.embedding)).float()

    def unembedding(self, ids: Int[Tensor, " V"] | None = None) -> Float[Tensor, "D V"]:
        """W_U, one column per token id (all by default), less its mean over all tokens, which no probability depends on."""
        weight_VD = self._all(self._hf.get_output_embeddings())
        mean_D = weight_VD.mean(0, dtype=torch.float32)
        return ((weight_VD if ids is None else weight_VD[ids]).float() - mean_D).T

    def input_norm(self, layer: int) -> Float[Tensor, "D D"]:
        """The linear part of the norm in front of a layer's attention: gain, after centring where the norm centres."""
        return self._norm(self._blocks[layer].get_submodule(self._family.input_norm))

    def final_norm(self) -> Float[Tensor, "D D"]:
        """The linear part of the norm in front of the unembedding."""
        return self._norm(self.final_norm_module)

    def attention_post_norm(self, layer: int) -> Float[Tensor, "D D"] | None:
        """The linear part of the norm behind a layer's attention; None where the block has none."""
        module = self.attention_post_norm_module(layer)
        return None if module is None else self._norm(module)

    def attention_post_norm_module(self, layer: int) -> Any:
        """The module of the norm behind a layer's attention; None where the block has none."""
        name = self._family.attention_post_norm
        return None if name is None else self._blocks[layer].get_submodule(name)

    def embedded(self, ids_T: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """What enters the first block for these tokens: rows of W_E, scaled where the model scales them, position embeddings left out."""
        module = self._hf.get_submodule(self._family.embedding)
        return self._all(module)[ids_T.to(self.device)].float() * float(getattr(module, "embed_scale", 1.0))

    def mlp0(self, x_TD: Float[Tensor, "T D"], norm: bool = True) -> Float[Tensor, "T D"]:
        """What the MLP of the first block adds to the residual stream for vectors in front of it, in float32; gates, biases and a post-norm included.

        With `norm` its own norm comes first, as in the model; without it the MLP gets the vectors as they are. Exact on embeddings
        where attention and MLP are parallel (GPT-NeoX), an approximation that leaves out the first block's attention elsewhere.
        """
        block, family = self._blocks[0], self._family
        for name in (family.mlp_norm if norm else None, "mlp", family.mlp_post_norm):
            x_TD = x_TD if name is None else in_float32(block.get_submodule(name), x_TD)
        return x_TD

    def normed_input(self, layer: int, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Residual vectors as a layer's attention reads them: behind its whole norm, in float32."""
        return in_float32(self._blocks[layer].get_submodule(self._family.input_norm), x_TD)

    @property
    def final_norm_module(self) -> Any:
        """The module of the norm in front of the unembedding."""
        return self._hf.get_submodule(self._family.final_norm)

    def _taken(self, module: Any, take: Take) -> Tensor:
        """What is wanted of a module, wherever that is, on this object's device."""
        with at_hand(module):
            return take(module).to(self.device)

    def _all(self, module: Any) -> Tensor:
        return self._taken(module, lambda there: whole(there.weight))

    def _norm(self, module: Any) -> Tensor:
        gain = torch.diag(self._all(module).float() + self._family.gain_offset)
        return (torch.eye(len(gain), device=gain.device) - 1 / len(gain)) @ gain if self._family.centred else gain

    def _projection(self, head: Head, which: int, index: int, take: Take = _weight) -> Tensor:
        self._shape.check(head)
        packed = self._family.qkv(self.attentions[head.layer], self._shape, lambda module: self._taken(module, take))[which]
        return rearrange(packed, "d (h e) -> h d e", e=self._shape.d_head)[index].float()


@dataclass(frozen=True, eq=False)
class Weights:
    """Evidence for probes that need no prompt: the OV weights of every layer, and the vocabulary seen through them.

    With a `shuffle` seed, embeddings are dealt to the wrong tokens (or, in probes of named tokens, right answers to the wrong tokens): the control.
    The `tokenizer` tells which token a word is; probes that ask about words need one.
    """

    heads: HeadWeights
    shape: Shape
    shuffle: int | None = None
    tokenizer: Any = None

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
