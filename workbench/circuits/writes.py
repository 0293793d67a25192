"""What does each part add to the residual stream? Writes of single heads, and norms as linear maps with their scale held at one pass."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.circuits.anatomy import Anatomy
from workbench.heads import Head


def scale(linear_DD: Float[Tensor, "D D"], norm: Any, x_ND: Float[Tensor, "*N D"]) -> Float[Tensor, "*N 1"]:
    """What a norm multiplies its linear part (centring and gain) by on these vectors: the reciprocal of their spread.

    Held fixed, the norm is linear, and shares of its input are shares of its output.
    """
    bias = getattr(norm, "bias", None)
    straight, actual = x_ND.float() @ linear_DD, norm(x_ND).float() - (0 if bias is None else bias.float())
    return (actual * straight).sum(-1, keepdim=True) / straight.square().sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def head_writes(anatomy: Anatomy, layer: int, z_BHTE: Float[Tensor, "B H T E"]) -> Float[Tensor, "B H T D"]:
    """What each head of a layer adds to the residual stream by these outputs, biases left out.

    Where attention has a norm behind it (Gemma), a head's share goes through that norm with the scale that it has on all of these outputs together.
    """
    weights = anatomy.model.weights
    w_HED = torch.stack([weights.o(Head(layer, index)) for index in range(anatomy.shape.n_heads)]).to(z_BHTE.dtype)
    written_BHTD = torch.einsum("bhte,hed->bhtd", z_BHTE, w_HED)
    norm, linear_DD = weights.attention_post_norm_module(layer), weights.attention_post_norm(layer)
    if norm is None or linear_DD is None:
        return written_BHTD
    whole_BTD = weights.outputs[layer](z_BHTE.transpose(1, 2).flatten(2))
    return (written_BHTD.float() @ linear_DD * scale(linear_DD, norm, whole_BTD)[:, None]).to(written_BHTD.dtype)


def mean_writes(anatomy: Anatomy, layer: int, z_BHTE: Float[Tensor, "B H T E"]) -> Float[Tensor, "B H D"]:
    """What each head of a layer adds to the residual stream, averaged over positions; in float32 at least where nothing but a projection lies behind it."""
    if anatomy.model.weights.attention_post_norm_module(layer) is not None:
        return head_writes(anatomy, layer, z_BHTE).mean(2)
    return head_writes(anatomy, layer, z_BHTE.float().mean(2, keepdim=True))[:, :, 0]


def to_logits(
    anatomy: Anatomy, x_BD: Float[Tensor, "B D"], direction_BD: Float[Tensor, "B D"], part_BND: Float[Tensor, "B parts D"]
) -> Float[Tensor, "B parts"]:
    """How far parts of the last residual move the logits along directions of the unembedding, the final norm's scale held. In float32."""
    linear_DD, norm = anatomy.model.weights.final_norm(), anatomy.model.weights.final_norm_module
    seen_BD = (direction_BD.float() @ linear_DD.T) * scale(linear_DD, norm, x_BD)
    return torch.einsum("bnd,bd->bn", part_BND.float(), seen_BD)
