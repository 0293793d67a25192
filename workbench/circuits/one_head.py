"""What does one head match, by its weights, and what does it add to the logits of a text?"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.circuits.anatomy import Anatomy, taken_apart
from workbench.circuits.writes import head_writes, scale
from workbench.heads import Head
from workbench.looking import text_prompts, token_texts
from workbench.models import HFModel
from workbench.token_circuits import sources

AT_ONCE = 4096
"""Tokens of the vocabulary that are taken as keys at once."""


def matches(model: HFModel, text: str, head: Head, count: int = 8) -> pd.DataFrame:
    """Which keys of the whole vocabulary the head's query scores highest, for each distinct token of a text, from weights alone (its QK circuit).

    `token`; `seeks` and `avoids`, the `count` tokens with the highest and the lowest scores, strongest first; `itself`, the place of the token's own score,
    1 the highest; `spread`, the standard deviation of the scores over the vocabulary (logits of attention): near 0, the head tells no keys apart by what they
    are. A token stands for itself by its effective embedding W_E + MLP0(W_E), as query and as key; both stand at one place, so that what positions add
    (rotation, learned or not) is left out. Raises `InputError` as `looking.look` does.
    """
    model.shape.check(head)
    ids = list(dict.fromkeys(text_prompts(model, text).ids_BT[0].tolist()))
    with model.lock, torch.inference_mode(), taken_apart(model, 1) as anatomy:
        score_TV = _scores(anatomy, head, ids)
    own_T1 = score_TV.gather(1, torch.tensor(ids, device=score_TV.device)[:, None])
    ends = [score_TV.topk(count, largest=largest).indices.cpu().numpy() for largest in (True, False)]
    seeks, avoids = ([list(token_texts(model, row)) for row in found_TC] for found_TC in ends)
    place_T, spread_T = (score_TV > own_T1).sum(1).cpu().numpy() + 1, score_TV.std(1).cpu().numpy()
    return pd.DataFrame({"token": token_texts(model, ids), "seeks": seeks, "avoids": avoids, "itself": place_T, "spread": spread_T})


def _scores(anatomy: Anatomy, head: Head, ids: list[int]) -> Float[Tensor, "T V"]:
    """Scores of tokens as queries against the whole vocabulary as keys, as the layer makes them at its first position."""
    model, group = anatomy.model, anatomy.shape.kv_head(head)
    query = _parts(anatomy, head.layer, torch.tensor(ids, device=model.device))[0][:, head.index, 0]
    keys = [_parts(anatomy, head.layer, part)[1][:, group, 0] for part in torch.arange(len(model.weights.embedding()), device=model.device).split(AT_ONCE)]
    return anatomy.scored(head.layer, query @ torch.cat(keys).T)


def _parts(anatomy: Anatomy, layer: int, ids_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x_TD = sources(anatomy.model.weights, ids_T, "effective").to(anatomy.model.dtype)
    return anatomy.qkv(layer, x_TD[:, None])


def contributes(model: HFModel, text: str, head: Head, count: int = 5) -> pd.DataFrame:
    """What the head's own write adds to the logits at each token of a text: direct logit attribution, in one pass, nothing replaced.

    `token`; `next`, the token of the text that follows (none behind the last); `logit`, what the head adds to its logit, less the mean over the vocabulary, NaN
    behind the last; `raises`, the `count` tokens whose logits it raises most there, and `by`, the largest of these. The final norm's scale is held as it was.
    Logits. Raises `InputError` as `looking.look` does.
    """
    model.shape.check(head)
    ids_BT = text_prompts(model, text).ids_BT
    with model.lock, torch.inference_mode(), taken_apart(model, ids_BT.shape[1]) as anatomy:
        trace = anatomy.trace(torch.tensor(ids_BT, device=model.device))
        written_TD = head_writes(anatomy, head.layer, trace.z[head.layer])[0, head.index].float()
        linear_DD, norm = model.weights.final_norm(), model.weights.final_norm_module
        logit_TV = (written_TD @ linear_DD * scale(linear_DD, norm, trace.x[-1][0])) @ model.weights.unembedding().float()
    following = ids_BT[0, 1:]
    own = logit_TV[:-1].gather(1, torch.tensor(following, device=logit_TV.device)[:, None])[:, 0].cpu().numpy()
    best = logit_TV.topk(count)
    return pd.DataFrame(
        {
            "token": token_texts(model, ids_BT[0]),
            "next": [*token_texts(model, following), ""],
            "logit": np.append(own, np.nan),
            "raises": [list(token_texts(model, row)) for row in best.indices.cpu().numpy()],
            "by": best.values[:, 0].cpu().numpy(),
        }
    )
