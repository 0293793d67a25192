"""At which tokens does a head matter? Activation patching of every head at one position after another."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from workbench.circuits.patching import activation_patching
from workbench.circuits.tasks import TaskSet
from workbench.errors import InputError
from workbench.models import HFModel


@dataclass(frozen=True, eq=False)
class PositionMap:
    """Effects by position, patched less base, prompt by prompt; columns are KV groups for keys and values. `tokens` are those of the first prompt."""

    effect_NTLH: Float[np.ndarray, "N T L H"]
    tokens: tuple[str, ...]

    @property
    def mean_TLH(self) -> Float[np.ndarray, "T L H"]:
        """The mean effect."""
        return self.effect_NTLH.mean(0)


def by_position(
    model: HFModel, data: TaskSet, *, component: str = "z", ablation: str = "resample", direction: str = "noising", metric: str | None = None
) -> PositionMap:
    """The effect of replacing a component of each head at one position, for every position. Positions only compare in prompts of one form.

    Raises `InputError` for prompts of several lengths (take one of `data.pairs`, or one template), and as `activation_patching` does.
    """
    if len(data.pairs) != 1:
        lengths = sorted(pairs.length for pairs in data.pairs)
        raise InputError(f"positions compare in prompts of one length; these have {', '.join(map(str, lengths))} tokens: keep one of the lengths")
    pairs = data.pairs[0]
    found = [
        activation_patching(model, data, component=component, ablation=ablation, direction=direction, metric=metric, positions=[place]).effect_NLH
        for place in range(pairs.length)
    ]
    tokenizer, ids = model.tokenizer, pairs.clean_BT[0]
    tokens = tuple(str(token) for token in ids) if tokenizer is None else tuple(tokenizer.decode([int(token)]) for token in ids)
    return PositionMap(np.stack(found, axis=1), tokens)


def of_length(data: TaskSet, length: int) -> TaskSet:
    """The prompts of one length. Raises `InputError` if there are none, naming the lengths."""
    chosen = tuple(pairs for pairs in data.pairs if pairs.length == length)
    if not chosen:
        raise InputError(f"no prompts of {length} tokens; there are {', '.join(str(pairs.length) for pairs in data.pairs)}")
    return replace(data, pairs=chosen)
