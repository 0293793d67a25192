"""Which pairs of heads say something together on a task's prompts that they never say otherwise? The edge scores of the method of integer codes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from workbench.circuits.codes import Codes
from workbench.errors import InputError
from workbench.heads import Head


def pair_scores(codes: Codes, normalise: bool = False) -> Float[np.ndarray, "N N"]:
    """How many pairs of codes two heads have together on some positive example and on no negative one: U [N, N], N = L·H heads layer by layer.

    Symmetric, 0 on the diagonal; with `normalise`, divided by the number of pairs seen on positive and of those seen on negative examples (both counted,
    as released). It is a table of what occurs together: which of the two heads acts on the other it does not say.
    """
    flat_NH = codes.code_NLH.reshape(len(codes.code_NLH), -1)
    _, heads = flat_NH.shape
    name_NH = flat_NH + codes.settings.latents * np.arange(heads)
    known, column_NK = np.unique(name_NH, return_inverse=True)
    start_H = np.searchsorted(known, codes.settings.latents * np.arange(heads))
    says_NK = np.zeros((len(flat_NH), len(known)), np.float32)
    np.put_along_axis(says_NK, column_NK.reshape(name_NH.shape), 1, axis=1)
    on_positive_NK, on_negative_NK = says_NK[codes.positive_N], says_NK[~codes.positive_N]
    found_HH = np.zeros((3, heads, heads))
    for head, start in enumerate(start_H):
        own = slice(start, start_H[head + 1] if head + 1 < heads else len(known))
        positive_KK = on_positive_NK[:, own].T @ on_positive_NK > 0
        negative_KK = on_negative_NK[:, own].T @ on_negative_NK > 0
        for kind, table_KK in enumerate((positive_KK & ~negative_KK, positive_KK, negative_KK)):
            found_HH[kind, head] = np.add.reduceat(table_KK.sum(0), start_H)
    score_HH = found_HH[0] / (found_HH[1] + found_HH[2]) if normalise else found_HH[0]
    np.fill_diagonal(score_HH, 0)
    return score_HH


def endpoint_counts(codes: Codes, entries: int | None = None, normalise: bool = False) -> Float[np.ndarray, "L H"]:
    """The released "edge-level" score of heads: how often each is an end of the best pairs.

    All N² ordered pairs are sorted by `pair_scores`, ties in the order of their numbers; their ends a₁, b₁, a₂, b₂, … are written out, and each head counted
    among the first `entries` of them (⌊N²/2⌋ by default). It ranks heads, not edges; `edge_scores` ranks edges. Raises `InputError` unless
    1 ≤ entries ≤ 2 N².
    """
    _, layers, heads = codes.code_NLH.shape
    count = layers * heads
    taken = count**2 // 2 if entries is None else entries
    if not 1 <= taken <= 2 * count**2:
        raise InputError(f"of the {2 * count**2} ends of the pairs of {count} heads, {taken} cannot be counted")
    order = np.argsort(-pair_scores(codes, normalise).ravel(), kind="stable")[: taken // 2 + 1]
    ends = np.stack([order // count, order % count], axis=1).ravel()[:taken]
    return np.bincount(ends, minlength=count).reshape(layers, heads).astype(np.float64)


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Scores of edges [E] from a head to a head of a later layer: `sender_E` and `receiver_E` are numbers of heads, layer by layer."""

    sender_E: Int[np.ndarray, " E"]
    receiver_E: Int[np.ndarray, " E"]
    score_E: Float[np.ndarray, " E"]
    heads: int

    def pairs(self) -> list[tuple[Head, Head]]:
        """The edges as heads, in the order of the scores."""
        return [(Head(*divmod(int(a), self.heads)), Head(*divmod(int(b), self.heads))) for a, b in zip(self.sender_E, self.receiver_E, strict=True)]


def edge_scores(codes: Codes, normalise: bool = False) -> EdgeScores:
    """`pair_scores` as a ranking of edges, which the paper does not have: only pairs whose first head is in an earlier layer than the second."""
    _, layers, heads = codes.code_NLH.shape
    score_HH, layer_H = pair_scores(codes, normalise), np.repeat(np.arange(layers), heads)
    sender_E, receiver_E = np.nonzero(layer_H[:, None] < layer_H[None, :])
    return EdgeScores(sender_E, receiver_E, score_HH[sender_E, receiver_E], heads)
