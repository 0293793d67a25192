"""How is attention calibrated in one layer and pass? The step behind `Calibrate`: by definition on strips of probabilities, or by correction of outputs."""

from dataclasses import replace
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from workbench.edits._edit import Scene
from workbench.edits.sinks import SinkRule
from workbench.errors import InputError
from workbench.ops import sums
from workbench.ops.changed import Step, reduced, strips, subset
from workbench.ops.inputs import Attention, Wanted

LEAST = 1e-12
"""A row with less than this beside its sinks has no recipient."""

THIN = {torch.float32: 0.05}
"""Rows with less than this beside their sinks are computed from probabilities: a difference of outputs would lose its digits. Half precision: 0.25."""

AT_ONCE = 2**22
"""Pairs of a row and a sink that are held at once."""

MANY_ROWS = 128
"""A head with more rows of that kind is computed by one more pass of flash attention, where that runs."""

FEW = 4
"""The short way is taken if a head has at most one sink in this many keys."""


@runtime_checkable
class Settings(Protocol):
    """What the step takes of `Calibrate`."""

    @property
    def beta(self) -> float: ...
    @property
    def rule(self) -> SinkRule | None: ...
    @property
    def tokens(self) -> tuple[int, ...] | None: ...
    @property
    def find(self) -> str: ...


class Calibrating(Step):
    """`Calibrate` in one layer and pass. `state` has the sums that keys received from all rows before; `found` [B, H] counts the last row's sinks."""

    def __init__(self, edit: Settings, scene: Scene, places: list[int]) -> None:
        super().__init__(places)
        self.edit, self.state, self.whole = edit, scene.state, scene.attention
        self.heads = [scene.heads[place] for place in places]
        first, last = self.whole.span
        self.until = 0 if edit.find == "running" else scene.prompts.decode_from  # rows before it share their sinks
        self.first, self.keys, rows = first, self.whole.keys, last + 1 - first
        self.before: Tensor | None = self.state.get("received")
        self.sink_BHK: Tensor | None = None
        self.running_BHK: Tensor | None = None
        self.total_BHK: Tensor | None = None
        self.found: Tensor | None = None
        if edit.tokens is not None:
            self._tokens(scene)
            return
        self.sum_rows = min(max(self.until - first, 0), rows)
        self.local = self.sum_rows == rows
        if self.sum_rows and (first > 0 or last + 1 < min(self.until, scene.prompts.length)):
            raise InputError("sinks of a prompt are found from all of its rows, and this pass has a part of them; calibrate with find='running'")
        if first > 0 and self.before is None:
            raise RuntimeError("the sums of the rows before are missing: passes over one prompt share a memory")

    def _tokens(self, scene: Scene) -> None:
        ids_BK = torch.from_numpy(scene.prompts.ids_BT[:, : self.keys].copy()).to(self.whole.pos_BR.device)
        behind_BK = torch.arange(self.keys, device=ids_BK.device) > self.whole.start_B[:, None]
        chosen_BK = torch.isin(ids_BK, torch.tensor(self.edit.tokens, dtype=torch.int64, device=ids_BK.device)) & behind_BK
        self._settle(chosen_BK[:, None].expand(-1, len(self.places), -1))

    def _settle(self, sink_BHK: Tensor) -> None:
        self.sink_BHK, self.found = sink_BHK, sink_BHK.sum(-1)

    def _find(self, sum_BHRK: Tensor, stop_R: Tensor) -> Bool[Tensor, "B H R K"]:
        """The sinks by the rows up to `stop_R`; never the first real token."""
        assert self.edit.rule is not None
        start_B = self.whole.start_B
        tokens_BR = (stop_R[None] - start_B[:, None]).clamp(min=0)
        sink_BHRK = self.edit.rule.find(sum_BHRK, tokens_BR, start_B, self.whole.window)
        first_BK = torch.arange(sum_BHRK.shape[-1], device=start_B.device) == start_B[:, None]
        return sink_BHRK & ~first_BK[:, None, None]

    def fit(self, sum_BHK: Tensor) -> None:
        """Find the sinks that the rows of the prompt share."""
        stop_R = torch.tensor([self.first + self.sum_rows], device=sum_BHK.device)
        self.total_BHK = sum_BHK
        self._settle(self._find(sum_BHK[:, :, None], stop_R)[:, :, 0])

    def begin(self) -> None:
        """Start from what keys received from the rows before: those of former passes, or the prompt's."""
        if self.local:
            return
        before = self.total_BHK if self.sum_rows else self.before
        batch, count = self.whole.q_BHRE.shape[0], len(self.places)
        fresh = torch.zeros(batch, count, self.keys, device=self.whole.q_BHRE.device) if before is None else before
        self.running_BHK = pad(fresh, (0, self.keys - fresh.shape[-1])).clone()

    def on_pattern(self, p_BHRK: Tensor, pos_BR: Tensor) -> Tensor:
        """The probabilities of some rows, calibrated."""
        width = p_BHRK.shape[-1]
        all_heads = len(self.places) == p_BHRK.shape[1]
        mine_BHRK = p_BHRK if all_heads else p_BHRK[:, self.places]
        shared = p_BHRK.shape[2] if self.local else int((pos_BR[0] < self.until).sum())
        parts = []
        if shared:
            assert self.sink_BHK is not None
            parts.append(calibrated(mine_BHRK[:, :, :shared], self.sink_BHK[:, :, None, :width], self.edit.beta))
        if shared < p_BHRK.shape[2]:
            parts.append(self._by_running(mine_BHRK[:, :, shared:], pos_BR[0, shared:]))
        after_BHRK = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        if all_heads:
            return after_BHRK
        p_BHRK[:, self.places] = after_BHRK
        return p_BHRK

    def _by_running(self, p_BHRK: Tensor, pos_R: Tensor) -> Tensor:
        """Rows that find their own sinks, from all rows up to theirs."""
        assert self.running_BHK is not None
        so_far_BHK = self.running_BHK[..., : p_BHRK.shape[-1]]
        sum_BHRK = p_BHRK.cumsum(2).add_(so_far_BHK[:, :, None])
        so_far_BHK.copy_(sum_BHRK[:, :, -1])
        sink_BHRK = self._find(sum_BHRK, pos_R.long() + 1)
        self.found = sink_BHRK[:, :, -1].sum(-1)
        return calibrated(p_BHRK, sink_BHRK, self.edit.beta)

    def commit(self) -> None:
        """Keep the sums for the passes to come, and the count for whoever asks."""
        self.state["found"] = None if self.found is None else (self.heads, self.found)
        if self.edit.tokens is None:
            self.state["received"] = self.total_BHK if self.local else self.running_BHK

    def outputs(self, attention: Attention, module: ModuleType) -> Tensor | None:
        """By correction: outputs and log-sum-exp of plain attention, what keys receive, and the probabilities of the few sinks; no pattern."""
        if not self.local or attention.q_BHRE.shape[2] < 2:
            return None
        seen = module.statistics(attention, Wanted(output=True, lse=True, received=frozenset({"sum"} if self.sum_rows else ())))
        if self.sum_rows:
            self.fit(seen.received["sum"])
        assert self.sink_BHK is not None
        most = int(self.sink_BHK.sum(-1).max())
        if most == 0:
            return seen.z_BHRE
        return corrected(self, attention, seen.z_BHRE, seen.lse_BHR, most) if most * FEW <= attention.keys else None


def calibrated(p_BHRK: Float[Tensor, "B H R K"], sink: Bool[Tensor, "B H _ K"], beta: float) -> Float[Tensor, "B H R K"]:
    """Rows of probabilities with the sinks scaled by `beta`, and what they lose given to the other keys in proportion; the definition."""
    on_BHRK = p_BHRK * sink
    mass_BHR1 = on_BHRK.sum(-1, keepdim=True)
    rest_BHR1 = (p_BHRK - on_BHRK).sum(-1, keepdim=True)
    full_BHR1 = rest_BHR1 <= LEAST
    more_BHR1 = (1 + (1 - beta) * mass_BHR1 / rest_BHR1).masked_fill(full_BHR1, 1)
    less_BHR1 = torch.full_like(more_BHR1, beta).masked_fill_(full_BHR1, 1)
    return p_BHRK * torch.where(sink, less_BHR1, more_BHR1)


def corrected(step: Calibrating, attention: Attention, z: Any, lse_BHR: Tensor, most: int) -> Float[Tensor, "B H R E"]:
    """z' = (z − z_S) (1 + m / R) + β z_S, where z_S is what the sinks, at most `most` in a head, write; rows with little beside them from probabilities."""
    assert step.sink_BHK is not None
    size = z.shape[-1]
    index_BHS = step.sink_BHK.int().topk(most, dim=-1).indices.sort(-1).values
    there_BHS = step.sink_BHK.gather(-1, index_BHS)
    k_BHSE, v_BHSE = (
        tensor.repeat_interleave(attention.group, dim=1).gather(2, index_BHS[..., None].expand(-1, -1, -1, size)).float()
        for tensor in (attention.k_BGKE, attention.v_BGKE)
    )
    key_BHS = index_BHS.masked_fill(~there_BHS, attention.keys)  # which no row sees
    on_sinks, mass_BHR1 = _written(attention, key_BHS, k_BHSE, v_BHSE, lse_BHR)
    rest_BHR1 = 1 - mass_BHR1
    more_BHR1 = 1 + (1 - step.edit.beta) * mass_BHR1 / rest_BHR1.clamp(min=LEAST)
    changed = ((z.float() - on_sinks) * more_BHR1 + step.edit.beta * on_sinks).to(z.dtype)
    thin_HR = (rest_BHR1[..., 0] < THIN.get(z.dtype, 0.25)).any(0)
    for head in thin_HR.any(-1).nonzero()[:, 0].tolist():
        row_R = thin_HR[head].nonzero()[:, 0]
        alone, sink_B1K = subset(attention, (head,)), step.sink_BHK[:, head : head + 1]
        if len(row_R) > MANY_ROWS and sums.applies(attention, Wanted(output=True, received=frozenset({"sum"}))):
            mean_BRE, share_BR1 = _rest(alone, sink_B1K, lse_BHR[:, head])
            whole_BRE = (1 - step.edit.beta * mass_BHR1[:, head]) * mean_BRE + step.edit.beta * on_sinks[:, head]
            changed[:, head, row_R] = torch.where(share_BR1 <= LEAST, z[:, head], whole_BRE)[:, row_R]
            continue
        few = replace(alone, q_BHRE=alone.q_BHRE[:, :, row_R], pos_BR=alone.pos_BR[:, row_R], memo={})
        exact_B1RE = reduced(few, strips(few, [_Given(sink_B1K, step.edit.beta)]), Wanted(output=True)).z_BHRE
        assert exact_B1RE is not None
        changed[:, head, row_R] = exact_B1RE[:, 0]
    return changed


class _Given(Step):
    """Calibration of one head by sinks that are known."""

    def __init__(self, sink_B1K: Tensor, beta: float) -> None:
        super().__init__([0])
        self.sink_B1K, self.beta = sink_B1K, beta

    def on_pattern(self, p_BHRK: Tensor, pos_BR: Tensor) -> Tensor:
        """Calibrated."""
        return calibrated(p_BHRK, self.sink_B1K[:, :, None, : p_BHRK.shape[-1]], self.beta)


def _rest(alone: Attention, sink_B1K: Tensor, lse_BR: Tensor) -> tuple[Tensor, Tensor]:
    """What the keys that are no sinks write on average, [B, R, E], for one head, and their share: flash attention with the sinks hidden in one dimension."""
    q, k, v = (pad(tensor, (0, 8)) for tensor in (alone.q_BHRE, alone.k_BGKE, alone.v_BGKE))
    q[..., -1], k[..., -1] = 1.0, sink_B1K * (sums.HIDDEN / alone.scaling)
    mean_B1RE, own_B1R = sums.flash(q, k, v, alone.scaling)
    return mean_B1RE[:, 0, :, :-8], (own_B1R[:, 0] - lse_BR).exp()[..., None]


def _written(attention: Attention, key_BHS: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, lse_BHR: Tensor) -> tuple[Tensor, Tensor]:
    """What some keys of each head write, and their mass, in strips of rows; keys beyond all rows stand for none."""
    batch, heads, rows, _ = attention.q_BHRE.shape
    step = max(1, AT_ONCE // (batch * heads * key_BHS.shape[-1]))
    fused = attention.softcap is None and attention.q_BHRE.dtype == torch.float32 and attention.q_BHRE.device.type == "cpu"
    parts = []
    for cut in (slice(begin, begin + step) for begin in range(0, rows, step)):
        low, pos = (edge_BR[:, None, cut, None] for edge_BR in (attention.low_BR, attention.pos_BR))
        hidden_BHRS = (key_BHS[:, :, None] > pos) | (key_BHS[:, :, None] < low)
        q_BHRE, lse_BHR1 = attention.q_BHRE[:, :, cut], lse_BHR[:, :, cut, None]
        if fused:
            mask = torch.zeros(hidden_BHRS.shape).masked_fill_(hidden_BHRS, sums.HIDDEN)
            mean, own_BHR = sums.flash(q_BHRE, k_BHSE, v_BHSE, attention.scaling, mask)
            mass_BHR1 = (own_BHR[..., None] - lse_BHR1).exp()
            parts.append((mean * mass_BHR1, mass_BHR1))
            continue
        score = (q_BHRE.float() @ k_BHSE.mT).mul_(attention.scaling)
        if attention.softcap is not None:
            score = score.div_(attention.softcap).tanh_().mul_(attention.softcap)
        p_BHRS = score.sub_(lse_BHR1).exp_().masked_fill_(hidden_BHRS, 0)
        parts.append((p_BHRS @ v_BHSE, p_BHRS.sum(-1, keepdim=True)))
    on_sinks, mass = (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
    return on_sinks, mass
