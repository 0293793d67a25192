"""What does a model see through a short cache? `Stream`: StreamingLLM (Xiao et al. 2023, 2309.17453), for all rows of a text in one pass.

A cache keeps the first `sinks` tokens and the last `window`, the row's own among them, and counts positions within itself. As rotated positions only
matter by their distance, the keys of the window stay as they are, and the sinks seem nearer: the query of a row whose cache is full stands at position
sinks + window − 1, so that for the sinks alone it is rotated back by as much as it has advanced beyond that.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor

from workbench.edits._edit import BaseEdit, Scene, check_heads, heads_in, named, parsed
from workbench.errors import InputError
from workbench.heads import Head, Shape
from workbench.models import HFModel
from workbench.ops.blocked import ELEMENTS
from workbench.ops.changed import Step
from workbench.ops.inputs import Attention
from workbench.prompts import Prompts
from workbench.rotary import frequencies, rotated

LEAST_ROWS = 64
"""The fewest rows of a block."""


@dataclass(frozen=True)
class Stream(BaseEdit):
    """Rows see the first `sinks` real tokens (StreamingLLM's 4; 0 is plain window attention) and the last `window`, their own among them.

    So many tokens are sinks + window slots of a cache that makes room before it takes a token in. `reposition` counts positions within the cache; without
    it they are those in the text. `heads` are the heads concerned, all for None. Layers with a window of their own keep it, on the distances that they see.
    The edit says what the model would compute; it frees no memory. Raises `InputError` for sizes that are not, and, if positions are moved, for models
    without rotated positions.
    """

    sinks: int = 4
    window: int = 252
    heads: tuple[Head, ...] | None = None
    reposition: bool = True

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1:
            raise InputError(f"a stream has 0 sinks or more and a window of 1 token or more; got {self.sinks} and {self.window}")
        object.__setattr__(self, "heads", parsed(self.heads))

    def check(self, shape: Shape) -> None:
        """Raise `InputError` unless a model of this shape has the heads."""
        check_heads(self.heads, shape)

    def check_model(self, model: HFModel, prompts: Prompts, chunk: int | None) -> None:
        """Raise `InputError` where positions cannot be moved."""
        for layer in range(model.shape.n_layers):
            if self.moves and self.looking(layer, model.shape):
                frequencies(model, layer)

    @property
    def moves(self) -> bool:
        """Whether any position is moved: without sinks there is nothing to move."""
        return self.reposition and self.sinks > 0

    def describe(self) -> dict[str, object]:
        """The edit as plain data, for provenance."""
        return {"edit": "stream", "sinks": self.sinks, "window": self.window, "heads": named(self.heads), "reposition": self.reposition}

    def looking(self, layer: int, shape: Shape) -> tuple[int, ...]:
        """The query heads of a layer that see the cache."""
        return heads_in(self.heads, layer, shape)

    def opened(self, scene: Scene) -> Step:
        """The step of one layer and pass."""
        mine = set(self.looking(scene.layer, scene.model.shape))
        frequency_F = frequencies(scene.model, scene.layer) if self.moves else None
        return Streamed(self.sinks, self.window, frequency_F, [place for place, head in enumerate(scene.heads) if head in mine])


class Streamed(Step):
    """`Stream` in one layer and pass."""

    def __init__(self, sinks: int, window: int, frequency_F: Tensor | None, places: list[int]) -> None:
        super().__init__(places)
        self.sinks, self.window, self.frequency_F = sinks, window, frequency_F

    def on_scores(self, s_BHRK: Tensor, attention: Attention, rows: slice) -> Tensor:
        """Sinks by their moved positions, the window as it is, all else hidden."""
        pos_BR, width = attention.pos_BR[:, rows].long(), s_BHRK.shape[-1]
        key_K = torch.arange(width, device=pos_BR.device)
        number_BK = key_K - attention.start_B[:, None]
        far_BRK = (pos_BR[..., None] - key_K >= self.window) & (number_BK >= self.sinks)[:, None]
        mine_BHRK = s_BHRK[:, self.places].masked_fill_(far_BRK[:, None], -torch.inf)
        if self.sinks:
            index_BS = (attention.start_B[:, None].long() + torch.arange(self.sinks, device=pos_BR.device)).clamp(max=width - 1)
            index_BHRS = index_BS[:, None, None].expand(*mine_BHRK.shape[:3], -1)
            moved_BHRS, full_BR = self._on_sinks(attention, rows, index_BS)
            mine_BHRK.scatter_(-1, index_BHRS, torch.where(full_BR[:, None, :, None], moved_BHRS, mine_BHRK.gather(-1, index_BHRS)))
        s_BHRK[:, self.places] = mine_BHRK
        return s_BHRK

    def _on_sinks(self, attention: Attention, rows: slice, index_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The scores [B, H, R, S] of this step's heads on the sinks, −inf where not seen, and which rows have a full cache."""
        place_BR = attention.pos_BR[:, rows].long() - attention.start_B[:, None]
        beyond_BR = (place_BR - (self.sinks + self.window - 1)).clamp(min=0)
        q_BHRE = attention.q_BHRE[:, self.places, rows]
        if self.frequency_F is not None:
            q_BHRE, place_BR = rotated(q_BHRE, -beyond_BR, self.frequency_F), place_BR - beyond_BR
        kv = torch.tensor(self.places, device=q_BHRE.device) // attention.group
        batch = torch.arange(len(index_BS), device=q_BHRE.device)[:, None, None]
        k_BHSE = attention.k_BGKE[batch, kv[None, :, None], index_BS[:, None]]
        score = (q_BHRE.float() @ k_BHSE.float().mT).mul_(attention.scaling)
        if attention.softcap is not None:
            score = score.div_(attention.softcap).tanh_().mul_(attention.softcap)
        distance_BRS = place_BR[..., None] - torch.arange(self.sinks, device=q_BHRE.device)
        hidden_BRS = (distance_BRS < 0) | (distance_BRS >= (attention.window or attention.keys))
        return score.masked_fill_(hidden_BRS[:, None], -torch.inf), beyond_BR > 0

    def outputs(self, attention: Attention, module: ModuleType) -> Tensor:
        """Block by block of rows, from the sinks and the keys that the block's windows touch: O(rows · (sinks + window)), in any implementation."""
        batch, heads, rows, _ = attention.q_BHRE.shape
        room = ELEMENTS.get(attention.q_BHRE.device.type, 2**22) // (batch * heads * (self.sinks + self.window + LEAST_ROWS))
        step = max(LEAST_ROWS, min(room, self.window))
        return torch.cat([self._block(attention, slice(begin, min(begin + step, rows))) for begin in range(0, rows, step)], dim=2)

    def _block(self, attention: Attention, rows: slice) -> Tensor:
        """Some rows: scores on sinks and on the stretch of keys near them, side by side under one softmax."""
        pos_BR, start_B1 = attention.pos_BR[:, rows].long(), attention.start_B[:, None]
        near = slice(max(0, int(pos_BR[:, 0].min()) - self.window + 1), int(pos_BR.max()) + 1)
        k, v = attention.k_BGKE[:, :, near], attention.v_BGKE[:, :, near]
        q = rearrange(attention.q_BHRE[:, :, rows], "b (g h) r e -> b g (h r) e", h=attention.group).float() * attention.scaling
        score = rearrange(q @ k.float().mT, "b g (h r) k -> b (g h) r k", h=attention.group)
        if attention.softcap is not None:
            score = score.div_(attention.softcap).tanh_().mul_(attention.softcap)
        key_K = torch.arange(near.start, near.stop, device=pos_BR.device)
        low_BR = torch.maximum(pos_BR - min(self.window, attention.window or self.window) + 1, start_B1 + self.sinks)
        hidden_BRK = (key_K > pos_BR[..., None]) | (key_K < low_BR[..., None])
        score = score.masked_fill_(hidden_BRK[:, None], -torch.inf)
        if self.sinks:
            index_BS = (start_B1.long() + torch.arange(self.sinks, device=pos_BR.device)).clamp(max=attention.keys - 1)
            score = torch.cat([self._on_sinks(attention, rows, index_BS)[0], score], dim=-1)
            batch = torch.arange(len(index_BS), device=pos_BR.device)[:, None]
            v = torch.cat([attention.v_BGKE[batch, :, index_BS].transpose(1, 2), v], dim=2)
        p = rearrange(score.softmax(-1).nan_to_num_(nan=0.0), "b (g h) r k -> b g (h r) k", h=attention.group)
        z = rearrange(p @ v.float(), "b g (h r) e -> b (g h) r e", h=attention.group)
        return z.to(attention.q_BHRE.dtype)
