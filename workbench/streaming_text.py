"""What does a model predict along a text far longer than its cache? The loss of every token, chunk by chunk, under edits or with a cache recomputed.

Four ways, as in StreamingLLM's table: dense, a window, sinks and a window (`Stream`), and a window whose keys are computed anew for each row.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from workbench.attention import Tap, tapped
from workbench.edits import Edit, Memory
from workbench.errors import InputError
from workbench.implementations import choose
from workbench.models import HFModel
from workbench.passes import check
from workbench.prompts import Prompts


def losses(
    model: HFModel, ids_T: Int[np.ndarray, " T"], edits: Sequence[Edit] = (), *, chunk: int = 512, implementation: str = "auto"
) -> Float[np.ndarray, " U"]:
    """The loss (nats) of every token but the first, given those before it as the edits show them: [T − 1].

    The text goes through the model in chunks: activations and logits take O(chunk) memory, keys and values O(T), as the edit hides them but drops none.
    Raises `InputError` for a text of one token, or edits that this model or chunks do not allow.
    """
    if len(ids_T) < 2 or chunk < 1:
        raise InputError(f"a text of two tokens or more has a loss, in chunks of one or more; got {len(ids_T)} tokens and chunks of {chunk}")
    prompts = Prompts(np.asarray(ids_T)[None])
    way = choose(implementation, model.device, min(chunk, len(ids_T)), model.shape.d_head)
    check(model, prompts, prompts.length, (), edits, chunk)
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    cache, memory, parts = DynamicCache(), Memory(), []
    with torch.inference_mode():
        for begin in range(0, len(ids_T), chunk):
            end = min(begin + chunk, len(ids_T))
            with tapped(model, Tap(prompts, (), edits, way, begin, memory=memory)) as hf:
                logit_TV = hf(ids_BT[:, begin:end], past_key_values=cache, use_cache=True).logits[0]
            parts.append(_losses(logit_TV, ids_BT[0, begin + 1 : end + 1]))
    return torch.cat(parts).numpy()


def recomputed(model: HFModel, ids_T: Int[np.ndarray, " T"], size: int, row_N: Int[np.ndarray, " N"], *, batch: int = 8) -> Float[np.ndarray, " N"]:
    """The loss (nats) of the token behind each of some rows, given the last `size` tokens up to the row and no others, as a text of their own.

    That is a sliding window with re-computation, the quality that a cache of that size may reach; its cost is a pass over `size` tokens for each row.
    Raises `InputError` for rows that have no token behind them or fewer than `size` tokens up to them.
    """
    if len(row_N) and (row_N.min() < size - 1 or row_N.max() > len(ids_T) - 2):
        raise InputError(f"rows lie between {size - 1} and {len(ids_T) - 2}, got {row_N.min()} to {row_N.max()}")
    parts = []
    with torch.inference_mode(), model.attention("sdpa") as hf:
        for some_N in (row_N[begin : begin + batch] for begin in range(0, len(row_N), batch)):
            ids_BT = torch.tensor(np.stack([ids_T[row - size + 1 : row + 1] for row in some_N]), device=model.device)
            logit_BV = hf(ids_BT, use_cache=False, logits_to_keep=1).logits[:, -1]
            parts.append(_losses(logit_BV, torch.tensor(ids_T[some_N + 1], device=model.device)))
    return torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)


def _losses(logit_TV: Tensor, next_U: Tensor) -> Tensor:
    """Cross-entropy of the tokens that follow, for as many rows as have one, on the CPU."""
    return torch.nn.functional.cross_entropy(logit_TV[: len(next_U)].float(), next_U, reduction="none").cpu()
