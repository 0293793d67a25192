"""How is a small transformer grown, so that one can see its heads appear? On text and on repeated random segments, with checkpoints on the way.

1. Half of each batch are pieces of the language reference that every Python carries (its last tenth is held out), half are segments of random tokens,
   each of another length, repeated to the end: what stood before says what comes next, so that induction pays. BOS stands first, as in every prompt.
2. Next-token loss on all of it, AdamW, the learning rate warmed up and lowered along a cosine. 3. At `milestones`, close together on a logarithmic
   scale, the model is saved as an ordinary folder with its tokenizer of bytes, and two losses are taken: on held-out text, and on a repeated block.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.emergence.sigmoid import SigmoidConfig, SigmoidLlama, SigmoidModel
from workbench.errors import InputError, unknown
from workbench.files import write_text
from workbench.models import HFModel, choose_device
from workbench.prompts import bos
from workbench.recipes import RepeatedTokens, haystack_text, offsets
from workbench.runs import versions
from workbench.tiny import VOCABULARY, byte_tokenizer

ATTENTIONS = ("softmax", "sigmoid")
HELD_OUT = 0.1
"""The share of the text that is not trained on: its end."""

SHORTEST = 4
"""Tokens of the shortest repeated segment; the longest fits twice, and lengths between are drawn evenly on a logarithmic scale."""

WARM, LAST = 100, 0.1
"""Steps over which the learning rate rises, and the share of it that is left at the end."""

BYTES = (3, 259)
"""The ids of the 256 bytes in the tokenizer of bytes, the end excluded."""


@dataclass(frozen=True)
class Growth:
    """What is grown, on what, and how: a Llama of `layers` × `heads`, each of `size` dimensions, and a residual stream of `width`.

    A step sees `batch` sequences of `context` tokens.

    `attention` is softmax, or sigmoid without normalisation. `weight_decay` is AdamW's, of all weights. `repeats` is the share of repeated segments.
    """

    layers: int = 2
    heads: int = 2
    size: int = 32
    width: int = 64
    context: int = 128
    batch: int = 32
    repeats: float = 0.5
    steps: int = 2000
    rate: float = 3e-3
    weight_decay: float = 0.1
    attention: str = "softmax"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise unknown("attention", self.attention, ATTENTIONS)
        if min(self.layers, self.heads, self.steps, self.batch) < 1 or self.width < 1 or self.size < 2 or self.size % 2 or self.context < 4 * SHORTEST:
            raise InputError(
                f"a model is grown with layers, heads, steps, batch and width ≥ 1, an even head size, and a context of {4 * SHORTEST} or more; got {self}"
            )
        if not (self.rate > 0 and self.weight_decay >= 0 and 0 <= self.repeats <= 1):
            raise InputError(f"a model is grown with rate > 0, weight decay ≥ 0 and a share of repeats of 0–1; got {self}")

    def model(self) -> HFModel:
        """The model before the first step; the same seed gives the same weights."""
        sizes: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "head_dim": self.size,
            "intermediate_size": 2 * self.width,
            "max_position_embeddings": self.context,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        name, origin = f"grown-{self.attention}", f"grown by the workbench, seed {self.seed}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.attention == "sigmoid":
                return SigmoidModel(name, origin, SigmoidLlama(SigmoidConfig(**sizes)), byte_tokenizer())
            return HFModel(name, origin, LlamaForCausalLM(LlamaConfig(**sizes)), byte_tokenizer())


class Losses(NamedTuple):
    """Mean losses in nats per token: on held-out text, and on the two halves of a block of random tokens that is repeated once (chance: ln 256 = 5.55)."""

    text: float
    first: float
    second: float


def milestones(steps: int) -> list[int]:
    """The steps at which a model is kept: 0, 8, 16, 32, from 64 on four in every doubling, and the last."""
    quarters = {round(64 * 2 ** (number / 4)) for number in range(4 * max(0, steps.bit_length() - 6) + 1)}
    return sorted({step for step in {0, 8, 16, 32, *quarters} if step < steps} | {steps})


def checkpoints(growth: Growth, folder: Path) -> list[tuple[int, Path]]:
    """The steps at which `grow` keeps a model, with their folders."""
    return [(step, folder / f"step-{step:06d}") for step in milestones(growth.steps)]


def batches(growth: Growth, ids_T: Int[np.ndarray, " T"], start: list[int]) -> Iterator[Int[np.ndarray, "B T"]]:
    """Batches without end: pieces of the text, and repeated segments of random bytes, in the asked shares, `start` in front of each."""
    rng, body = np.random.default_rng(growth.seed), growth.context - len(start)
    count = round(growth.repeats * growth.batch)
    while True:
        begins = rng.integers(0, len(ids_T) - body, growth.batch - count)
        pieces = [ids_T[begin : begin + body] for begin in begins]
        sizes = np.exp(rng.uniform(np.log(SHORTEST), np.log(body // 2), count)).astype(int)
        pieces += [np.resize(rng.integers(*BYTES, size), body) for size in sizes]
        yield np.array([[*start, *piece] for piece in pieces], np.int64)


def losses(model: HFModel, growth: Growth, count: int = 32) -> Losses:
    """The losses of a model on `count` held-out pieces, and on as many repeated blocks; the same for every model that was grown alike."""
    ids_T, start = _text(model)[1], bos(model)
    body = growth.context - len(start)
    begins = np.linspace(0, len(ids_T) - body, count).astype(int)
    text_BT = np.array([[*start, *ids_T[begin : begin + body]] for begin in begins])
    blocks = RepeatedTokens(length=body // 2, count=count, batch=count).build(model, 10_000)[0].ids_BT
    half = len(start) + body // 2
    lost_BT = _lost(model, blocks)
    return Losses(float(_lost(model, text_BT).mean()), float(lost_BT[:, : half - 1].mean()), float(lost_BT[:, half:].mean()))


def grow(growth: Growth, folder: Path, *, device: str = "auto", say: Callable[[str], None] = lambda _: None) -> list[tuple[int, Path]]:
    """Train a model and keep it at its `milestones` under `folder`; returns the steps with their folders.

    `folder/growth.json` has the settings, versions, seconds, and the training loss of every step. The same seed on the same device, with as many threads,
    gives the same model. Raises `InputError` if the loss is no longer finite.
    """
    model = growth.model()
    hf = model.hf.to(choose_device(device)).train().requires_grad_(True)
    name, (train_T, _), keep = haystack_text(None)[1], _text(model), dict(checkpoints(growth, folder))
    optimizer = torch.optim.AdamW(hf.parameters(), lr=growth.rate, weight_decay=growth.weight_decay, betas=(0.9, 0.95))
    drawn, lost, begin = batches(growth, train_T, bos(model)), [], perf_counter()
    for step in range(growth.steps + 1):
        if step in keep:
            _keep(model, keep[step])
        if step == growth.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = growth.rate * _rate(step, growth.steps)
        ids_BT = torch.tensor(next(drawn), device=model.device)
        loss = _next(hf(ids_BT[:, :-1], use_cache=False).logits, ids_BT).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        lost.append(round(float(loss.detach()), 4))
        if not np.isfinite(lost[-1]):
            raise InputError(f"step {step + 1}: the loss is {lost[-1]}; take a lower rate")
        if (step + 1) % 200 == 0:
            say(f"step {step + 1} of {growth.steps}: loss {np.mean(lost[-200:]):.3f}, {perf_counter() - begin:.0f} s")
    facts = {**asdict(growth), "text": name, "device": model.device.type, "threads": torch.get_num_threads(), "versions": versions()}
    write_text(folder / "growth.json", json.dumps({**facts, "seconds": round(perf_counter() - begin, 1), "loss": lost}) + "\n")
    return list(keep.items())


def _keep(model: HFModel, folder: Path) -> None:
    """Write the model as a folder that transformers opens."""
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _text(model: HFModel) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the text that is trained on, and of the text that is held out."""
    ids_T = offsets(model, haystack_text(None)[0])[0]
    cut = round(len(ids_T) * (1 - HELD_OUT))
    return ids_T[:cut], ids_T[cut:]


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step."""
    return min(1.0, (step + 1) / WARM) * (LAST + (1 - LAST) * (1 + cos(pi * step / steps)) / 2)


def _next(logit_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """The loss of every token but the first, [B, T − 1]."""
    return cross_entropy(logit_BTV.float().transpose(1, 2), ids_BT[:, 1:], reduction="none")


def _lost(model: HFModel, ids_BT: Any) -> Tensor:
    with torch.inference_mode():
        given_BT = torch.tensor(np.asarray(ids_BT), device=model.device)
        return _next(model.hf(given_BT[:, :-1], use_cache=False).logits, given_BT).cpu()
