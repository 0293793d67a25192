"""Which head does what, for certain? A model whose weights are written by hand: an induction circuit of two heads among six idle ones.

1. The embedding writes three features of norm 1: which token, which position (a code on which "one back" is a rotation), and whether
   the position is the first. 2. The previous-token head, L0H1, asks for the position one back and copies the token there into a slot of
   its own. 3. The induction head, L1H2, asks for keys whose slot holds the present token, so for those that follow an earlier
   occurrence of it, and copies the token there into the output slot. 4. The unembedding reads the output slot. Ablate either and
   nothing is predicted. Of the idle heads, the even ones attend uniformly and the odd ones to themselves; they write nothing.

Every feature x is stored as the pair (x, −x), so the mean is 0, and every position holds the same number of features of norm 1, so
the variance is known: each LayerNorm has the gain that undoes it. All other biases, and the MLPs, are 0.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel

PREVIOUS, INDUCTION = Head(0, 1), Head(1, 2)
"""The two heads of the circuit."""

HEADS, FREQUENCIES = 4, 32
SHARP = 15.0
"""How far the logit of a sought key lies above that of any other, at least."""

NEAREST = 0.55
"""Codes of two different positions differ by more than this in their inner product, up to 1,024 positions."""


def induction_model(vocabulary: int = 100, length: int = 64, tokenizer: Any = None) -> HFModel:
    """A GPT-2 of two layers of four heads, without MLPs, that repeats what followed the present token before.

    `vocabulary` token ids (at least 21), up to `length` tokens (at most 1,024). `PREVIOUS` and `INDUCTION` attend with at least 0.99 to what
    they look for, if it is there. Raises `InputError` for other sizes.
    """
    if not (vocabulary >= 21 and 2 <= length <= 1024):
        raise InputError(f"a compiled model has 21 tokens or more and a length of 2–1024, not {vocabulary} and {length}")
    slots = _Slots(vocabulary)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=length, n_embd=slots.width, n_layer=2, n_head=HEADS, n_inner=1, layer_norm_epsilon=1e-12,
        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        hf = GPT2LMHeadModel(config)
    hf = hf.to_empty(device="cpu")
    for parameter in hf.parameters():
        torch.nn.init.zeros_(parameter)
    _write(hf, slots, length)
    return HFModel("compiled-induction", f"induction circuit, {vocabulary} tokens", hf.float(), tokenizer)


class _Slots:
    """Where in the residual stream each feature lies; a feature takes two dimensions."""

    def __init__(self, vocabulary: int) -> None:
        sizes = {"token": vocabulary, "position": 2 * FREQUENCIES, "first": 2, "previous": vocabulary, "output": vocabulary}
        self.features = sum(sizes.values()) + sum(sizes.values()) % 2  # so that four heads share 2 × features dimensions
        self.width, self.size = 2 * self.features, 2 * self.features // HEADS
        starts = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
        self.slices = {name: slice(start, start + size) for start, (name, size) in zip(starts, sizes.items(), strict=False)}

    def read(self, **weights: Tensor) -> Tensor:
        """A matrix [D, E] that maps each named slot by a matrix [slot, ≤ E]."""
        return self._pairs(weights, 0.5)

    def write(self, **weights: Tensor) -> Tensor:
        """A matrix [E, D] that writes into each named slot by a matrix [≤ E, slot]."""
        return self._pairs({name: weight.T for name, weight in weights.items()}, 1.0).T

    def _pairs(self, weights: dict[str, Tensor], scale: float) -> Tensor:
        matrix_FE = torch.zeros(self.features, self.size)
        for name, weight in weights.items():
            matrix_FE[self.slices[name], : weight.shape[1]] = scale * weight
        return rearrange(torch.stack([matrix_FE, -matrix_FE]), "pair f e -> (f pair) e")

    def rows(self, **features: Tensor) -> Tensor:
        """Residual vectors [N, D] with these features [N, slot], N being any number."""
        row_NF = torch.zeros(len(next(iter(features.values()))), self.features)
        for name, feature in features.items():
            row_NF[:, self.slices[name]] = feature
        return rearrange(torch.stack([row_NF, -row_NF]), "pair n f -> n (f pair)")


def _write(hf: Any, slots: _Slots, length: int) -> None:
    vocabulary, body = hf.config.vocab_size, hf.transformer
    tokens, position_TP, first_T2 = torch.eye(vocabulary), _codes(torch.arange(length)), torch.eye(2)[[0] + [1] * (length - 1)]
    body.wte.weight.data = slots.rows(token=tokens)
    body.wpe.weight.data = slots.rows(position=position_TP, first=first_T2)
    hf.lm_head.weight.data = slots.rows(output=SHARP * tokens)
    for norm, features in ((body.h[0].ln_1, 3), (body.h[1].ln_1, 4), (body.ln_f, 5)):
        norm.weight.data.fill_((2 * features / slots.width) ** 0.5)
    gap = SHARP * slots.size**0.5  # GPT-2 divides logits by the root of the head size
    where, token = slots.read(position=torch.eye(2 * FREQUENCIES)), slots.read(token=tokens)
    here, back = where * gap / NEAREST, slots.read(position=_one_back() * gap / NEAREST)
    none, silent = torch.zeros(slots.width, slots.size), torch.zeros(slots.size, slots.width)
    idle = [(none, none, none, silent), (here, where, none, silent)] * 2
    layers = [list(idle), list(idle)]
    layers[PREVIOUS.layer][PREVIOUS.index] = (back, where, token, slots.write(previous=tokens))
    # The first key's slot holds its own token, as nothing stands before it: it is marked down by as much as the slot can give.
    asked = slots.read(token=gap * tokens, first=torch.cat([torch.zeros(2, vocabulary), torch.full((2, 1), gap)], dim=1))
    offered = slots.read(previous=tokens, first=torch.cat([torch.zeros(2, vocabulary), torch.tensor([[-2.0], [0.0]])], dim=1))
    layers[INDUCTION.layer][INDUCTION.index] = (asked, offered, token, slots.write(output=tokens))
    for block, heads in zip(body.h, layers, strict=True):
        q, k, v, o = zip(*heads, strict=True)
        block.attn.c_attn.weight.data = torch.cat([*q, *k, *v], dim=1)
        block.attn.c_proj.weight.data = torch.cat(o)


def _codes(position_T: Tensor) -> Tensor:
    """A code of norm 1 for every position: points on circles turning at speeds √2, √3, √4 and so on."""
    angle_TF = position_T[:, None] * torch.arange(2, FREQUENCIES + 2, dtype=torch.float64).sqrt()
    return (torch.cat([angle_TF.cos(), angle_TF.sin()], dim=1) / FREQUENCIES**0.5).float()


def _one_back() -> Tensor:
    """The matrix that turns the code of a position, as a row, into that of the position before."""
    cos, sin = _codes(torch.tensor([1]))[0].mul(FREQUENCIES**0.5).chunk(2)
    return torch.cat([torch.cat([cos.diag(), -sin.diag()], dim=1), torch.cat([sin.diag(), cos.diag()], dim=1)])
