"""What does one head do with a text of one's own? Where it looks, what it writes for the tokens there, and what the model predicts without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.attention import Tap, tapped
from workbench.captures import capture
from workbench.edits.ablate import Ablate, Reference
from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import HeadOutput, Pattern, Received
from workbench.recipes import text_pieces
from workbench.token_circuits import of_head, on, readout, sources
from workbench.weights import Weights

MOST_TOKENS = 512
"""The longest text, in tokens, that is shown token by token; `mapping` shows longer ones."""

PIECES = 8
"""How many pieces of other text stand behind mean and resample ablation."""

WAY = "torch"
"""The implementation that predicts: it takes every edit, and short texts are fast in it."""

SHOWN = 10
"""How many next tokens a comparison shows of each variant."""


@dataclass(frozen=True, eq=False)
class Look:
    """One head on one text: its tokens as text, its attention from each to each, and what each receives (the mean over rows that see it); all 0–1."""

    head: Head
    tokens: tuple[str, ...]
    pattern_QK: Float[np.ndarray, "Q K"]
    received_K: Float[np.ndarray, " K"]
    provenance: Any


@dataclass(frozen=True, eq=False)
class Without:
    """What a model predicts with all heads and without some of them (`heads`), and without as many others (`controls`), ablated in one of `KINDS`.

    `following` has a row per next token that any variant thinks likely: `token`, and its probability `whole`, `without`, `control` (0–1) behind the text.
    `lost` has a row per token of the text but the last: `token`, which comes next, and its log-probability (nats) in the same three columns.
    """

    heads: tuple[Head, ...]
    controls: tuple[Head, ...]
    following: pd.DataFrame
    lost: pd.DataFrame


def look(model: HFModel, text: str, head: Head) -> Look:
    """Where one head looks on a text. Raises `InputError` for a head that is not there, and for a text without tokens or of more than `MOST_TOKENS`."""
    model.shape.check(head)
    prompts = text_prompts(model, text)
    seen = capture(model, prompts, [Pattern(), Received()], layers=[head.layer])
    pattern_QK, received_K = seen[Pattern()][0, 0, head.index], seen[Received()][0, 0, head.index]
    return Look(head, token_texts(model, prompts.ids_BT[0]), pattern_QK, received_K, seen.provenance)


def pairs(tokens: Sequence[str], **patterns_QK: Float[np.ndarray, "Q K"]) -> pd.DataFrame:
    """Patterns of attention on one text as a table, for each row and each key up to it: `row`, `row_token`, `key`, `key_token`, and each pattern (0–1)."""
    rows_P, keys_P = np.tril_indices(len(tokens))
    texts = np.array(tokens, object)
    shares = {name: pattern_QK[rows_P, keys_P] for name, pattern_QK in patterns_QK.items()}
    return pd.DataFrame({"row": rows_P, "row_token": texts[rows_P], "key": keys_P, "key_token": texts[keys_P], **shares})


def without(model: HFModel, text: str, heads: Sequence[Head], seed: int = 0, kind: str = "zero") -> Without:
    """Predict with all heads, without `heads`, and without as many others of the same layers, drawn from `seed`: the control.

    `kind` is one of `edits.ablate.KINDS`, at all rows; `mean` and `resample` take what heads write on `PIECES` pieces, as long as the text, of the language
    reference that every Python carries. Where a layer has too few others, the control takes those there are. Raises `InputError` as `look` does.
    """
    for head in heads:
        model.shape.check(head)
    prompts, controls = text_prompts(model, text), others(model, heads, seed)
    ids_T = torch.as_tensor(prompts.ids_BT[0].copy(), device=model.device)
    reference = None
    if kind in ("mean", "resample"):
        elsewhere, _ = text_pieces(model, PIECES, prompts.length, seed=seed)
        reference = Reference(capture(model, elsewhere, [HeadOutput()])[HeadOutput()])
    logprob_3TV = [_predicted(model, prompts, Ablate(tuple(some), kind, reference=reference, seed=seed)) for some in ((), heads, controls)]
    names = ("whole", "without", "control")
    following = following_table(model, {name: logprob_TV[-1] for name, logprob_TV in zip(names, logprob_3TV, strict=True)})
    index_T1 = ids_T[1:, None]
    lost = {name: logprob_TV[:-1].gather(1, index_T1)[:, 0].cpu().numpy() for name, logprob_TV in zip(names, logprob_3TV, strict=True)}
    return Without(
        tuple(heads),
        controls,
        following,
        pd.DataFrame({"token": token_texts(model, prompts.ids_BT[0][1:]), **lost}),
    )


def following_table(model: HFModel, logprobs: Mapping[str, Float[Tensor, " V"]]) -> pd.DataFrame:
    """What may come next by several predictions, log-probabilities over the vocabulary: `token`, and its probability (0–1) in a column for each of them.

    A row for each token that any of them has among its ten likeliest; the likeliest of the first on top.
    """
    likely = list(dict.fromkeys(int(token) for logprob_V in logprobs.values() for token in logprob_V.topk(min(SHOWN, len(logprob_V))).indices))
    shares = {name: [float(logprob_V[token].exp()) for token in likely] for name, logprob_V in logprobs.items()}
    return pd.DataFrame({"token": token_texts(model, likely), **shares}).sort_values(next(iter(logprobs)), ascending=False, ignore_index=True)


def writes(model: HFModel, text: str, head: Head, count: int = 8) -> pd.DataFrame:
    """What the head writes when it looks at each token of the text, from weights alone (its OV circuit): one row per distinct token, in their order.

    `token`; `raises` and `lowers`, the `count` tokens whose logits it changes most, strongest first; `itself`, the place of the token's own logit among all
    of the vocabulary, 1 the most raised. A token stands for itself by its effective embedding W_E + MLP0(W_E). Raises `InputError` as `look` does.
    """
    model.shape.check(head)
    ids = list(dict.fromkeys(text_prompts(model, text).ids_BT[0].tolist()))
    weights = Weights(model.weights, model.shape, tokenizer=model.tokenizer)
    with model.lock, torch.inference_mode():
        ids_T = on(weights, ids)
        logits_TV = of_head(weights, head, sources(model.weights, ids_T, "effective"), readout(model.weights))
        own_T1 = logits_TV.gather(1, ids_T[:, None])
        raised_TC, lowered_TC = (logits_TV.topk(count, largest=largest).indices.cpu().numpy() for largest in (True, False))
        place_T = (logits_TV > own_T1).sum(1).cpu().numpy() + 1
    raises, lowers = ([list(token_texts(model, row)) for row in found_TC] for found_TC in (raised_TC, lowered_TC))
    return pd.DataFrame({"token": token_texts(model, ids), "raises": raises, "lowers": lowers, "itself": place_T})


def text_prompts(model: HFModel, text: str) -> Prompts:
    """A text as one prompt. Raises `InputError` for a model without a tokenizer, and for a text without tokens or of more than `MOST_TOKENS`."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, so that it cannot read a text")
    if not text:
        raise InputError("there is no text; write one")
    prompts = Prompts.from_text(model, text)
    if prompts.length > (most := min(MOST_TOKENS, model.positions)):
        raise InputError(f"the text has {prompts.length} tokens; token by token at most {most} are shown. Shorten it, or draw it with `workbench map`")
    return prompts


def others(model: HFModel, heads: Sequence[Head], seed: int) -> tuple[Head, ...]:
    """As many heads of the same layers, none of them among `heads`, drawn from `seed`; where a layer has too few, those there are."""
    dice, taken = np.random.default_rng(seed), set(heads)
    found: list[Head] = []
    for layer in sorted({head.layer for head in heads}):
        free = [index for index in range(model.shape.n_heads) if Head(layer, index) not in taken]
        wanted = min(len(free), sum(head.layer == layer for head in heads))
        found += [Head(layer, int(index)) for index in sorted(dice.choice(free, wanted, replace=False))] if wanted else []
    return tuple(found)


def _predicted(model: HFModel, prompts: Prompts, edit: Ablate) -> Float[Tensor, "T V"]:
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    with torch.inference_mode(), tapped(model, Tap(prompts, (), [edit] if edit.heads else [], WAY)) as hf:
        return hf(ids_BT, use_cache=False).logits[0].float().log_softmax(-1)


def token_texts(model: HFModel, ids: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    """Tokens as text, one by one."""
    return tuple(model.tokenizer.decode([int(token)]) for token in ids)
