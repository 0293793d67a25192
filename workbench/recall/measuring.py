"""How is it measured what a model still finds without some of its heads? The same needle tests, answered by each variant of the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.captures import capture, generate
from workbench.edits import Ablate, Reference
from workbench.errors import InputError, unknown
from workbench.heads import Head
from workbench.implementations import choose
from workbench.labels import HeadLabels
from workbench.looking import others
from workbench.models import HFModel
from workbench.needle_files import load_needles
from workbench.needles import NeedleTests
from workbench.prompts import Prompts
from workbench.reads import HeadOutput
from workbench.recall.table import COLUMNS, PHASES, VARIANTS, Recall, judged
from workbench.recipes import NaturalText
from workbench.runs import Part, Run, versions

TESTS = NeedleTests(lengths_=(200, 400, 800), depths=(0.1, 0.5, 0.9), per_cell=2, teacher_forced=False)

NAME = "needle recall"
"""What the runs call it."""


@dataclass(frozen=True)
class Setting:
    """What is measured: needle tests built from `seed`, the `kind` of ablation, how often (`draws`) other heads are drawn, how long an answer may be.

    Raises `InputError` for an unknown kind and for counts that make no sense.
    """

    tests: NeedleTests = TESTS
    kind: str = "zero"
    draws: int = 2
    seed: int = 1
    answer_tokens: int = 32

    def __post_init__(self) -> None:
        if self.kind not in PHASES:
            raise unknown("kind of ablation", self.kind, PHASES)
        if self.draws < 0 or self.answer_tokens < 1 or not (self.tests.per_cell or 1) >= 1:
            raise InputError("a needle test takes at least one needle per length and depth, one token of an answer, and no negative number of draws")

    def check(self, model: HFModel) -> None:
        """Raise `InputError` if a test with its answer is longer than the model's context, or too short for a needle."""
        longest = max(self.tests.lengths(model))
        if longest + self.answer_tokens > model.max_length:
            raise InputError(
                f"a test of {longest:,} tokens with an answer of {self.answer_tokens} is longer than the context of {model.name}, "
                f"{model.max_length:,} tokens; take shorter lengths"
            )
        self.tests.check(model)

    def answers(self, model: HFModel) -> list[int]:
        """The lengths in tokens of all prompts that are answered."""
        return self.tests.lengths(model) * (2 + self.draws)


def chosen(labels: HeadLabels, what: str, probe: str = "retrieval") -> tuple[Head, ...]:
    """Heads as a user names them: a number (so many of the strongest by a probe), a label, or heads such as L17H3,L18H6.

    Raises `InputError` for what is none of these.
    """
    if what.strip().isdecimal():
        if probe not in labels.scores:
            raise unknown("probe", probe, labels.scores)
        ranked = sorted(labels.card.shape.heads(), key=lambda head: -labels.scores[probe][head.layer, head.index])
        found = tuple(ranked[: int(what)])
    elif what in labels.counts():
        found = labels.heads(what)
    else:
        found = tuple(dict.fromkeys(_named(labels, what)))
        for head in found:
            labels.card.shape.check(head)
    if not 0 < len(found) < len(labels.labels):
        raise InputError(f"{what!r} takes {len(found)} of {len(labels.labels)} heads away; take at least one, and leave one")
    return found


def _named(labels: HeadLabels, what: str) -> Iterator[Head]:
    try:
        yield from map(Head.parse, what.split(","))
    except InputError as error:
        raise InputError(
            f"{what!r} is no number of heads, no label ({', '.join(labels.counts()) or 'there are none'}), and no list of heads such as L17H3,L18H6"
        ) from error


def measure(
    model: HFModel,
    heads: Sequence[Head],
    setting: Setting | None = None,
    *,
    runs: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Recall:
    """Answer every test with all heads, without `heads`, and without others. Answers are kept under `runs`, and not made again.

    Raises `InputError` for a model without a tokenizer, for heads that it does not have, and for tests that do not fit its context.
    """
    setting = setting or Setting()
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; needle tests need one")
    setting.check(model)
    tests = setting.tests.build(model, setting.seed)
    asked = {needle.id: needle.question for needle in load_needles(setting.tests.needles)}
    reference = _reference(model) if setting.kind == "mean" else None
    variants = [(variant, draw, taken, _edits(taken, setting, reference)) for variant, draw, taken in _variants(model, heads, setting)]
    rows: list[Mapping[str, Any]] = []
    for variant, draw, taken, edits in variants:
        run = None if runs is None else Run(runs, _question(model, tests, edits, setting))
        for number, test in enumerate(tests):
            told = _answer(model, test, edits, setting, asked, run, f"part-{number:04d}")
            rows.append({"variant": variant, "draw": draw, "heads": " ".join(map(str, taken)), "test": number, **told})
            progress(VARIANTS[variant], len(rows), len(variants) * len(tests))
    facts = _question(model, tests, variants[1][-1], setting)
    made = {name: value for name, value in facts.items() if name not in ("probes", "prompts")}
    how = {"kind": setting.kind, "phase": PHASES[setting.kind], "draws": setting.draws}
    return Recall(pd.DataFrame(rows, columns=list(COLUMNS)), {"name": model.name, **how, **made})


def _variants(model: HFModel, heads: Sequence[Head], setting: Setting) -> Iterator[tuple[str, int, tuple[Head, ...]]]:
    """Name, draw and heads that are taken away, of each variant; no control where the layers have no other heads."""
    yield "full", 0, ()
    yield "without", 0, tuple(heads)
    for draw in range(setting.draws):
        if free := others(model, heads, draw):
            yield "control", draw, free


def _edits(heads: Sequence[Head], setting: Setting, reference: Reference | None) -> list[Ablate]:
    return [Ablate(tuple(heads), setting.kind, PHASES[setting.kind], reference)] if heads else []


def _reference(model: HFModel) -> Reference:
    """What heads write on natural text, whose mean takes their place."""
    text = NaturalText(length=256, count=4, batch=4).build(model, seed=0)[0]
    return Reference(capture(model, text, [HeadOutput()])[HeadOutput()])


def _question(model: HFModel, tests: Sequence[Prompts], edits: Sequence[Ablate], setting: Setting) -> dict[str, Any]:
    """What decides the answers of one variant; `probes` and `prompts` as `runs.overview` shows them."""
    used = choose("auto", model.device, max(test.length for test in tests), model.shape.d_head)
    place = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type, "implementation": used}
    made = {"seed": setting.seed, "answer_tokens": setting.answer_tokens, "edits": [edit.describe() for edit in edits]}
    prompts = [test.fingerprint for test in tests]
    return {"model": model.card.fingerprint, "probes": [NAME], "prompts": prompts, **made, **place, "versions": versions()}


def _answer(
    model: HFModel, test: Prompts, edits: Sequence[Ablate], setting: Setting, asked: Mapping[str, str], run: Run | None, part: str
) -> Mapping[str, Any]:
    """One test's answer and how it is judged: from disk, else made and kept. A recall belongs to no head: its scores are [1, 1, 1]."""
    if run is not None and (kept := run.load(part)) is not None:
        return kept.facts[0]
    seen = generate(model, test, [], max_new_tokens=setting.answer_tokens, edits=edits, stop=lambda text: "\n" in text.strip())
    fact = seen.prompts.facts[0]
    values = judged(fact["answer"], asked[fact["needle"]], fact["response"])
    told = {name: fact[name] for name in ("needle", "length", "depth")} | values | {"response": fact["response"]}
    if run is not None:
        run.save(part, Part({NAME: np.full((1, 1, 1), values["recall"])}, {NAME: np.ones(1, bool)}, (told,)))
    return told
