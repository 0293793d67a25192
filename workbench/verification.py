"""Is anything lost? Needle recall, perplexity and next-token agreement of a model under policies, along a sweep of KV budgets, beside the full model.

Ways to spend the same memory are compared: the heads that scores choose, by one or several rankings, as many heads chosen at random (several seeds), a
window of equal size in every head (StreamingLLM's cache), and every head full. The tests are the same for all, so that differences are paired.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench import choosing
from workbench.errors import InputError
from workbench.kernels.applied import Applied, apply
from workbench.matching import word_recall
from workbench.models import HFModel
from workbench.needle_files import load_needles
from workbench.needles import NeedleTests
from workbench.policies import HeadPolicy
from workbench.prompts import Prompts, bos
from workbench.recipes import haystack_text
from workbench.scores import bootstrap_interval

TESTS = NeedleTests(lengths_=(600, 1200, 2400), depths=(0.1, 0.3, 0.5, 0.7, 0.9), per_cell=3, teacher_forced=False)
BUDGETS = (0.0, 0.125, 0.25, 1 / 3, 0.5, 2 / 3)
TOKENS_AT_ONCE = {"cpu": 1, "cuda": 2**16}
"""Tokens of the needle tests that are answered together; at least one test is."""

PIECE = 512
"""Tokens of the text that go through the model at once."""


@dataclass(frozen=True)
class Setting:
    """What is measured: needle tests, and `text_tokens` tokens of the haystack (or of `text`) for perplexity and agreement.

    `answer_tokens` is how long an answer may be; it ends at a line break. Random policies are drawn for each of `seeds`. With a `chunk` prompts and text are
    read in pieces of that many tokens.
    """

    tests: NeedleTests = TESTS
    budgets: Sequence[float] = BUDGETS
    seeds: Sequence[int] = tuple(range(5))
    text: Any = None
    text_tokens: int = 2048
    answer_tokens: int = 32
    seed: int = 1
    chunk: int | None = None


@dataclass(frozen=True)
class Way:
    """One way to spend memory: its name, budget and seed, and its policy for prompts of a length."""

    name: str
    budget: float
    seed: int | None
    policy: Callable[[int], HeadPolicy]


@dataclass(frozen=True, eq=False)
class Verification:
    """What was found: `table` has a row for each way (see `columns`), `tests` one for each way and needle test, `provenance` what made them."""

    table: pd.DataFrame
    tests: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)


COLUMNS = {
    "policy": "the scores that chose the heads; or saved: the policy in the file; random; window: one window in all heads; full",
    "budget": "the share of KV heads that may be full; for `window`, the share of the tokens",
    "seed": "of a random choice",
    "full_heads": "how many KV heads are full",
    "kv_share": "KV bytes as a share of the full model's, mean over the needle tests",
    "recall": "the share of those of the answer's words that are not in the question, which the response has; mean over the tests, 0–1",
    "word_recall": "the share of all of the answer's words (ROUGE-1 recall), which a response that echoes the question has in part",
    "kept": "recall as a share of the full model's, with a 95% interval (paired bootstrap over the tests)",
    "perplexity": "on the text; none for the semantics `decode`, by which a text that is read is seen whole",
    "agreement": "the share of the text's tokens where the full model's first choice is the same, 0–1",
}
"""What the columns of `Verification.table` mean."""


def ways(policy: HeadPolicy, rankings: Mapping[str, np.ndarray], setting: Setting, *, saved: bool) -> Iterator[Way]:
    """Every way to spend memory; sizes and semantics are the policy's."""
    how = {name: getattr(policy, name) for name in ("sinks", "window", "semantics", "compensation", "windows")}
    card = policy.card
    yield Way("full", 1.0, None, lambda _: choosing.everything(card, **how))
    if saved:
        yield Way("saved", policy.full_share, None, lambda _: policy)
    for budget in setting.budgets:
        for name, score_LG in rankings.items():
            yield _chosen(name, budget, None, choosing.by_budget(card, score_LG, budget, **how))
        if 0 < budget < 1:
            for seed in setting.seeds:
                yield _chosen("random", budget, seed, choosing.at_random(card, budget, seed, **how))
            yield Way("window", budget, None, lambda length, budget=budget: _window(policy, budget, length))


def _chosen(name: str, budget: float, seed: int | None, policy: HeadPolicy) -> Way:
    return Way(name, budget, seed, lambda _: policy)


def _window(policy: HeadPolicy, budget: float, length: int) -> HeadPolicy:
    """Every head streaming, with as large a window as the budget allows at that length."""
    how = {name: getattr(policy, name) for name in ("semantics", "compensation", "windows")}
    sinks = min(policy.sinks, max(0, round(budget * length) - 1))
    return choosing.uniform(policy.card, sinks=sinks, window=max(1, round(budget * length) - sinks), **how)


def verify(
    model: HFModel,
    policy: HeadPolicy,
    rankings: Mapping[str, np.ndarray],
    setting: Setting | None = None,
    *,
    saved: bool = False,
    implementation: str = "auto",
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Verification:
    """Measure every way of `ways` on the setting's tests and text. `rankings` are scores [L, G] of KV heads by name.

    The policy gives sizes and semantics, and with `saved` is itself one of the ways.

    Raises `InputError` for a model without a tokenizer, if the full model answers none of the tests, and for tests that do not fit.
    """
    setting = setting or Setting()
    policy.check_model(model.card)
    if policy.semantics == "chunk" and not setting.chunk:
        raise InputError("the semantics `chunk` depends on how long chunks are; give a chunk size")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; needle tests need one")
    policy = policy.with_windows(model.windows)
    tests = setting.tests.build(model, setting.seed)
    text, digest = _text(model, setting)
    every = list(ways(policy, rankings, setting, saved=saved))
    rows, summary, full_recall, full_choice, facts = [], [], np.zeros(0), np.zeros(0), {}
    for number, way in enumerate(every):
        progress(f"{way.name} {way.budget:.0%}", number, len(every))
        answers, ran = _answers(model, way, tests, setting, implementation)
        facts = facts or ran  # of the full model, in which the dense kernel runs
        nll, choice = _read(model, way.policy(text.shape[1]), text, implementation, setting.chunk or PIECE)
        recall = np.array([answer["recall"] for answer in answers])
        if way.name == "full":
            full_recall, full_choice = recall, choice
            if not recall.any():
                raise InputError(f"insufficient evidence: {model.name} answers none of the {len(tests)} needle tests with every head full; try shorter ones")
        shown = {"policy": way.name, "budget": way.budget, "seed": way.seed, "full_heads": int(way.policy(0).full_LG[policy.layers].sum())}
        rows += [{**shown, **answer} for answer in answers]
        kept, low, high = _kept(recall, full_recall)
        share = float(np.mean([way.policy(test.length).share(test.length) for test in tests]))
        measured = {
            "recall": recall.mean(),
            "word_recall": float(np.mean([answer["word_recall"] for answer in answers])),
            "kept": kept,
            "kept_low": low,
            "kept_high": high,
            "tests": len(tests),
        }
        read = {"perplexity": float(np.exp(nll)), "agreement": float(np.mean(choice == full_choice))}
        read = dict.fromkeys(read, np.nan) if policy.semantics == "decode" and way.name != "full" else read
        summary.append({**shown, "kv_share": share, **measured, **read})
    progress("done", len(every), len(every))
    place = {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch."), **facts, "haystack": digest}
    sizes = {name: getattr(policy, name) for name in ("sinks", "window", "semantics", "compensation")}
    return Verification(pd.DataFrame(summary), pd.DataFrame(rows), {"model": model.name, "fingerprint": model.fingerprint, **sizes, **place})


def _kept(recall_N: np.ndarray, full_N: np.ndarray) -> tuple[float, float, float]:
    """Recall as a share of the full model's, and a 95% interval of it: that of the paired difference."""
    change_N = (recall_N - full_N)[:, None, None]
    low, high = (float(edge[0, 0]) for edge in bootstrap_interval(change_N))
    base = full_N.mean()
    return float(recall_N.mean() / base), 1 + low / base, 1 + high / base


def _answers(model: HFModel, way: Way, tests: list[Prompts], setting: Setting, implementation: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each test's answer under a way's policy, and who computed them."""
    asked = {needle.id: needle.question for needle in load_needles(setting.tests.needles)}
    made: dict[int, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    for batch in _batches(tests, TOKENS_AT_ONCE.get(model.device.type, 1)):
        longest = max(tests[number].facts[0]["length"] for number in batch)
        with apply(model, way.policy(longest), implementation=implementation) as applied, torch.inference_mode():
            responses = _generate(model, applied, [tests[number] for number in batch], setting)
            facts = applied.facts
        for number, response in zip(batch, responses, strict=True):
            fact = tests[number].facts[0]
            told = {name: fact[name] for name in ("needle", "length", "depth")}
            recall = word_recall(fact["answer"], response, asked[fact["needle"]])
            made[number] = {"test": number, **told, "recall": recall, "word_recall": word_recall(fact["answer"], response), "response": response}
    return [made[number] for number in range(len(tests))], facts


def _batches(tests: list[Prompts], tokens: int) -> Iterator[list[int]]:
    """The numbers of tests that are answered together: those of one length (a window may depend on it), so many tokens at a time."""
    by_length: dict[int, list[int]] = {}
    for number, test in enumerate(tests):
        by_length.setdefault(test.facts[0]["length"], []).append(number)
    for length, numbers in by_length.items():
        size = max(1, tokens // length)
        yield from (numbers[begin : begin + size] for begin in range(0, len(numbers), size))


def _generate(model: HFModel, applied: Applied, tests: list[Prompts], setting: Setting) -> list[str]:
    """The first line of each greedy answer."""
    longest = max(test.length for test in tests)
    ids = torch.zeros(len(tests), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, test in enumerate(tests):
        ids[row, longest - test.length :] = torch.tensor(test.ids_BT[0])
        mask[row, longest - test.length :] = 1
    end = model.tokenizer.eos_token_id
    how = {"max_new_tokens": setting.answer_tokens, "do_sample": False, "pad_token_id": 0 if end is None else end, "prefill_chunk_size": setting.chunk}
    made = applied.generate(ids.to(model.device), attention_mask=mask.to(model.device), **how)
    answers = model.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
    return [answer.strip().partition("\n")[0] for answer in answers]


def _text(model: HFModel, setting: Setting) -> tuple[Tensor, str]:
    """The tokens [1, T] that are read, and a hash of the text they are from."""
    content, digest = haystack_text(setting.text or setting.tests.haystack)
    ids = model.tokenizer(content[: setting.text_tokens * 12], add_special_tokens=False)["input_ids"]
    whole = [*bos(model), *ids][: setting.text_tokens]
    if len(whole) < setting.text_tokens:
        raise InputError(f"the text has {len(whole)} tokens, {setting.text_tokens} are to be read")
    return torch.tensor([whole], device=model.device), digest


def _read(model: HFModel, policy: HeadPolicy, ids_1T: Tensor, implementation: str, chunk: int) -> tuple[float, np.ndarray]:
    """Mean negative log-likelihood per token in nats, and the first choice [T − 1] behind every token."""
    nll, choices = 0.0, []
    with apply(model, policy, implementation=implementation) as applied, torch.inference_mode():
        cache = applied.cache()
        for piece in ids_1T.split(chunk, dim=1):
            begin = cache.get_seq_length()
            logits = applied.hf(piece, past_key_values=cache, use_cache=True).logits[0].float()
            after = ids_1T[0, begin + 1 : begin + 1 + logits.shape[0]]
            logits = logits[: len(after)]
            nll += float(torch.nn.functional.cross_entropy(logits, after, reduction="sum"))
            choices.append(logits.argmax(-1).cpu().numpy())
    return nll / (ids_1T.shape[1] - 1), np.concatenate(choices)
