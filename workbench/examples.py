"""Where does a head write most? The places of a long text at which its output is largest, with what it looks at there."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from workbench.captures import Capture, capture
from workbench.heads import Head
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import Peak, Written
from workbench.recipes import text_pieces

AROUND = 8
"""Tokens of text that are shown before an example, and at least so many lie between two examples."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What all heads of a model did on pieces of a text: how long their writes were, and the key that each row attended to most.

    `text` names the text by the first 16 digits of its SHA-256.
    """

    ids_BT: Int[np.ndarray, "B T"]
    written_BLHT: Float[np.ndarray, "B L H T"]
    key_BLHT: Int[np.ndarray, "B L H T"]
    share_BLHT: Float[np.ndarray, "B L H T"]
    text: str


def observe(model: HFModel, *, pieces: int = 8, length: int = 256, path: Path | None = None, seed: int = 0) -> Observed:
    """Run all heads once over pieces of a text, drawn from `seed`: by default of the language reference that every Python carries.

    Raises `InputError` for a text that cannot be read or is too short for a piece, and without a tokenizer.
    """
    prompts, name = text_pieces(model, pieces, min(length, model.positions), path, seed)
    parts = [_seen(capture(model, Prompts(prompts.ids_BT[row][None]), [Written(), Peak()])) for row in range(pieces)]
    written, key, share = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Observed(prompts.ids_BT, written, key, share, name)


def strongest(model: HFModel, seen: Observed, head: Head, count: int = 8) -> pd.DataFrame:
    """The places where a head's write is longest, the longest first, no two within `AROUND` tokens of a piece; the first token of a piece is left out.

    `before` and `token`, the text there; `looks_at`, the token with most of its attention, `back`, how many tokens before it stands, and `share`, how much of
    the attention it has (0–1); `size`, the length of the write in front of biases and norms behind the attention, `times`, that over the head's median.
    Raises `InputError` for a head that is not there.
    """
    model.shape.check(head)
    written_BT = seen.written_BLHT[:, head.layer, head.index]
    middle, rows = float(np.median(written_BT[:, 1:])), []
    for piece, place in _apart(written_BT, count):
        key, ids_T = int(seen.key_BLHT[piece, head.layer, head.index, place]), seen.ids_BT[piece]
        rows.append(
            {
                "before": model.tokenizer.decode(ids_T[max(0, place - AROUND) : place]),
                "token": model.tokenizer.decode(ids_T[place : place + 1]),
                "looks_at": model.tokenizer.decode(ids_T[key : key + 1]),
                "back": place - key,
                "share": float(seen.share_BLHT[piece, head.layer, head.index, place]),
                "size": float(written_BT[piece, place]),
                "times": float(written_BT[piece, place]) / middle if middle else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _seen(found: Capture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found[Written()].update, found[Peak()].key, found[Peak()].prob


def _apart(written_BT: Float[np.ndarray, "B T"], count: int) -> list[tuple[int, int]]:
    """The largest places, none near a larger one of the same piece."""
    chosen: list[tuple[int, int]] = []
    for flat in np.argsort(-written_BT[:, 1:], axis=None, kind="stable"):
        piece, place = divmod(int(flat), written_BT.shape[1] - 1)
        if all(piece != other or abs(place + 1 - there) > AROUND for other, there in chosen):
            chosen.append((piece, place + 1))
        if len(chosen) == count:
            break
    return chosen
