"""Is a representation a part for the place and a part for the class? Both learnt from other tokens, put together, and read by a head."""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from workbench.heads import Head
from workbench.sequences import tokens_of
from workbench.successor.features import Representations, numbers_of
from workbench.token_circuits import Norms, of_head, on, readout
from workbench.weights import Weights


def put_together(found: Representations, held: Bool[np.ndarray, " N"]) -> Float[np.ndarray, "N D"]:
    """x ≈ part(number) + part(class), fitted without the held-out tokens (least squares of the smallest length), for all tokens [N, D].

    Additive parts stand for the paper's learned linear maps: a reconstruction. The part of a number that only held-out tokens have is 0.
    """
    number, kind = (np.unique(values, return_inverse=True)[1] for values in (found.number, np.array(found.name)))
    design_NP = np.concatenate([np.eye(number.max() + 1)[number], np.eye(kind.max() + 1)[kind]], axis=1)
    part_PD = np.linalg.lstsq(design_NP[~held], found.x_ND[~held].astype(float), rcond=None)[0]
    return (design_NP @ part_PD).astype(np.float32)


def held_out_pairs(weights: Weights, head: Head, found: Representations, norms: Norms | None = None) -> pd.DataFrame:
    """Put every pair of number and class together from the other tokens, and see what the head writes: one row per class of `CLASSES` among them.

    Pairs count whose number occurs in another class and that have a successor. Columns: `pairs` (tokens), `cosine` of the vector with the true one, −1 to 1;
    `real` and `rebuilt`, the share of tokens for which the head writes the successor within the class (0–1), from the true and from the rebuilt vector. The
    head decodes all held-out pairs in the paper. Raises `InputError` for a class that is none of `CLASSES`.
    """
    rows = []
    for name in dict.fromkeys(found.name):
        words, inside = tokens_of(weights.tokenizer, name), np.flatnonzero(found.of([name]))
        ids_T, number_T, follows = on(weights, words.ids), numbers_of(words), words.follows
        item_of, others = dict(zip(number_T.tolist(), words.item.tolist(), strict=True)), set(found.number[~found.of([name])].tolist())
        pairs = [int(n) for n in np.unique(found.number[inside]) if n in others and n in item_of and follows[item_of[int(n)]] >= 0]
        kept, made = [], []
        for number in pairs:
            held = found.of([name]) & (found.number == number)
            kept += np.flatnonzero(held).tolist()
            made.append(put_together(found, held)[held])
        if not kept:
            continue
        real_MD, made_MD, wanted_M = found.x_ND[kept], np.concatenate(made), follows[[item_of[int(found.number[place])] for place in kept]]
        length_M = np.linalg.norm(real_MD, axis=1) * np.linalg.norm(made_MD, axis=1)
        right = []
        for x_MD in (real_MD, made_MD):
            logits_MC = of_head(weights, head, torch.as_tensor(x_MD, device=ids_T.device), readout(weights.heads, ids_T, norms), norms)
            right.append(float((words.item[logits_MC.argmax(1).cpu().numpy()] == wanted_M).mean()))
        rows.append((name, len(kept), float(((real_MD * made_MD).sum(1) / np.maximum(length_M, 1e-12)).mean()), *right))
    return pd.DataFrame(rows, columns=["class", "pairs", "cosine", "real", "rebuilt"])
