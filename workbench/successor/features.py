"""Which features make a number's last digit? Dictionaries of MLP0 representations (sparse autoencoder, NMF), and a linear probe, compared."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from workbench.errors import InputError
from workbench.sequences import SCORED, TokenClass, WordClass, numbers, tokens_of
from workbench.token_circuits import Norms, on, sources
from workbench.weights import Weights

RESIDUES = 10
NUMERIC = numbers(0, 500)


@dataclass(frozen=True, eq=False)
class Representations:
    """MLP0 representations x [N, D] of tokens of ordered classes, and of each token its number [N] (ordinals: first = 1), class and text."""

    x_ND: Float[np.ndarray, "N D"]
    number: Int[np.ndarray, " N"]
    name: tuple[str, ...]
    texts: tuple[str, ...]
    restricted: str = ""

    @property
    def residue(self) -> Int[np.ndarray, " N"]:
        """The number mod 10."""
        return self.number % RESIDUES

    def of(self, names: Sequence[str]) -> Bool[np.ndarray, " N"]:
        """True at the tokens of these classes."""
        return np.isin(self.name, list(names))

    def only(self, chosen: Bool[np.ndarray, " N"]) -> "Representations":
        """Some of the tokens."""
        kept = np.flatnonzero(chosen)
        return Representations(self.x_ND[kept], self.number[kept], tuple(self.name[i] for i in kept), tuple(self.texts[i] for i in kept), self.restricted)


def represent(weights: Weights, classes: Sequence[WordClass | str] | None = None, norms: Norms | None = None) -> Representations:
    """MLP0(W_E) of the single tokens of these classes: by default numbers 0–500 (named "numbers") and the other classes that make the score.

    `restricted` says which the tokenizer splits. Raises `InputError` without a tokenizer, and if no token is left.
    """
    asked = classes if classes is not None else [NUMERIC, *(name for name in SCORED if name != "numbers")]
    found = [one for words in asked if len((one := tokens_of(weights.tokenizer, words)).ids)]
    if not found:
        raise InputError("none of these words is one token for this model's tokenizer")
    x_ND = torch.cat([sources(weights.heads, on(weights, one.ids), "mlp0", norms) for one in found]).cpu().numpy()
    names = tuple("numbers" if one.words is NUMERIC else one.name for one in found for _ in one.ids)
    said = "; ".join(one.restricted for one in found if one.restricted)
    return Representations(x_ND, np.concatenate([numbers_of(one) for one in found]), names, tuple(text for one in found for text in one.texts), said)


def numbers_of(words: TokenClass) -> Int[np.ndarray, " T"]:
    """The number that each token stands for: the number itself, or the place in its class, counted from 1."""
    members = words.words.members
    return np.array([int(members[item]) if members[item].isdecimal() else item + 1 for item in words.item], np.int64)


@dataclass(frozen=True)
class AutoencoderSettings:
    """How a sparse autoencoder is trained. Width and sparsity of the paper are not known: these are a reconstruction (512 latents, 10–30 active).

    The weight of the L1 term is moved while training until about `active` latents are active per token.
    """

    latents: int = 512
    active: float = 20.0
    steps: int = 800
    rate: float = 3e-3
    l1: float = 1e-3
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Features of representations: how active each is for each token [N, F], 0 or more, their directions [F, D] (length 1), and how they were made."""

    kind: str
    active_NF: Float[np.ndarray, "N F"]
    direction_FD: Float[np.ndarray, "F D"]
    record: dict[str, Any] = field(default_factory=dict)


def autoencoder(found: Representations, settings: AutoencoderSettings | None = None) -> Dictionary:
    """A sparse autoencoder: relu latents, directions of length 1, squared error and L1, Adam over all tokens at once.

    The record has the settings, the last L1 weight, how many latents are active per token, how many are never, and the explained variance on the tokens
    that were trained on and on a tenth that were not.
    """
    chosen = settings or AutoencoderSettings()
    rng = np.random.default_rng(chosen.seed)
    generator = torch.Generator().manual_seed(chosen.seed)
    x_ND, _ = _scaled(found.x_ND)
    order = rng.permutation(len(x_ND))
    held = order[: round(chosen.held_out * len(order))]
    trained_ND, size = x_ND[np.setdiff1d(order, held)], x_ND.shape[1]
    decoder_FD = torch.nn.functional.normalize(torch.randn(chosen.latents, size, generator=generator), dim=1)
    parameters = [decoder_FD.T.clone(), torch.zeros(chosen.latents), decoder_FD, torch.zeros(size)]
    for parameter in parameters:
        parameter.requires_grad_()
    optimiser, l1 = torch.optim.Adam(parameters, lr=chosen.rate), chosen.l1
    for step in range(chosen.steps):
        optimiser.zero_grad()
        active_NF, again_ND = _coded(trained_ND, parameters)
        loss = (again_ND - trained_ND).pow(2).sum(1).mean() + l1 * active_NF.sum(1).mean()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            parameters[2].copy_(torch.nn.functional.normalize(parameters[2], dim=1))
        if step % 4 == 3:
            l1 *= 1.05 if float((active_NF > 0).sum(1).float().mean()) > chosen.active else 1 / 1.05
    with torch.no_grad():
        active_NF, again_ND = _coded(x_ND, parameters)
        record = {
            **asdict(chosen),
            "last_l1": l1,
            "active_per_token": float((active_NF > 0).sum(1).float().mean()),
            "dead": int((active_NF <= 0).all(0).sum()),
            "explained": _explained(np.setdiff1d(order, held), x_ND, again_ND),
            "explained_held_out": _explained(held, x_ND, again_ND),
        }
        return Dictionary("sparse autoencoder", active_NF.numpy(), parameters[2].numpy().copy(), record)


def _coded(x_ND: torch.Tensor, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    encoder_DF, bias_F, decoder_FD, bias_D = parameters
    active_NF = torch.relu((x_ND - bias_D) @ encoder_DF + bias_F)
    return active_NF, active_NF @ decoder_FD + bias_D


def _scaled(x_ND: np.ndarray) -> tuple[torch.Tensor, float]:
    """Less the mean, in units in which the mean length is 1; and that unit."""
    centred_ND = torch.tensor(x_ND - x_ND.mean(0), dtype=torch.float32)
    unit = float(centred_ND.norm(dim=1).mean())
    return centred_ND / max(unit, 1e-12), unit


def _explained(rows: np.ndarray, x_ND: torch.Tensor, again_ND: torch.Tensor) -> float:
    """The share of the variance about the mean of all that is explained on some rows; NaN for none."""
    return float(1 - (x_ND[rows] - again_ND[rows]).pow(2).sum() / x_ND[rows].pow(2).sum()) if len(rows) else float("nan")


def nmf(found: Representations, features: int = 40, steps: int = 300, seed: int = 0) -> Dictionary:
    """Non-negative matrix factorisation in place of the autoencoder, by multiplicative updates (Lee and Seung 2001).

    Representations have signs, so the positive and the negative part of each dimension are factorised side by side: a reconstruction, as the paper's use of
    it is not known. Directions are the positive part less the negative one. The record has the settings and the explained variance.
    """
    x_ND, _ = _scaled(found.x_ND)
    split_NP = torch.cat([x_ND.relu(), (-x_ND).relu()], dim=1)
    generator = torch.Generator().manual_seed(seed)
    weight_NF, part_FP = (torch.rand(*shape, generator=generator) + 0.1 for shape in ((len(split_NP), features), (features, split_NP.shape[1])))
    for _ in range(steps):
        part_FP *= (weight_NF.T @ split_NP) / (weight_NF.T @ weight_NF @ part_FP + 1e-9)
        weight_NF *= (split_NP @ part_FP.T) / (weight_NF @ (part_FP @ part_FP.T) + 1e-9)
    positive_FD, negative_FD = part_FP.chunk(2, dim=1)
    direction_FD = positive_FD - negative_FD
    length_F = direction_FD.norm(dim=1).clamp(min=1e-12)
    explained = _explained(np.arange(len(x_ND)), x_ND, weight_NF @ direction_FD)
    record = {"features": features, "steps": steps, "seed": seed, "explained": explained}
    return Dictionary("NMF", (weight_NF * length_F).numpy(), (direction_FD / length_F[:, None]).numpy(), record)
