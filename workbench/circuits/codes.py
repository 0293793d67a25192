"""Which heads say something on a task's prompts that they never say otherwise? Integer codes of what heads write, by a small sparse autoencoder.

The method of O'Neill and Bui 2024 (arXiv 2405.12522), as their code has it. It only watches: nothing is patched, and a high score is no proof that the
head is used. Heads whose writes vary much score high whatever the task (`code_controls` has a null and baselines); show a causal method beside it.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import InputError, unknown

SOFTMAX = {
    "all": "over all heads: the order stays that of the scores",
    "across_layers": "over the layers, for heads of one index at a time, as the released code's alternative: changes the order",
}


@dataclass(frozen=True)
class CodeSettings:
    """How the autoencoder is trained; the defaults are those of the released code.

    `latents` is the size of the code book, `l1` the weight of the sparsity (0.05 for Docstring there), `examples` how many prompts, positive and negative
    ones mixed, are drawn to train on. Few are meant: an autoencoder that is not trained out gives more codes, and was better.
    """

    latents: int = 200
    l1: float = 0.02
    examples: int = 10
    epochs: int = 500
    rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.latents, self.examples, self.epochs) < 1 or self.rate <= 0 or self.l1 < 0:
            raise InputError(f"not the settings of an autoencoder: {self}")


@dataclass(frozen=True, eq=False)
class Codes:
    """The code of every head on every example [N, L, H], 0 to `settings.latents` − 1; which examples are positive [N]; the last training loss.

    Positive and negative examples are paired in their order: the i-th negative one is the i-th positive one with the task's information taken out.
    """

    code_NLH: Int[np.ndarray, "N L H"]
    positive_N: Bool[np.ndarray, " N"]
    settings: CodeSettings = field(default_factory=CodeSettings)
    loss: float = float("nan")

    def __post_init__(self) -> None:
        if self.positive_N.all() or not self.positive_N.any():
            raise InputError(
                f"codes are compared between positive and negative examples; here {int(self.positive_N.sum())} of {len(self.positive_N)} are positive"
            )
        if self.code_NLH.min() < 0 or self.code_NLH.max() >= self.settings.latents:
            raise InputError(f"codes lie between 0 and {self.settings.latents - 1}, these between {self.code_NLH.min()} and {self.code_NLH.max()}")

    @property
    def pairs(self) -> tuple[Int[np.ndarray, "P L H"], Int[np.ndarray, "P L H"]]:
        """Codes on positive examples and on the negative ones that belong to them. Raises `InputError` if there are not equally many."""
        positive, negative = self.code_NLH[self.positive_N], self.code_NLH[~self.positive_N]
        if len(positive) != len(negative):
            raise InputError(f"every positive example needs its negative one; there are {len(positive)} and {len(negative)}")
        return positive, negative

    def only(self, pairs: int) -> "Codes":
        """The first so many pairs. Raises `InputError` if there are fewer."""
        positive, negative = self.pairs
        if not 1 <= pairs <= len(positive):
            raise InputError(f"of {len(positive)} pairs of examples, {pairs} cannot be taken")
        return replace(self, code_NLH=np.concatenate([positive[:pairs], negative[:pairs]]), positive_N=np.repeat([True, False], pairs))


def encode(write_NLHD: Float[np.ndarray, "N L H D"], positive_N: Bool[np.ndarray, " N"], settings: CodeSettings | None = None) -> Codes:
    """Train one autoencoder for all heads on a few examples, and give each head the number of its most active latent on every example.

    `write_NLHD` is what each head adds to the residual stream, averaged over positions (the paper's default) or at the last one, without the bias of the
    layer. The code of a vector that activates no latent is 0, of a tie the lower one. Seconds on a CPU. Raises `InputError` for
    fewer examples than `settings.examples`, for values that are not finite, and unless there are both positive and negative examples.
    """
    chosen = settings or CodeSettings()
    count, layers, heads, size = write_NLHD.shape
    if count < chosen.examples:
        raise InputError(f"the autoencoder is to be trained on {chosen.examples} examples, and there are {count}; give more, or ask for fewer")
    if not np.isfinite(write_NLHD).all():
        raise InputError("what heads write must be finite numbers")
    rows = np.random.default_rng(chosen.seed).choice(count, chosen.examples, replace=False)
    flat_NHD = torch.from_numpy(np.ascontiguousarray(write_NLHD, np.float32)).reshape(count, layers * heads, size)
    trained = _Autoencoder(size, chosen)
    loss = trained.train(flat_NHD[torch.from_numpy(rows)].flatten(0, 1))
    code_NH = torch.cat([trained.latents(part_HD).argmax(-1)[None] for part_HD in flat_NHD])
    return Codes(code_NH.reshape(count, layers, heads).numpy(), positive_N, chosen, loss)


class _Autoencoder:
    """relu latents with a tied bias. Of both weights the last axis is kept at length 1: latents of the encoder, but *inputs* of the decoder, as released."""

    def __init__(self, size: int, settings: CodeSettings) -> None:
        generator = torch.Generator().manual_seed(settings.seed)
        self.settings = settings
        self.encoder_FD = torch.randn(settings.latents, size, generator=generator)
        self.decoder_DF = torch.randn(size, settings.latents, generator=generator)
        self.bias_F = (2 * torch.rand(settings.latents, generator=generator) - 1) / size**0.5
        self.bias_D = torch.zeros(size)
        self._normalise()

    def _normalise(self) -> None:
        for weight in (self.encoder_FD, self.decoder_DF):
            weight.div_(weight.norm(dim=-1, keepdim=True).clamp(min=1e-12))

    def latents(self, x_ND: Tensor) -> Tensor:
        """How active each latent is, 0 or more [N, F]."""
        return torch.addmm(self.bias_F - self.encoder_FD @ self.bias_D, x_ND, self.encoder_FD.T).relu_()

    @torch.no_grad()
    def train(self, x_ND: Tensor) -> float:
        """Adam over all vectors at once; mean squared error over every number, plus `l1` times the mean L1 norm of the latents. Gives the last loss."""
        weights = (self.encoder_FD, self.decoder_DF)
        optimiser, loss = torch.optim.Adam([*weights, self.bias_F, self.bias_D], lr=self.settings.rate), float("nan")
        total_D = x_ND.sum(0)
        for epoch in range(self.settings.epochs):
            self._normalise()
            active_NF = self.latents(x_ND)
            if epoch == self.settings.epochs - 1:
                loss = self._loss(x_ND, active_NF)
            self._slopes(x_ND, total_D, active_NF)
            for weight in weights:  # only turns: what would make a row longer or shorter is taken out
                assert weight.grad is not None
                weight.grad.sub_((weight.grad * weight).sum(-1, keepdim=True) * weight)
            optimiser.step()
        self._normalise()
        return loss

    def _loss(self, x_ND: Tensor, active_NF: Tensor) -> float:
        again_ND = torch.addmm(self.bias_D, active_NF, self.decoder_DF.T)
        return float(torch.nn.functional.mse_loss(again_ND, x_ND) + self.settings.l1 * active_NF.sum() / len(x_ND))

    def _slopes(self, x_ND: Tensor, total_D: Tensor, active_NF: Tensor) -> None:
        """The gradient of the loss by every parameter, into its `grad`; `total_D` is the sum of all vectors.

        Few latents are active once the training has begun: only vectors and latents with any are touched, which changes nothing but time and rounding.
        """
        rows_N, used_F = active_NF.any(1).nonzero()[:, 0], active_NF.any(0).nonzero()[:, 0]
        x_RD, active_RF, decoder_DF = x_ND[rows_N], active_NF[rows_N][:, used_F], self.decoder_DF[:, used_F]
        scale = 2 / x_ND.numel()
        error_RD = torch.addmm(self.bias_D, active_RF, decoder_DF.T).sub_(x_RD).mul_(scale)
        idle_D = ((len(x_ND) - len(x_RD)) * self.bias_D - (total_D - x_RD.sum(0))) * scale
        slope_RF = (error_RD @ decoder_DF).add_(self.settings.l1 / len(x_ND)).masked_fill_(active_RF == 0, 0)
        slope_F = slope_RF.sum(0)
        by_encoder_FD = slope_RF.T @ x_RD - slope_F[:, None] * self.bias_D
        self.bias_F.grad = torch.zeros_like(self.bias_F).index_copy_(0, used_F, slope_F)
        self.bias_D.grad = error_RD.sum(0) + idle_D - slope_F @ self.encoder_FD[used_F]
        self.encoder_FD.grad = torch.zeros_like(self.encoder_FD).index_copy_(0, used_F, by_encoder_FD)
        self.decoder_DF.grad = torch.zeros_like(self.decoder_DF).index_copy_(1, used_F, error_RD.T @ active_RF)


def seen(codes: Codes) -> tuple[Bool[np.ndarray, "L H F"], Bool[np.ndarray, "L H F"]]:
    """Which codes each head has on some positive example, and on some negative one."""
    _, layers, heads = codes.code_NLH.shape
    tables = np.zeros((2, layers, heads, codes.settings.latents), bool)
    layer_11, head_11 = np.arange(layers)[None, :, None], np.arange(heads)[None, None, :]
    tables[0][layer_11, head_11, codes.code_NLH[codes.positive_N]] = True
    tables[1][layer_11, head_11, codes.code_NLH[~codes.positive_N]] = True
    return tables[0], tables[1]


def node_scores(codes: Codes, normalise: bool = False) -> Float[np.ndarray, "L H"]:
    """How many codes a head has on positive examples and never on negative ones; with `normalise`, as a share of all codes that it has.

    A count from 0 to the number of positive examples, or 0–1. Many heads tie. A head whose codes never repeat reaches the highest count
    without knowing anything of the task: see `code_controls.label_null`.
    """
    positive_LHF, negative_LHF = seen(codes)
    score_LH = (positive_LHF & ~negative_LHF).sum(-1).astype(np.float64)
    return score_LH / (positive_LHF | negative_LHF).sum(-1) if normalise else score_LH


def probabilities(score_LH: Float[np.ndarray, "L H"], softmax: str = "all") -> Float[np.ndarray, "L H"]:
    """The softmax of scores, which the paper puts a threshold to (about 1e-11 for IOI, 3e-10 for Greater-than there). `softmax` is one of `SOFTMAX`.

    0–1. Heads with at least the threshold make the circuit. Raises `InputError` for an unknown kind.
    """
    if softmax not in SOFTMAX:
        raise unknown("softmax", softmax, SOFTMAX)
    axis = None if softmax == "all" else 0
    raised_LH = np.exp(score_LH - score_LH.max(axis=axis, keepdims=True))
    return raised_LH / raised_LH.sum(axis=axis, keepdims=True)
