"""What does one way do? The answers to the needle tests under its policy, and the loss and first choices on the text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import InputError
from workbench.kernels.applied import Applied, apply
from workbench.matching import word_recall
from workbench.models import HFModel
from workbench.needle_files import load_needles
from workbench.policies import HeadPolicy
from workbench.prompts import Prompts, bos
from workbench.recipes import haystack_text
from workbench.verification.ways import Setting, Way, ways

TOKENS_AT_ONCE = {"cpu": 1, "cuda": 2**16}
"""Tokens of the needle tests that are answered together; at least one test is."""

PIECE = 512
"""Tokens of the text that go through the model at once."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What one way was found to do: a row for every needle test, loss and first choices [T − 1] on the text, and what made them."""

    shown: dict[str, Any]
    answers: list[dict[str, Any]]
    kv_share: float
    nll: float
    choice: np.ndarray
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Given:
    """What every way reads: the needle tests, the tokens of the text [1, T], and a hash of the text they are from."""

    tests: list[Prompts]
    text_1T: Tensor
    haystack: str

    @classmethod
    def of(cls, model: HFModel, setting: Setting) -> "Given":
        """What a setting means for a model. Raises `InputError` for tests or a text that cannot be made."""
        return cls(setting.tests.build(model, setting.seed), *_text(model, setting))


def measured(
    model: HFModel,
    policy: HeadPolicy,
    rankings: Mapping[str, np.ndarray],
    setting: Setting,
    number: int,
    *,
    saved: bool = False,
    implementation: str = "auto",
    given: Given | None = None,
) -> Measured:
    """Measure one way, by its number in `ways`. `given` is what the setting reads, if it has been made before. Raises `InputError` as `verify` does."""
    policy = checked(model, policy, setting)
    given = given or Given.of(model, setting)
    tests, text = given.tests, given.text_1T
    way = list(ways(policy, rankings, setting, saved=saved))[number]
    answers, ran = _answers(model, way, tests, setting, implementation)
    nll, choice = _read(model, way.policy(text.shape[1]), text, implementation, setting.chunk or PIECE)
    shown = {"policy": way.name, "budget": way.budget, "seed": way.seed, "full_heads": int(way.policy(0).full_LG[policy.layers].sum())}
    share = float(np.mean([way.policy(test.length).share(test.length) for test in tests]))
    place = {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch."), **ran, "haystack": given.haystack}
    sizes = {name: getattr(policy, name) for name in ("sinks", "window", "semantics", "compensation")}
    return Measured(shown, answers, share, nll, choice, {"model": model.name, "fingerprint": model.fingerprint, **sizes, **place})


def checked(model: HFModel, policy: HeadPolicy, setting: Setting) -> HeadPolicy:
    """The policy with the model's windows. Raises `InputError` for what cannot be measured."""
    policy.check_model(model.card)
    if policy.semantics == "chunk" and not setting.chunk:
        raise InputError("the semantics `chunk` depends on how long chunks are; give a chunk size")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; needle tests need one")
    return policy.with_windows(model.windows)


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
