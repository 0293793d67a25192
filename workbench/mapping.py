"""Where on the map of a long prompt does one head look? A pooled picture of any rectangle, down to exact cells; never T × T numbers."""

from collections.abc import Iterable
from typing import Any

from workbench.captures import capture
from workbench.errors import InputError
from workbench.heads import Head
from workbench.maps import AttentionMap
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import BlockMap

CELLS = 1024
"""The most cells along a side, unless asked otherwise: what a screen can show."""


def attention_map(
    model: HFModel,
    prompts: Prompts | str | Iterable[str],
    head: Head | str,
    *,
    queries: tuple[int, int] | None = None,
    keys: tuple[int, int] | None = None,
    cells: int = CELLS,
    reducer: str = "max",
    **options: Any,
) -> AttentionMap:
    """The map of one head on one prompt, in the smallest blocks that need at most `cells` along a side; smaller rectangles show more.

    The whole map is made by the kernels in blocks that are multiples of 16; a part of it from the probabilities, a strip of rows at a time.
    `options` are those of `captures.capture`, such as `implementation` and `chunk`. Raises `InputError` for more than one prompt, a head that the
    model does not have, or tokens that the prompt does not have.
    """
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_text(model, prompts)
    head = Head.parse(head)
    model.shape.check(head)
    if prompts.count != 1 or cells < 1:
        raise InputError("a map shows one prompt, in at least one cell")
    whole = 0, prompts.length
    shown = queries or whole, keys or whole
    block = -(-max(end - begin for begin, end in shown) // cells)
    full = shown == (whole, whole) and block >= 16
    block = -(-block // 16) * 16 if full else max(block, 1)
    read = BlockMap(block, reducer) if full else BlockMap(block, reducer, *shown)
    seen = capture(model, prompts, [read], layers=[head.layer], **options)
    return AttentionMap(head, seen[read][0, 0, head.index], block, reducer, *shown, prompts.length, seen.provenance)
