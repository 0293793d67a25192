"""What happens if attention sinks get less? `Calibrate`: ACT (Yu et al. 2024, 2406.15765), with sinks found afresh per input, head and layer.

Sinks S keep β of what they have; the rest gets what they lose, in proportion: A'[i, s] = β A[i, s], A'[i, j] = A[i, j] (1 + m_i / R_i), where
m_i = (1 − β) Σ_S A[i, s] and R_i = Σ_{j∉S} A[i, j]. The first real token is among the recipients and never in S. Rows still sum to 1; a row all of whose
attention lies on sinks has no recipient and stays as it is.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from workbench.edits._calibrating import Calibrating
from workbench.edits._edit import BaseEdit, Scene, check_heads, heads_in, named, parsed
from workbench.edits.sinks import SinkRule
from workbench.errors import InputError, unknown
from workbench.heads import Head, Shape
from workbench.models import HFModel
from workbench.ops.changed import Step
from workbench.prompts import Prompts

FIND = {
    "prompt": "rows of the prompt by all of its rows (the paper); rows that are decoded by all rows up to their own",
    "running": "every row by the rows up to its own: the same in one pass, in chunks and token by token",
}
"""From which rows the sinks that hold for a row are found."""


@dataclass(frozen=True)
class Calibrate(BaseEdit):
    """Scale the attention on sinks by `beta` (0–1; ACT's 0.4) and give what they lose to the other keys, in proportion to what those have.

    `heads` are the heads calibrated; None is all of them (ACT's control, which should hurt). Sinks are found per prompt, layer and head by `rule`
    (`SinkRule`, the paper's α/N if none is given), from the rows that `find` names (`FIND`); or they are the `tokens` of fixed ids, such as punctuation or
    BOS (ACT's static variant), wherever they stand behind the first real token. A head in which no sink is found is not changed; the capture says how many
    were found. Raises `InputError` for a beta outside 0–1, an unknown `find`, and for both `rule` and `tokens`.

    That BOS is kept, N per prompt without its padding, and running sums in decoding depart from ACT's released code, which drops the first sink that it
    finds, and looks at one row in decoding. α/N with α = 5 and β = 0.4 are known from secondary sources only.
    """

    heads: tuple[Head, ...] | None = None
    beta: float = 0.4
    rule: SinkRule | None = None
    tokens: tuple[int, ...] | None = None
    find: str = "prompt"

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise InputError(f"beta is the share that sinks keep, 0 to 1; got {self.beta}")
        if self.find not in FIND:
            raise unknown("way to find sinks", self.find, FIND)
        if self.tokens is not None and self.rule is not None:
            raise InputError("sinks are found by a rule, or are the given tokens; not both")
        object.__setattr__(self, "heads", parsed(self.heads))
        if self.tokens is None:
            object.__setattr__(self, "rule", self.rule or SinkRule())
        else:
            object.__setattr__(self, "tokens", tuple(sorted(set(map(int, self.tokens)))))

    def check(self, shape: Shape) -> None:
        """Raise `InputError` unless a model of this shape has the heads."""
        check_heads(self.heads, shape)

    def check_model(self, model: HFModel, prompts: Prompts, chunk: int | None) -> None:
        """Raise `InputError` where the prompt's rows come in chunks, none of which shows all of them."""
        if self.rule is not None and self.find == "prompt" and chunk is not None and chunk < min(prompts.length, prompts.decode_from):
            raise InputError("sinks of a prompt are found from all of its rows, which no chunk has; calibrate with find='running', or without chunks")

    def describe(self) -> dict[str, object]:
        """The edit as plain data, for provenance."""
        how: dict[str, object] = {"tokens": list(self.tokens or ())}
        if self.rule is not None:
            how = {"rule": self.rule.kind, "threshold": self.rule.threshold, "find": self.find}
        return {"edit": "calibrate", "heads": named(self.heads), "beta": self.beta, **how}

    def looking(self, layer: int, shape: Shape) -> tuple[int, ...]:
        """The calibrated query heads of a layer."""
        return heads_in(self.heads, layer, shape)

    def said(self, found_BLH: Int[np.ndarray, "B L H"]) -> dict[str, object]:
        """How many sinks were found per prompt and layer, in all calibrated heads; where there are none, that nothing was changed."""
        per_BL = found_BLH.sum(-1)
        none = [prompt for prompt, count in enumerate(per_BL.sum(-1).tolist()) if not count]
        remark = {"remark": f"no sink found in the prompts {none}, which are unchanged"} if none else {}
        return {"sinks": per_BL.tolist(), "heads with sinks": int((found_BLH.sum(0) > 0).sum()), **remark}

    def opened(self, scene: Scene) -> Step:
        """The step of one layer and pass."""
        mine = set(self.looking(scene.layer, scene.model.shape))
        return Calibrating(self, scene, [place for place, head in enumerate(scene.heads) if head in mine])
