"""How does a probe's ideal head look? Its pattern on a toy prompt, as a small drawing that takes the colours of the page."""

from collections.abc import Callable, Mapping

import numpy as np

from workbench.conversations import RESPONSE, USER, Conversations
from workbench.documents import DocumentSearch
from workbench.needles import NeedleTests
from workbench.probes import Probe
from workbench.prompts import Prompts
from workbench.recipes import DELIMITERS, NaturalText, RandomTokens, RepeatedTokens

CELL = 7
"""Pixels of a cell."""


def natural() -> tuple[Prompts, str]:
    """Twenty-four tokens of text, the ninth and the seventeenth delimiters."""
    return Prompts(np.arange(24)[None] + 3, facts=({DELIMITERS: (8, 16)},)), "24 tokens of text; the 9th and the 17th are delimiters"


def repeated() -> tuple[Prompts, str]:
    """Three blocks of seven tokens behind a BOS token."""
    ids = np.concatenate([[1], np.tile(np.arange(7) + 3, 3)])
    return Prompts(ids[None], rows={"repeat": np.arange(8, 22)[None]}), "a first token, and a block of 7 tokens three times"


def needle() -> tuple[Prompts, str]:
    """A needle of six tokens, and the rows that repeat it at the end."""
    ids = np.concatenate([np.arange(6) + 50, np.arange(6) + 10, np.arange(6) + 60, np.arange(6) + 10])
    spans, rows = {"needle": np.array([[6, 12]])}, {"answer": np.arange(17, 23)[None]}
    return Prompts(ids[None], spans, rows), "6 tokens, a needle of 6 tokens, 6 more, and the answer, which is the needle"


def document() -> tuple[Prompts, str]:
    """Documents, of which one answers the query at the end."""
    spans, rows = {"gold": np.array([[6, 12]] * 2)}, {"query": np.tile(np.arange(18, 24), (2, 1))}
    return Prompts(np.tile(np.arange(24) + 3, (2, 1)), spans, rows), "three documents of 6 tokens, of which the second answers the query of the last 6"


def conversation() -> tuple[Prompts, str]:
    """What a user said, and an answer."""
    spans, rows = {USER: np.array([[4, 12]])}, {RESPONSE: np.arange(14, 24)[None]}
    return Prompts(np.arange(24)[None] + 3, spans, rows), "a template, 8 tokens of the user, and 10 tokens of an answer"


TOYS: Mapping[type, Callable[[], tuple[Prompts, str]]] = {
    NaturalText: natural,
    RandomTokens: natural,
    RepeatedTokens: repeated,
    NeedleTests: needle,
    DocumentSearch: document,
    Conversations: conversation,
}
"""A toy prompt for every kind of recipe, with what it is in words. A probe on prompts of another kind gets no drawing."""


def drawing(probe: Probe) -> str:
    """The ideal head's pattern as a figure in HTML; empty for a probe from weights, or whose kind of prompts has no toy."""
    make = TOYS.get(type(probe.recipe("quick"))) if probe.recipes else None
    if make is None:
        return ""
    prompts, words = make()
    pattern_QK = probe.ideal(prompts, 0)
    size = len(pattern_QK) * CELL
    half = [f'<path class="seen" d="M0 0{"".join(f"V{(row + 1) * CELL}H{(row + 1) * CELL}" for row in range(len(pattern_QK)))}V{size}H0z"/>']
    cells = [
        f'<rect x="{key * CELL}" y="{row * CELL}" width="{CELL}" height="{CELL}" fill-opacity="{0.15 + 0.85 * pattern_QK[row, key]:.2f}"/>'
        for row, key in np.argwhere(pattern_QK > 0).tolist()
    ]
    picture = f'<svg viewBox="0 0 {size} {size}" width="{size}" height="{size}" role="img" aria-label="Pattern of the ideal head of {probe.name}">'
    caption = (
        f"The ideal head, which scores 1, on {words}. Rows are queries from top to bottom, columns keys from left to right; "
        "the stronger the colour, the more attention."
    )
    return f'<figure class="ideal" markdown="0">{picture}{"".join([*half, *cells])}</svg><figcaption>{caption}</figcaption></figure>'
