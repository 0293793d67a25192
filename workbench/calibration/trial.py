"""What does calibrating sinks change on one text? What comes next, the answer, and where a head looks: as the model is, and with the edit."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.attention import Tap, tapped
from workbench.calibration.taps import WAY
from workbench.captures import capture, generate
from workbench.edits import Calibrate, Edit
from workbench.errors import InputError
from workbench.heads import Head
from workbench.looking import following_table, others, text_prompts, token_texts
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.questions import feed
from workbench.reads import Pattern, Received

PLAIN, CALIBRATED, CONTROL = "plain", "calibrated", "control"


@dataclass(frozen=True, eq=False)
class Trial:
    """What a model makes of one text, plain and calibrated. `control` has as many other heads of the same layers; none where all heads are calibrated.

    `following` has a row per next token that any way thinks likely, with its probability (0–1) in `plain`, `calibrated` and, if there is one, `control`.
    `answers` are the greedy continuations, `plain` and `calibrated`. `found_LH` counts the sinks that the edit found in the text; a calibrated head without
    one is not changed.
    """

    edit: Calibrate
    control: tuple[Head, ...]
    following: pd.DataFrame
    answers: Mapping[str, str]
    found_LH: Int[np.ndarray, "L H"]

    @property
    def most(self) -> Head:
        """The head in which most sinks were found; the first of equals."""
        return Head(*divmod(int(self.found_LH.argmax()), self.found_LH.shape[1]))


@dataclass(frozen=True, eq=False)
class Shift:
    """Where one head looks on a text before and after: `before_QK` and `after_QK`, 0–1, rows sum to 1; `before_K` and `after_K`, what each token receives.

    What a token receives is the mean over the rows that see it. `sinks` has a row for each sink of the head by the edit's rule in the plain pass: `position`,
    `token`, `received` there, the `limit` that this exceeds, and what it receives `after`. Calibrated heads in earlier layers change this head too.
    """

    head: Head
    tokens: tuple[str, ...]
    before_QK: Float[np.ndarray, "Q K"]
    after_QK: Float[np.ndarray, "Q K"]
    before_K: Float[np.ndarray, " K"]
    after_K: Float[np.ndarray, " K"]
    sinks: pd.DataFrame


def trial(model: HFModel, text: str, edit: Calibrate, *, seed: int = 0, answer_tokens: int = 16) -> Trial:
    """Predict and continue a text with and without the edit. `seed` draws the control; an answer has at most `answer_tokens`.

    Raises `InputError` for heads that are not there, for none, and for a text of one token or of more than `looking.MOST_TOKENS`.
    """
    prompts, control = _prompts(model, text, edit), () if edit.heads is None else others(model, edit.heads, seed)
    ways: dict[str, list[Edit]] = {PLAIN: [], CALIBRATED: [edit]}
    if control:
        ways[CONTROL] = [replace(edit, heads=control)]
    taps = {name: Tap(prompts, (), edits, WAY) for name, edits in ways.items()}
    following = following_table(model, {name: _next(model, prompts, tap) for name, tap in taps.items()})
    answers = {name: generate(model, prompts, [], max_new_tokens=answer_tokens, edits=ways[name]).prompts.facts[0]["response"] for name in (PLAIN, CALIBRATED)}
    return Trial(edit, control, following, answers, taps[CALIBRATED].memory.found(0, model.shape, 1)[0])


def shift(model: HFModel, text: str, edit: Calibrate, head: Head) -> Shift:
    """Where a head looks with and without the edit. Raises `InputError` as `trial` does, and for an edit by fixed tokens, which has no rule."""
    if edit.rule is None:
        raise InputError("a shift shows sinks that a rule finds; this calibration has fixed tokens")
    model.shape.check(head)
    prompts, reads = _prompts(model, text, edit), [Pattern(), Received(), Received("sum")]
    before, after = (capture(model, prompts, reads, edits, implementation=WAY, layers=[head.layer]) for edits in ([], [edit]))
    pattern_QK, mean_K, sum_K = (before[read][0, 0, head.index] for read in reads)
    after_QK, after_K = (after[read][0, 0, head.index] for read in reads[:2])
    window, rows = model.windows[head.layer], torch.tensor([[prompts.length]])
    limit_K = edit.rule.limits(rows, torch.zeros(1, dtype=torch.long), prompts.length, window)[0, 0].numpy()
    place_S = 1 + np.flatnonzero(sum_K[1:] > limit_K[1:])
    tokens = token_texts(model, prompts.ids_BT[0])
    known = {"position": place_S, "token": [tokens[place] for place in place_S], "received": mean_K[place_S]}
    each_S = limit_K[place_S] * mean_K[place_S] / sum_K[place_S]
    return Shift(head, tokens, pattern_QK, after_QK, mean_K, after_K, pd.DataFrame({**known, "limit": each_S, "after": after_K[place_S]}))


def _prompts(model: HFModel, text: str, edit: Calibrate) -> Prompts:
    if edit.heads == ():
        raise InputError("no head is to be calibrated, so that nothing changes")
    edit.check(model.shape)
    prompts = text_prompts(model, text)
    if prompts.length < 2:
        raise InputError("a text of one token has no sinks; write more")
    return prompts


def _next(model: HFModel, prompts: Prompts, tap: Tap) -> Float[Tensor, " V"]:
    """Log-probabilities of what comes behind the text."""
    ids_BT, how = feed(model, prompts)
    with torch.inference_mode(), tapped(model, tap) as hf:
        return hf(ids_BT, use_cache=False, logits_to_keep=1, **how).logits[0, -1].float().log_softmax(-1)
