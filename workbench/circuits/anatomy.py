"""What does a pass consist of? A model taken apart: the attention and the MLP of every block as functions of the residual stream.

Everything that experiments on circuits replace, freeze or differentiate goes through here: queries, keys and values as attention gets them (positions
rotated in, norms done), head outputs z, what attention and MLP write. Prompts are of one length, without padding.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface

from workbench.errors import InputError
from workbench.heads import Shape
from workbench.models import HFModel
from workbench.resume import blocks
from workbench.weights import FAMILIES

TAKEN_APART = "workbench_taken_apart"
"""The attention implementation, by transformers' name for it."""

_LEARNED: WeakKeyDictionary[HFModel, dict[Any, tuple[list[dict[str, Any]], list["Score"]]]] = WeakKeyDictionary()
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries [N, H, Q, E], keys and values [N, G, Q, E] of the tokens in hand to head outputs z [N, H, Q, E]."""


@dataclass(frozen=True)
class Score:
    """How one layer scores keys: scaling · q·k, tanh-capped at `softcap`, within a `window` of so many keys where it has one."""

    scaling: float
    softcap: float | None
    window: int | None


@dataclass(frozen=True, eq=False)
class Trace:
    """One pass over prompts, kept: per layer the residual stream in front of the block, q, k, v, z, and what attention and MLP wrote.

    `x` has one entry more than there are layers: what enters the final norm. `logits_BV` are those of the last position.
    """

    x: Sequence[Float[Tensor, "B T D"]]
    q: Sequence[Float[Tensor, "B H T E"]]
    k: Sequence[Float[Tensor, "B G T E"]]
    v: Sequence[Float[Tensor, "B G T E"]]
    z: Sequence[Float[Tensor, "B H T E"]]
    attention: Sequence[Float[Tensor, "B T D"]]
    mlp: Sequence[Float[Tensor, "B T D"]]
    logits_BV: Float[Tensor, "B V"]

    def mid(self, layer: int) -> Float[Tensor, "B T D"]:
        """The residual stream between a block's attention and its MLP."""
        return self.x[layer] + self.attention[layer]


class Anatomy:
    """A model, part by part, for prompts of `length` tokens. Made by `taken_apart`; outside of its `with` block the parts cannot be used.

    Rows N are prompts, or variants × prompts. With `first`, the tokens in hand are those from that position on.
    """

    def __init__(self, model: HFModel, length: int) -> None:
        self.model, self.length = model, length
        self.shape: Shape = model.shape
        self._family = FAMILIES[model.config.model_type]
        self.parallel = bool(getattr(model.config, "use_parallel_residual", False))
        self._scores: list[Score] = []
        self._arguments: list[dict[str, Any]] = []
        self._mix: Mix | None = None

    def embed(self, ids_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What enters the first block: embeddings, and learned positions where there are such."""
        seen: list[Tensor] = []

        def keep(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            seen.append(hidden_states)
            return hidden_states

        every = blocks(self.model)
        try:
            for block in every:
                block.forward = keep
            self._whole(ids_BT.to(self.model.device))
        finally:
            for block in every:
                block.__dict__.pop("forward", None)
        return seen[0]

    def attend(self, layer: int, x_NQD: Float[Tensor, "N Q D"], mix: Mix, first: int = 0) -> Float[Tensor, "N Q D"]:
        """What a layer's attention writes for these residuals, `mix` deciding what its heads put out."""
        block = blocks(self.model)[layer]
        self._mix = mix
        normed = block.get_submodule(self._family.input_norm)(x_NQD)
        written, *_ = self.model.weights.attentions[layer](normed, **_from(self._arguments[layer], first))
        return self._behind(self.model.weights.attention_post_norm_module(layer), written)

    def qkv(self, layer: int, x_NQD: Float[Tensor, "N Q D"], first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, Q, E], keys and values [N, G, Q, E] of a layer for these residuals, as its attention gets them."""
        seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append((q, k, v))
            return torch.zeros_like(q)

        self.attend(layer, x_NQD, keep, first)
        return seen[0]

    def pattern(self, layer: int, q_NHQE: Float[Tensor, "N H Q E"], k_NGKE: Float[Tensor, "N G K E"]) -> Float[Tensor, "N H Q K"]:
        """Where each query looks; the queries are those of the last Q positions. In single precision at least, rows sum to 1."""
        group = q_NHQE.shape[1] // k_NGKE.shape[1]
        q_NGRE = rearrange(q_NHQE, "n (g h) q e -> n g (h q) e", h=group)
        s_NHQK = self.scored(layer, rearrange(torch.matmul(q_NGRE, k_NGKE.mT), "n g (h q) k -> n (g h) q k", h=group))
        keys, rows = k_NGKE.shape[2], q_NHQE.shape[2]
        back_QK = torch.arange(keys - rows, keys, device=s_NHQK.device)[:, None] - torch.arange(keys, device=s_NHQK.device)
        return s_NHQK.masked_fill((back_QK < 0) | (back_QK >= (self._scores[layer].window or keys)), -torch.inf).softmax(-1).to(q_NHQE.dtype)

    def scored(self, layer: int, product: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
        """Scores in front of the softmax from products q·k of a layer, in single precision at least."""
        score = self._scores[layer]
        return product.float() * score.scaling if score.softcap is None else (product.float() * score.scaling / score.softcap).tanh() * score.softcap

    def mix(self, layer: int, q: Float[Tensor, "N H Q E"], k: Float[Tensor, "N G K E"], v: Float[Tensor, "N G K E"]) -> Float[Tensor, "N H Q E"]:
        """Head outputs z of a layer, as the model computes them."""
        return mixed(self.pattern(layer, q, k), v)

    def write(self, layer: int, z_NHQE: Float[Tensor, "N H Q E"]) -> Float[Tensor, "N Q D"]:
        """What a layer's attention writes when its heads put out z: projected, biased, and behind its own norm where it has one."""
        written = self.model.weights.outputs[layer](rearrange(z_NHQE, "n h q e -> n q (h e)"))
        return self._behind(self.model.weights.attention_post_norm_module(layer), written)

    def mlp(self, layer: int, x_NQD: Float[Tensor, "N Q D"]) -> Float[Tensor, "N Q D"]:
        """What a layer's MLP writes, its norms included."""
        block, family = blocks(self.model)[layer], self._family
        for name in (family.mlp_norm, "mlp", family.mlp_post_norm):
            x_NQD = x_NQD if name is None else block.get_submodule(name)(x_NQD)
        return x_NQD

    def finish(self, layer: int, x_NQD: Float[Tensor, "N Q D"], attention_NQD: Float[Tensor, "N Q D"]) -> Float[Tensor, "N Q D"]:
        """The residual stream behind a block, from that in front of it and what its attention wrote."""
        mid = x_NQD + attention_NQD
        return mid + self.mlp(layer, x_NQD if self.parallel else mid)

    def logits(self, x_ND: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Logits for residuals behind the last block."""
        logits = self.model.hf.get_output_embeddings()(self.model.weights.final_norm_module(x_ND))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else (logits / cap).tanh() * cap

    def trace(self, ids_BT: Int[Tensor, "B T"]) -> Trace:
        """One pass over prompts, kept. Raises `InputError` if they are not of the length this was made for."""
        if ids_BT.shape[1] != self.length:
            raise InputError(f"prompts of {ids_BT.shape[1]} tokens where {self.length} are expected; compare prompts of one length")
        x = [self.embed(ids_BT)]
        kept: dict[str, list[Tensor]] = {name: [] for name in ("q", "k", "v", "z", "attention", "mlp")}
        for layer in range(self.shape.n_layers):

            def mix(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                z = self.mix(layer, q, k, v)
                for name, value in zip("qkvz", (q, k, v, z), strict=True):
                    kept[name].append(value)
                return z

            kept["attention"].append(self.attend(layer, x[-1], mix))
            mid = x[-1] + kept["attention"][-1]
            kept["mlp"].append(self.mlp(layer, x[-1] if self.parallel else mid))
            x.append(mid + kept["mlp"][-1])
        return Trace(x, **kept, logits_BV=self.logits(x[-1][:, -1]))

    def _behind(self, norm: Any, written: Tensor) -> Tensor:
        return written if norm is None else norm(written)

    def _whole(self, ids_BT: Tensor) -> None:
        self.model.hf(ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False, logits_to_keep=1)

    def learn(self) -> None:
        """See what each layer's attention is called with, and how it scores; known from the last time if the length, the device and the precision are."""
        key = (self.length, self.model.device, self.model.dtype)
        if known := _LEARNED.get(self.model, {}).get(key):
            self._arguments, self._scores = known
            return
        handles = [module.register_forward_pre_hook(self._listen, with_kwargs=True) for module in self.model.weights.attentions]
        try:
            self._mix = lambda q, k, v: torch.zeros_like(q)
            with torch.inference_mode(False), torch.no_grad():
                self._whole(torch.zeros(1, self.length, dtype=torch.long, device=self.model.device))
        finally:
            for handle in handles:
                handle.remove()
        _LEARNED[self.model] = {key: (self._arguments, self._scores)}

    def _listen(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self._arguments.append({name: value for name, value in kwargs.items() if name not in ("hidden_states", "past_key_values", "attention_mask")})

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """What the model's attention calls."""
        if len(self._scores) < self.shape.n_layers:
            self._scores.append(Score(scaling, softcap, self.model.windows[len(self._scores)]))
        assert self._mix is not None
        return self._mix(q, k, v)


def mixed(pattern_NHQK: Float[Tensor, "N H Q K"], v_NGKE: Float[Tensor, "N G K E"]) -> Float[Tensor, "N H Q E"]:
    """Values weighted by a pattern; query heads of one group share their values."""
    group = pattern_NHQK.shape[1] // v_NGKE.shape[1]
    weights = rearrange(pattern_NHQK, "n (g h) q k -> n g (h q) k", h=group)
    return rearrange(torch.matmul(weights, v_NGKE), "n g (h q) e -> n (g h) q e", h=group)


def _from(arguments: dict[str, Any], first: int) -> dict[str, Any]:
    """A layer's arguments for the tokens from a position on."""
    tensors = {name: arguments[name][..., first:] for name in ("position_ids", "cache_position") if isinstance(arguments.get(name), Tensor)}
    cut = {**arguments, **tensors, "attention_mask": None}
    if cut.get("position_embeddings") is not None:
        cut["position_embeddings"] = tuple(part[..., first:, :] for part in cut["position_embeddings"])
    return cut


@contextmanager
def taken_apart(model: HFModel, length: int) -> Generator[Anatomy, None, None]:
    """The model part by part, for prompts of one length; it is what it was afterwards. Raises `InputError` for prompts too long for it, and under a policy."""
    if not 1 <= length <= model.positions:
        raise InputError(f"{model.name} takes 1 to {model.positions} tokens, not {length}")
    anatomy = Anatomy(model, length)
    with model.attention(TAKEN_APART):
        try:
            for module in model.weights.attentions:
                module.workbench_anatomy = anatomy
            anatomy.learn()
            yield anatomy
        finally:
            for module in model.weights.attentions:
                module.__dict__.pop("workbench_anatomy", None)


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, *, scaling: float, **more: Any) -> tuple[Tensor, None]:
    """transformers' attention interface."""
    if more.get("s_aux") is not None:
        raise InputError("attention with learned sink logits is not supported: its rows do not sum to 1")
    z = module.workbench_anatomy.attention(query, key, value, scaling, more.get("softcap"))
    return rearrange(z, "n h q e -> n q h e").contiguous(), None


AttentionInterface.register(TAKEN_APART, _attention)
