"""Does adding a residue's direction move what the head writes? Vector arithmetic in front of a head, and its bias to later words."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import InputError
from workbench.heads import Head
from workbench.probes.successor import class_logits
from workbench.sequences import TokenClass, WordClass, tokens_of
from workbench.successor.features import RESIDUES, Dictionary, Representations, numbers_of
from workbench.successor.residues import LinearProbe, Modal
from workbench.token_circuits import Norms, of_head, on, readout, sources
from workbench.weights import Weights

SCALES = (0.5, 1.0, 2.0, 4.0)
"""The paper's scaling is not known; the table has all of these."""


def of_means(found: Representations) -> Float[np.ndarray, "10 D"]:
    """A direction for each residue [10, D]: the mean of its tokens, classes weighed alike in it, less the mean of all. 0 where no token has the residue."""
    centred_ND = found.x_ND - np.stack([found.x_ND[found.of([name])].mean(0) for name in found.name])
    rows = [centred_ND[found.residue == residue] for residue in range(RESIDUES)]
    return np.stack([row.mean(0) if len(row) else np.zeros(found.x_ND.shape[1]) for row in rows]).astype(np.float32)


def of_features(dictionary: Dictionary, modal: Modal, means_10D: Float[np.ndarray, "10 D"]) -> Float[np.ndarray, "10 D"]:
    """The direction of each residue's modal feature, as long as the difference of means is."""
    return _as_long(np.where(modal.feature[:, None] >= 0, dictionary.direction_FD[modal.feature], 0.0), means_10D)


def of_probe(probe: LinearProbe, means_10D: Float[np.ndarray, "10 D"]) -> Float[np.ndarray, "10 D"]:
    """The linear probe's direction of each residue, as long as the difference of means is."""
    return _as_long(probe.direction_RD, means_10D)


def at_random(means_10D: Float[np.ndarray, "10 D"], seed: int = 0) -> Float[np.ndarray, "10 D"]:
    """Random directions as long as the difference of means is: the control."""
    return _as_long(np.random.default_rng(seed).standard_normal(means_10D.shape), means_10D)


def _as_long(direction_RD: np.ndarray, means_10D: np.ndarray) -> np.ndarray:
    length_R1 = np.linalg.norm(direction_RD, axis=1, keepdims=True)
    return (direction_RD / np.maximum(length_R1, 1e-12) * np.linalg.norm(means_10D, axis=1, keepdims=True)).astype(np.float32)


def steer(
    weights: Weights, head: Head, words: WordClass | str, direction_10D: Float[np.ndarray, "10 D"], *, scale: float = 1.0, norms: Norms | None = None
) -> pd.DataFrame:
    """Move every token of a class to every other last digit within its decade, and see which word of the class the head then puts first.

    Adds scale · (f_j − f_i) to the MLP0 representation of a token whose number ends in i. Columns: `token`, `number`, `target` (the number that
    it is moved to; its successor has a token), `written` (the number that is put first), `success`: written is target + 1, round in a cyclic class. Both
    directions must be there. A row for each token and target; none where there is no target.
    """
    found = tokens_of(weights.tokenizer, words)
    number_T, follows = numbers_of(found), found.follows
    of_number = {int(number): item for number, item in zip(number_T, found.item, strict=True)}
    there = np.linalg.norm(direction_10D, axis=1) > 0
    moves = [
        (place, int(number), target)
        for place, number in enumerate(number_T)
        for target in range(number - number % RESIDUES, number - number % RESIDUES + RESIDUES)
        if target != number and target in of_number and follows[of_number[target]] >= 0 and there[number % RESIDUES] and there[target % RESIDUES]
    ]
    if not moves:
        return pd.DataFrame(columns=["token", "number", "target", "written", "success"])
    ids_T = on(weights, found.ids)
    x_TD, direction = sources(weights.heads, ids_T, "mlp0", norms), torch.as_tensor(direction_10D, device=ids_T.device)
    place_M, from_M, to_M = torch.tensor(moves, device=ids_T.device).unbind(1)
    x_MD = x_TD[place_M] + scale * (direction[to_M % RESIDUES] - direction[from_M % RESIDUES])
    best_M = of_head(weights, head, x_MD, readout(weights.heads, ids_T, norms), norms).argmax(1).cpu().numpy()
    wanted_M = follows[[of_number[target] for _, _, target in moves]]
    rows = [(found.texts[place], number, target, int(number_T[best])) for (place, number, target), best in zip(moves, best_M, strict=True)]
    return pd.DataFrame(rows, columns=["token", "number", "target", "written"]).assign(success=found.item[best_M] == wanted_M)


def success_table(
    weights: Weights,
    head: Head,
    classes: Sequence[WordClass | str],
    directions: dict[str, Float[np.ndarray, "10 D"]],
    scales: Sequence[float] = SCALES,
    norms: Norms | None = None,
) -> pd.DataFrame:
    """`steer` for each class, kind of direction and scale: moves tried, `success`, that of moves `up` and `down`, and `above`: misses that are too high.

    All shares 0–1, NaN where there is nothing to count. Months 53% and numbers 20–29 89% in the paper, none for days and letters.
    """
    rows = []
    for words in classes:
        name = words if isinstance(words, str) else words.name
        for kind, direction_10D in directions.items():
            for scale in scales:
                made = steer(weights, head, words, direction_10D, scale=scale, norms=norms)
                up, missed = made["target"] > made["number"], made[~made["success"].astype(bool)]
                parts = (made["success"], made["success"][up], made["success"][~up], missed["written"] > missed["target"] + 1)
                rows.append((name, kind, scale, len(made), *(float(part.mean()) if len(part) else float("nan") for part in parts)))
    return pd.DataFrame(rows, columns=["class", "direction", "scale", "moves", "success", "up", "down", "above"])


def greater_than(weights: Weights, words: TokenClass, norms: Norms | None = None) -> Float[np.ndarray, "L H"]:
    """Greater-than bias of every head: the mean logit of later words of the class less that of earlier ones, mean over tokens that have both.

    In standard deviations of a token's logits in the class. 0: none; positive: later words are raised. Raises `InputError` unless three words have tokens.
    """
    if len(words.present) < 3:
        raise InputError(f"earlier and later words take three words with tokens; {words.name} have {len(words.present)}")
    later_TC = torch.as_tensor(words.item[None, :] > words.item[:, None])
    earlier_TC = torch.as_tensor(words.item[None, :] < words.item[:, None])
    both_T = later_TC.any(1) & earlier_TC.any(1)
    layers = [_bias(logits_HTC.cpu(), later_TC, earlier_TC)[:, both_T].mean(1) for (logits_HTC,) in class_logits(weights, [words], norms=norms)]
    return torch.stack(layers).numpy().astype(float)


def _bias(logits_HTC: Tensor, later_TC: Tensor, earlier_TC: Tensor) -> Tensor:
    means = [(logits_HTC * mask).sum(2) / mask.sum(1).clamp(min=1) for mask in (later_TC, earlier_TC)]
    return (means[0] - means[1]) / logits_HTC.std(2).clamp(min=1e-12)
