"""Does the head lower the token that it looks at?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.heads import Head
from workbench.parameters import in_float32
from workbench.probes import Probe
from workbench.token_circuits import circuits, of_head, on, readout, sources
from workbench.weights import Weights

BOTTOM = 0.05
TOKENS, COLUMN = 300, 2048
"""How many tokens are tried, and among how many tokens of the vocabulary each is ranked."""

QUERIES = ("unembedding", "effective")


def score(weights: Weights) -> Float[np.ndarray, "N L H"]:
    """Copy suppression: the share of tokens whose own logit is among the lowest 5% of what the head's OV circuit writes for them.

    0–1, one sample for each of 300 random tokens, from weights alone. McDougall et al. 2023 (2310.04625): the diagonal of W_U·W_OV·W_EE in its column,
    with W_EE the effective embedding W_E + MLP0(LN_2(W_E)) and the gains of the norms folded in; the share within the bottom 5% of a column is their quick
    score for any head, 98.9% for GPT-2 small's L10H7. A column is 2,048 random tokens of the vocabulary, which puts an error of half a point on the 5%.
    Ties with the own logit count against it. It says nothing about where the head looks (`qk_match` does). The control deals embeddings to the wrong tokens.
    """
    tried_T, column_C = sample(weights)
    order_T = np.random.default_rng(weights.shuffle).permutation(len(tried_T)) if weights.shuffle is not None else np.arange(len(tried_T))
    x_TD, readout_DC = sources(weights.heads, on(weights, tried_T[order_T]), "effective"), readout(weights.heads, on(weights, column_C))
    layers = [low_share(logits_HTC) for logits_HTC in circuits(weights, x_TD, readout_DC)]
    return (torch.stack(layers, 1).permute(2, 1, 0) <= BOTTOM).cpu().numpy().astype(float)


def low_share(logits_HTC: Float[Tensor, "*H T C"]) -> Float[Tensor, "*H T"]:
    """The share of each column, 0–1, that lies at or below the token's own logit, which is on the diagonal; 1 where all are equal."""
    own_HT = logits_HTC.diagonal(dim1=-2, dim2=-1)
    return (logits_HTC <= own_HT[..., None]).sum(-1) / logits_HTC.shape[-1]


def sample(weights: Weights, tokens: int = TOKENS, column: int = COLUMN, seed: int = 0) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " C"]]:
    """Random ordinary tokens, and the tokens of the column that each is ranked in, themselves first. Always the same for one vocabulary and seed."""
    special = [] if weights.tokenizer is None else weights.tokenizer.all_special_ids
    pool = np.setdiff1d(np.arange(len(weights.heads.embedding())), special)
    order = np.random.default_rng(seed).permutation(pool)
    return order[:tokens], order[:column]


def bottom_ten(weights: Weights, head: Head, tokens: int = TOKENS) -> float:
    """The paper's OV test for one head: the share of tokens, 0–1, that are among the 10 lowest of their column over the whole vocabulary."""
    tried_T, _ = sample(weights, tokens)
    ids_T = on(weights, tried_T)
    logits_TV = of_head(weights, head, sources(weights.heads, ids_T, "effective"), readout(weights.heads))
    own_T1 = logits_TV.gather(1, ids_T[:, None])
    return float(((logits_TV <= own_T1).sum(1) <= 10).float().mean())


def qk_match(weights: Weights, head: Head, query: str = "unembedding", tokens: int = COLUMN) -> float:
    """The paper's QK test for one head: the share of tokens, 0–1, whose prediction asks for their own embedding more than for any other.

    Queries are columns of W_U, the direction in which a token is predicted, or with `effective` embeddings on both sides (the paper's control: a
    plain same-token head). Both sides have norm √d in front of the norm's gain; rotation by position and the biases of q and k are left out, norms of
    q and k are in. Raises `InputError` for another kind of query.
    """
    if query not in QUERIES:
        raise InputError(f"queries are {' or '.join(QUERIES)}, not {query!r}")
    ids_T = on(weights, sample(weights, tokens)[0])
    embedded_TD = sources(weights.heads, ids_T, "effective")
    asked_TD = weights.heads.unembedding(ids_T).T if query == "unembedding" else embedded_TD
    norm_DD, attention = weights.heads.input_norm(head.layer), weights.heads.attentions[head.layer]
    sides = []
    for name, x_TD, w_DE in (("q_norm", asked_TD, weights.heads.q(head)), ("k_norm", embedded_TD, weights.heads.k(head))):
        side_TE = torch.nn.functional.normalize(x_TD, dim=-1) * x_TD.shape[-1] ** 0.5 @ norm_DD @ w_DE
        sides.append(in_float32(getattr(attention, name), side_TE) if hasattr(attention, name) else side_TE)
    score_TT = sides[0] @ sides[1].T
    return float((score_TT.argmax(1).cpu() == torch.arange(len(ids_T))).float().mean())


def told(weights: Weights) -> Mapping[str, Any]:
    """What the evidence says: how many tokens were tried, and among how many each was ranked."""
    tried_T, column_C = sample(weights)
    return {"tokens": len(tried_T), "ranked_among": len(column_C)}


def ideal(size: int) -> tuple[Float[Tensor, "D E"], Float[Tensor, "E D"]]:
    """A pair W_V, W_O (each size × size) that takes away just what it reads."""
    return torch.eye(size), -torch.eye(size)


PROBE = Probe(
    name="copy_suppression",
    score=score,
    ideal=ideal,
    citation="McDougall et al. 2023 (2310.04625): quick OV score",
    null="control: embeddings shuffled among tokens",
    told=told,
)
