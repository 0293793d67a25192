"""Where is a pass, and where does its padding end? What the layers of a cache share that compute on one device."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import InputError


@dataclass(eq=False)
class Clock:
    """The position of the newest token, on the device and here, and the padding; `seen` is the first position of the pass whose mask was looked at last."""

    position: Tensor | None = None
    at: int = -1
    start_B: Tensor | None = None
    seen: int | None = None

    def set(self, position: int, device: torch.device) -> Tensor:
        """Tell the position to the device, without waiting for it; once per pass, so that a recorded step follows the tensor and not this number."""
        if self.position is None:
            self.position, self.at = torch.zeros((), dtype=torch.int32, device=device), 0
        if self.at != position:
            self.position.fill_(position)
            self.at = position
        return self.position

    def padding(self, mask: Tensor | None, batch: int, device: torch.device, first: int) -> Tensor:
        """The position [B] of each prompt's first token, from transformers' mask [B, K] of the pass whose first position is `first`, looked at once.

        Raises `InputError` unless padding is on the left.
        """
        if mask is None:
            if self.start_B is None or self.start_B.shape[0] != batch or self.seen is not None:
                self.start_B, self.seen = torch.zeros(batch, dtype=torch.int32, device=device), None
        elif self.seen != first:
            if mask.dim() != 2:
                raise InputError("policies take a mask of tokens [batch, keys]; a mask of pairs is not supported")
            real_BK = mask.bool()
            start_B = real_BK.shape[1] - real_BK.sum(-1)
            if not bool((real_BK == (torch.arange(real_BK.shape[1], device=device) >= start_B[:, None])).all()):
                raise InputError("policies need padding on the left (tokenizer.padding_side = 'left'), and no holes in the attention mask")
            self.start_B, self.seen = start_B.int(), first
        assert self.start_B is not None
        return self.start_B


Clocks = defaultdict[torch.device, Clock]
"""The clocks of a cache: one for each device that layers compute on."""
