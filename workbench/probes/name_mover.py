"""Does the head write the name that it looks at?"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import Head
from workbench.probes import Probe
from workbench.sequences import names
from workbench.token_circuits import on, readout, sources
from workbench.weights import Weights

TOP = 5
SCREEN, BATCH = 512, 256
"""How many random tokens a name is compared with first, and how many names with the whole vocabulary at once."""


def score(weights: Weights) -> Float[np.ndarray, "N L H"]:
    """Name mover: the share of first names that the head, looking at them, writes among the five likeliest tokens of the vocabulary.

    0–1, one sample for each name that is one token, from weights alone. The copy score of Wang et al. 2022 (2211.00593, IOI): what stands
    at the name behind the first block goes through the norm in front of the head, W_V with its bias, W_O, the final norm and the unembedding;
    name movers of GPT-2 small have more than 0.95, its average head less than 0.2. Here the first block's attention and the position are left
    out (W_E + MLP0(W_E)), and the final norm's bias; ties count against the name. That a name mover also looks at the right name shows on
    prompts only. The control deals the names' embeddings to other names.
    """
    return written_first(weights, 1)


def written_first(weights: Weights, sign: int = 1) -> Float[np.ndarray, "N L H"]:
    """1 where a head writes a name among the top five, else 0; with `sign` −1 among the lowest five: the negative name movers."""
    ids_N = on(weights, names(weights.tokenizer).ids)
    if not len(ids_N):
        return np.zeros((0, weights.shape.n_layers, weights.shape.n_heads))
    order = torch.arange(len(ids_N)) if weights.shuffle is None else torch.randperm(len(ids_N), generator=torch.Generator().manual_seed(weights.shuffle))
    x_ND = sources(weights.heads, ids_N[order.to(ids_N.device)], "effective")
    readout_DV = sign * readout(weights.heads)
    layers = [_top(written_HND, readout_DV, ids_N) for written_HND in _written(weights, x_ND)]
    return torch.stack(layers).permute(2, 0, 1).cpu().numpy().astype(float)


def _written(weights: Weights, x_ND: Tensor) -> Iterator[Float[Tensor, "H N D"]]:
    """Layer by layer, what each head writes into the residual stream when it looks wholly at a vector."""
    for layer, (v_HDE, o_HED) in enumerate(weights.layers):
        bias_H1E = torch.stack([weights.heads.v_bias(Head(layer, index)) for index in range(weights.shape.n_heads)])[:, None]
        written_HND = (weights.heads.normed_input(layer, x_ND) @ v_HDE + bias_H1E) @ o_HED
        post_DD = weights.heads.attention_post_norm(layer)
        yield written_HND if post_DD is None else written_HND @ post_DD


def _top(written_HND: Float[Tensor, "H N D"], readout_DV: Float[Tensor, "D V"], ids_N: Int[Tensor, " N"]) -> Bool[Tensor, "H N"]:
    """Where fewer than five other tokens get at least the name's logit. What fails among some tokens is not compared with all."""
    few_S = torch.randperm(readout_DV.shape[1], generator=torch.Generator().manual_seed(0))[:SCREEN].to(ids_N.device)
    own_HN = torch.einsum("hnd,dn->hn", written_HND, readout_DV[:, ids_N])
    slack_HN = 1e-4 * own_HN.abs() + 1e-6  # the same sum in another order
    left = ((written_HND @ readout_DV[:, few_S] > (own_HN + slack_HN)[..., None]).sum(-1) < TOP).nonzero()
    hit_HN = torch.zeros_like(own_HN, dtype=torch.bool)
    for part in left.split(BATCH):
        logits_PV = written_HND[part[:, 0], part[:, 1]] @ readout_DV
        own_P1 = logits_PV.gather(1, ids_N[part[:, 1], None])
        hit_HN[part[:, 0], part[:, 1]] = (logits_PV >= own_P1).sum(1) <= TOP
    return hit_HN


def told(weights: Weights) -> Mapping[str, Any]:
    """What the evidence says: how many names are one token, and that there are none where that is so."""
    found = names(weights.tokenizer)
    return {"names": len(found.ids), "restricted": "" if len(found.ids) else "the tokenizer has no first name as one token"}


def ideal(size: int) -> tuple[Float[Tensor, "D E"], Float[Tensor, "E D"]]:
    """A pair W_V, W_O (each size × size) that writes back just what it reads."""
    return torch.eye(size), torch.eye(size)


PROBE = Probe(
    name="name_mover",
    score=score,
    ideal=ideal,
    citation="Wang et al. 2022 (2211.00593): copy score of names",
    null="control: embeddings shuffled among names",
    told=told,
)
