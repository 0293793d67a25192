"""What does a head write when it looks at a token? Token to token through one head, from weights alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import unknown
from workbench.heads import Head
from workbench.weights import HeadWeights, Weights

SOURCES = ("mlp0", "embedding", "effective")
"""What stands for a token in front of a head: MLP0(W_E); W_E; or both together, the effective embedding W_E + MLP0(W_E)."""


@dataclass(frozen=True)
class Norms:
    """Which norms the circuit has: `mlp` in front of MLP0 (the whole norm); `head` in front of the head, and `final` in front of the unembedding.

    The latter two are their linear parts (gain, centring where the norm centres): their length divides all logits of a token alike, so that no argmax
    depends on it. All are on by default, as in the model; none of them is `RAW`, as in a re-implementation. The papers do not say which they took.
    """

    mlp: bool = True
    head: bool = True
    final: bool = True

    def describe(self) -> str:
        """In words."""
        return ", ".join(f"{name} {'on' if getattr(self, name) else 'off'}" for name in ("mlp", "head", "final"))


RAW = Norms(False, False, False)
"""No norm at all: raw embeddings into MLP0, its output into the head, the head's into the unembedding."""


def sources(heads: HeadWeights, ids_T: Int[Tensor, " T"], source: str = "mlp0", norms: Norms | None = None) -> Float[Tensor, "T D"]:
    """What stands for each token in front of a head: one of `SOURCES`. The first block's attention and positions are left out. Raises `InputError`."""
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    x_TD = heads.embedded(ids_T)
    if source == "embedding":
        return x_TD
    through_TD = heads.mlp0(x_TD, (norms or Norms()).mlp)
    return through_TD if source == "mlp0" else x_TD + through_TD


def readout(heads: HeadWeights, ids_C: Int[Tensor, " C"] | None = None, norms: Norms | None = None) -> Float[Tensor, "D C"]:
    """From the residual stream to the logits of these tokens (all by default), less each logit's mean over the vocabulary."""
    columns_DC = heads.unembedding(ids_C)
    return heads.final_norm() @ columns_DC if (norms or Norms()).final else columns_DC


def circuits(weights: Weights, x_TD: Float[Tensor, "T D"], readout_DC: Float[Tensor, "D C"], norms: Norms | None = None) -> Iterator[Float[Tensor, "H T C"]]:
    """Layer by layer, the logits [H, T, C] that each head adds when it looks wholly at a vector: x · W_V · W_O · readout.

    Logits carry the scale of `x`, as no length is divided by. Biases are left out: they are the same for every token. A gain behind attention (Gemma) is in.
    """
    for layer, (v_HDE, o_HED) in enumerate(weights.layers):
        read_TD = x_TD @ weights.heads.input_norm(layer) if (norms or Norms()).head else x_TD
        post_DD = weights.heads.attention_post_norm(layer)
        columns_DC = readout_DC if post_DD is None else post_DD @ readout_DC
        yield (read_TD @ v_HDE) @ (o_HED @ columns_DC)


def of_head(weights: Weights, head: Head, x_TD: Float[Tensor, "T D"], readout_DC: Float[Tensor, "D C"], norms: Norms | None = None) -> Float[Tensor, "T C"]:
    """The same [T, C] for one head."""
    read_TD = x_TD @ weights.heads.input_norm(head.layer) if (norms or Norms()).head else x_TD
    post_DD = weights.heads.attention_post_norm(head.layer)
    factors = [read_TD, weights.heads.v(head), weights.heads.o(head), *([] if post_DD is None else [post_DD]), readout_DC]
    return torch.linalg.multi_dot(factors)  # in the order that costs least


def on(weights: Weights, ids: Any) -> Int[Tensor, " T"]:
    """Token ids as a tensor where the weights are."""
    return torch.as_tensor(ids, dtype=torch.long, device=weights.heads.device)
