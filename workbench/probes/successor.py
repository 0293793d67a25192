"""Does the head write the successor of the token that it looks at?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.probes import Probe
from workbench.sequences import SCORED, TokenClass, tokens_of
from workbench.token_circuits import Norms, circuits, on, readout, sources
from workbench.weights import Weights

SHUFFLES = 20
"""How many orders of the words the null is the mean of."""


def score(weights: Weights) -> Float[np.ndarray, "N L H"]:
    """Successor: the share of tokens (numbers, days, months, letters, …) whose successor W_U·OV·MLP0(W_E) puts first in its class.

    0–1, one sample for each token that has a successor, from weights alone. Gould et al. 2023 (2312.09230): the head's OV circuit gets the
    token's embedding through the first MLP, and the argmax is taken over the tokens of the same class. All variants (case, space) of the
    successor are right; ties count, but not a tie of the whole class. Classes hold what is one token for the model's tokenizer; the evidence
    says which were restricted. A class counts by its tokens. Reconstruction: the paper's norms are not known; here the whole norm stands in
    front of the first MLP, and the gains of the norms in front of the head and of the unembedding are in (`token_circuits.Norms` has the
    others; `workbench successor` shows each class, the whole vocabulary and the circuit without MLP0). The first block's attention, positions
    and biases are left out. The control shuffles which word follows which. Roman numerals are held out.
    """
    return successes(weights, scored(weights), shuffle=weights.shuffle)


def scored(weights: Weights) -> list[TokenClass]:
    """The classes that make the score, those without a pair of tokens left out. Raises `InputError` without a tokenizer."""
    found = [tokens_of(weights.tokenizer, name) for name in SCORED]
    return [one for one in found if one.counted.any()]


def successes(
    weights: Weights, classes: Sequence[TokenClass], *, source: str = "mlp0", norms: Norms | None = None, shuffle: int | None = None
) -> Float[np.ndarray, "N L H"]:
    """For each token that has a successor, class by class: 1 where the head puts the successor first in the class, else 0.

    With a `shuffle` seed: the share, 0–1, of `SHUFFLES` random orders of the class in which it puts what then follows first.
    """
    if not classes:
        return np.zeros((0, weights.shape.n_layers, weights.shape.n_heads))
    follows = [words.follows if shuffle is None else shuffled(words, shuffle) for words in classes]
    layers = []
    for logits in class_logits(weights, classes, source, norms):
        hits = [by_item(part_HTC, words, after)[words.counted] for part_HTC, words, after in zip(logits, classes, follows, strict=True)]
        layers.append(np.concatenate(hits))
    return np.stack(layers, axis=1).astype(float)


def class_logits(weights: Weights, classes: Sequence[TokenClass], source: str = "mlp0", norms: Norms | None = None) -> Iterator[list[Float[Tensor, "H T C"]]]:
    """Layer by layer and for each class, every head's logits from each token of the class to each token of it."""
    ids_T = on(weights, np.concatenate([words.ids for words in classes]))
    x_TD, readout_DC = sources(weights.heads, ids_T, source, norms), readout(weights.heads, ids_T, norms)
    ends = np.cumsum([len(words.ids) for words in classes])
    places = [slice(end - len(words.ids), end) for words, end in zip(classes, ends.tolist(), strict=True)]
    for logits_HTC in circuits(weights, x_TD, readout_DC, norms):
        yield [logits_HTC[:, place, place] for place in places]


def best_by_item(logits_HTC: Float[Tensor, "H T C"], words: TokenClass) -> Float[Tensor, "H T I"]:
    """The largest logit among the tokens of each word; −inf for a word without a token."""
    item_C = torch.as_tensor(words.item, device=logits_HTC.device)
    best_HTI = logits_HTC.new_full((*logits_HTC.shape[:2], len(words.words.members)), -torch.inf)
    return best_HTI.scatter_reduce(2, item_C.expand(*logits_HTC.shape[:2], -1), logits_HTC, "amax")


def by_item(logits_HTC: Float[Tensor, "H T C"], words: TokenClass, follows: np.ndarray) -> Float[np.ndarray, "T H"]:
    """The share of the orders `follows` [.., I] in which a token's largest logit is that of a token of the word that follows; 0 where all are equal."""
    best_HTI = best_by_item(logits_HTC, words)
    largest_HT, smallest_HT = logits_HTC.amax(2), logits_HTC.amin(2)
    wanted_ST = torch.as_tensor(np.atleast_2d(follows)[:, words.item], device=logits_HTC.device).clamp(min=0)
    index_HTS = wanted_ST.T.expand(len(best_HTI), -1, -1)
    hit_HT = (best_HTI.gather(2, index_HTS) >= largest_HT[..., None]).float().mean(2)
    return torch.where(largest_HT > smallest_HT, hit_HT, 0).T.cpu().numpy()


def shuffled(words: TokenClass, seed: int) -> np.ndarray:
    """Random orders [S, I] of the words that have a token: which word follows each, round in a circle."""
    rng = np.random.default_rng(seed)
    follows = np.zeros((SHUFFLES, len(words.words.members)), np.int64)
    for row in follows:
        order = rng.permutation(words.present)
        row[order] = np.roll(order, -1)
    return follows


def told(weights: Weights) -> Mapping[str, Any]:
    """What the evidence says: the classes with their tokens that count, what the tokenizer left of them, the norms, and the best head without MLP0."""
    every = [tokens_of(weights.tokenizer, name) for name in SCORED]
    bare_NLH = successes(weights, scored(weights), source="embedding")
    return {
        "classes": {one.name: int(one.counted.sum()) for one in every},
        "restricted": _sentence([one.restricted for one in every]),
        "norms": Norms().describe(),
        "best_without_mlp0": round(float(bare_NLH.mean(0).max()), 4) if len(bare_NLH) else None,
    }


def _sentence(parts: Sequence[str]) -> str:
    return "; ".join(part for part in parts if part)


def ideal(size: int) -> tuple[Float[Tensor, "D E"], Float[Tensor, "E D"]]:
    """A pair W_V, W_O (each size × size) that writes, for each of `size` tokens with a dimension of its own, the next in the circle."""
    return torch.eye(size), torch.eye(size).roll(1, dims=1)


PROBE = Probe(
    name="successor",
    score=score,
    ideal=ideal,
    citation="Gould et al. 2023 (2312.09230), norms reconstructed",
    null="control: successors shuffled within each class",
    told=told,
)
