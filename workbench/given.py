"""What would a capture show of attention that is known beforehand? Given patterns, and a head that attends to everything alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.captures import Capture
from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.implementations import each
from workbench.layer_view import LayerView, Seen
from workbench.ops import blocked
from workbench.ops.inputs import Attention
from workbench.passes import asked_order
from workbench.prompts import Prompts
from workbench.reads import LayerRead, Read, Received
from workbench.rows import Rows


def uniform(card: ModelCard, prompts: Prompts, reads: Sequence[LayerRead]) -> Capture:
    """What a head that attends equally to all it sees would show, as one head of one layer.

    Its queries and keys are 0, its values all 1, and so are the outputs. Like any other, it is made without its pattern.
    """
    values: dict[Read, Any] = {}
    zeros = torch.zeros(prompts.count, 1, prompts.length, 1)
    ones = torch.ones_like(zeros)
    for read in reads:
        rows = Rows.of(prompts, prompts.row_positions(read.rows), prompts.length, None, zeros.device)
        q_BHRE = torch.zeros(*rows.pos_BR.shape, 1)[:, None]
        attention = Attention(q_BHRE, zeros, ones, rows.pos_BR, rows.start_B, 1.0, padded=prompts.padding is not None)
        value = read.streamed(Seen(rows, attention, blocked.statistics(attention, read.wanted(rows)), torch.ones_like(q_BHRE)))
        value = read.finished(value, rows) if isinstance(read, Received) and isinstance(value, Tensor) else value
        values[read] = each(lambda tensor: tensor[:, None], asked_order(read, value, prompts))
    return Capture(card, prompts, values, {"implementation": "torch", "attention": "uniform"})


def from_patterns(card: ModelCard, prompts: Prompts, pattern_BLHQK: np.ndarray, reads: Sequence[LayerRead], value_BLGKE: np.ndarray | None = None) -> Capture:
    """A capture made from given attention probabilities, such as an ideal head or another tool's cache.

    `pattern_BLHQK` has all query rows; its heads may be any number. Keys at or before the row count as visible.
    Reads of queries and keys raise `InputError`, those of values and outputs too unless values are given.
    """
    pattern = torch.tensor(np.asarray(pattern_BLHQK, np.float32))
    if pattern.dim() != 5 or pattern.shape[0] != prompts.count or pattern.shape[3:] != (prompts.length, prompts.length):
        raise InputError(f"patterns of shape {tuple(pattern.shape)} for {prompts.count} prompts of {prompts.length} tokens")
    values: dict[Read, list] = {read: [] for read in reads}
    for read in reads:
        rows = Rows.of(prompts, prompts.row_positions(read.rows), prompts.length, None, pattern.device)
        for layer, pattern_BHQK in enumerate(pattern.unbind(1)):
            index_BHRK = rows.pos_BR.long()[:, None, :, None].expand(-1, pattern.shape[2], -1, prompts.length)
            pattern_BHRK = pattern_BHQK.gather(2, index_BHRK)
            v_BGKE = None if value_BLGKE is None else torch.tensor(np.asarray(value_BLGKE[:, layer], np.float32))
            z_BHRE = None if v_BGKE is None else pattern_BHRK @ v_BGKE.repeat_interleave(pattern.shape[2] // v_BGKE.shape[1], dim=1)
            view = LayerView(rows, pattern_BHRK, v_BGKE=v_BGKE, z_BHRE=z_BHRE)
            values[read].append(asked_order(read, read.reference(view), prompts))
    return Capture(
        card,
        prompts,
        {read: each(lambda *tensors: torch.stack(tensors, dim=1), *layers) for read, layers in values.items()},
        {"implementation": "given patterns"},
    )
