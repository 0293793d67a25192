"""What does each head add to the logit of the token that does follow? Direct effects of all heads, from one forward pass."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.captures import capture
from workbench.errors import InputError, unknown
from workbench.heads import Head
from workbench.models import HFModel
from workbench.parameters import in_float32
from workbench.prompts import Prompts
from workbench.reads import HeadOutput, Peak
from workbench.token_circuits import readout

ABLATIONS = ("mean", "zero")


@dataclass(frozen=True, eq=False)
class Effects:
    """Direct effects in logits [B, L, H, R] at the rows [B, R] on the right next tokens `answer` [B, R]; `key` [B, L, H, R]: where each head looks most.

    Positive: without the head's direct effect the right token's logit would be lower by as much.
    """

    effect_BLHR: Float[np.ndarray, "B L H R"]
    key_BLHR: Int[np.ndarray, "B L H R"]
    row_BR: Int[np.ndarray, "B R"]
    answer_BR: Int[np.ndarray, "B R"]

    @property
    def winner_BR(self) -> Int[np.ndarray, "B R"]:
        """The head whose direct effect is the largest of all, as layer · H + index; −1 where no head raises the right token."""
        flat_BHR = self.effect_BLHR.reshape(len(self.effect_BLHR), -1, self.effect_BLHR.shape[-1])
        return np.where(flat_BHR.max(1) > 0, flat_BHR.argmax(1), -1)

    def wins(self, head: Head) -> Int[np.ndarray, "W 2"]:
        """The winning cases of a head: prompt and place among the rows."""
        return np.argwhere(self.winner_BR == head.layer * self.effect_BLHR.shape[2] + head.index)


def direct_effects(model: HFModel, prompts: Prompts, rows: str | None = None, ablation: str = "mean") -> Effects:
    """The direct effect of every head on the logit of the token that follows each row (all rows that have one by default), by one forward pass.

    What the head writes, through the final norm with its length frozen, on the right token's unembedding less the mean over the vocabulary; with the
    ablation `mean` less what the head writes on the mean of these rows (of this batch), with `zero` all of it. Before a soft cap of the logits.
    A norm behind attention (Gemma) is frozen as well. Raises `InputError` for padded prompts without named rows, for a row without a next token, and
    for an unknown ablation.
    """
    if ablation not in ABLATIONS:
        raise unknown("ablation", ablation, ABLATIONS)
    if rows is None and prompts.padding is not None:
        raise InputError("padded prompts need named rows, as padding is followed by nothing")
    row_BR = prompts.row_positions(rows) if rows is not None else prompts.row_positions(None)[:, :-1]
    if (row_BR + 1 >= prompts.length).any():
        raise InputError("the last token is followed by none; take rows before it")
    with final_norm(model) as seen:
        found = capture(model, prompts, [HeadOutput(rows), Peak(rows)])
    answer_BR = np.take_along_axis(prompts.ids_BT, row_BR + 1, 1)
    before_BTD, after_BTD = seen[-1]
    row = torch.tensor(row_BR, device=before_BTD.device)[..., None].expand(-1, -1, before_BTD.shape[-1])
    before_BRD, after_BRD = before_BTD.gather(1, row).float(), after_BTD.gather(1, row).float()
    size_BR1 = length(before_BRD @ model.weights.final_norm(), after_BRD, getattr(model.weights.final_norm_module, "bias", None))
    to_logit_BRD = readout(model.weights, torch.tensor(answer_BR.ravel(), device=before_BTD.device)).T.view_as(before_BRD) / size_BR1
    z_BLHRE = torch.as_tensor(np.array(found[HeadOutput(rows)][..., : row_BR.shape[1], :]), device=before_BTD.device)
    layers = [_of_layer(model, layer, z_BLHRE[:, layer], to_logit_BRD, ablation) for layer in range(model.shape.n_layers)]
    key_BLHR = np.array(found[Peak(rows)].key[..., : row_BR.shape[1]], np.int64)
    return Effects(torch.stack(layers, 1).cpu().numpy(), key_BLHR, np.array(row_BR), answer_BR)


def length(scaled: Float[Tensor, "*B D"], after: Float[Tensor, "*B D"], bias: Tensor | None) -> Float[Tensor, "*B 1"]:
    """What a norm has divided by: its linear part's output over its own output, without the bias."""
    out = after if bias is None else after - bias.float()
    return (scaled * scaled).sum(-1, keepdim=True) / (scaled * out).sum(-1, keepdim=True)


def _of_layer(model: HFModel, layer: int, z_BHRE: Tensor, to_logit_BRD: Tensor, ablation: str) -> Float[Tensor, "B H R"]:
    weights = model.weights
    o_HED = torch.stack([weights.o(Head(layer, index)) for index in range(model.shape.n_heads)])
    if (post_DD := weights.attention_post_norm(layer)) is not None:
        written_BRD = torch.einsum("bhre,hed->brd", z_BHRE, o_HED) + weights.output_bias(layer)
        after_BRD = in_float32(weights.attention_post_norm_module(layer), written_BRD)
        to_logit_BRD = (to_logit_BRD / length(written_BRD @ post_DD, after_BRD, None)) @ post_DD.T
    if ablation == "mean":
        z_BHRE = z_BHRE - z_BHRE.mean((0, 2), keepdim=True)
    return torch.einsum("bhre,bhre->bhr", z_BHRE, torch.einsum("brd,hed->bhre", to_logit_BRD, o_HED))


@contextmanager
def final_norm(model: HFModel) -> Generator[list[tuple[Tensor, Tensor]]]:
    """What goes into the final norm and comes out of it [B, T, D], of each forward pass within; the module is left as it was."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.weights.final_norm_module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    try:
        yield seen
    finally:
        handle.remove()
