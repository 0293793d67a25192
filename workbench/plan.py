"""What will it cost? Time and memory of a capture, by arithmetic from the model's configuration and the prompts' lengths; no weights are loaded."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from transformers import AutoTokenizer

from workbench.errors import InputError
from workbench.groups import Group, plan
from workbench.heads import Shape
from workbench.loading import choose_device, choose_dtype, empty
from workbench.models import HFModel
from workbench.needles import NeedleTests
from workbench.ops.blocked import ELEMENTS
from workbench.recall.measuring import Setting
from workbench.sources import Source

SPEED = {"cpu": 40e9, "cuda": 60e12, "mps": 2e12}
"""Floating-point operations per second that are assumed for each kind of device (per thread on a CPU), small operations and waiting included."""

FORWARD_OVERHEAD = {"cpu": 0.1, "cuda": 0.06, "mps": 0.1}
"""Seconds that every forward pass is assumed to take however short its prompt."""

RUNTIME_BYTES = 2 * 2**30
"""What Python, PyTorch and transformers are assumed to hold beside the weights, memory that was freed but not given back included (measured on the CPU)."""


LINK = 8e9
"""Bytes per second at which offloaded weights reach a GPU, as measured on an H100 (`benchmarks/offload.py`): pageable memory does not fill its PCIe."""

FILLED = 0.9
"""The share of a GPU's memory that transformers fills with weights, if there is one GPU and nothing else is asked for."""

BLOCK_SCORES = max(ELEMENTS.values())
"""How many scores a block may have."""

ANSWER_TOKENS = 50
"""How many tokens a generated answer is assumed to take."""


@dataclass(frozen=True)
class Size:
    """What an estimate needs to know of a model: its shape, all parameters, those of the embeddings, and the vocabulary."""

    shape: Shape
    parameters: int
    embedding: int
    vocabulary: int


@dataclass(frozen=True)
class Estimate:
    """Expected wall-clock `seconds`, peak `bytes` of memory, `forwards` and `tokens` of a run, and the `assumptions` behind them."""

    seconds: float
    bytes: float
    forwards: int
    tokens: int
    assumptions: tuple[str, ...]

    @property
    def words(self) -> str:
        """What it will take, in words."""
        spent = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min" if self.seconds < 7200 else f"{self.seconds / 3600:.1f} h"
        passes = "one forward pass" if self.forwards == 1 else f"{self.forwards:,} forward passes"
        return f"about {spent} and {self.bytes / 2**30:.1f} GiB for {passes} over {self.tokens:,} tokens"


@dataclass(frozen=True)
class Pass:
    """One forward pass: `batch` prompts of `length` tokens; `steps` more tokens if an answer is generated."""

    length: int
    batch: int = 1
    steps: int = 0


class Sketch(HFModel):
    """A model without its weights: shape, context, tokenizer and the number of parameters, which is what an estimate needs."""

    fingerprint = ""


def size_of(model: HFModel) -> Size:
    """The sizes of a loaded or sketched model."""
    embedding = model.hf.get_input_embeddings().weight
    return Size(model.shape, sum(weight.numel() for weight in model.hf.parameters()), embedding.numel(), model.vocabulary)


def away(model: HFModel) -> float:
    """Bytes of a loaded model's weights that are offloaded, and fetched in every pass."""
    return float(sum(weight.nbytes for weight in model.hf.parameters() if weight.is_meta))


def room(gpu_memory: float | None) -> float:
    """Bytes that weights may take of the GPUs of this machine, `gpu_memory` GiB of each; where it has none, of one that is to be imagined.

    Raises `InputError` where it has none and `gpu_memory` says nothing.
    """
    gpus = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    if gpu_memory is None and not gpus:
        raise InputError("this machine has no GPU to offload from; to plan for another, say with --gpu-memory how many GiB weights may take there")
    return sum(gpus) * FILLED if gpu_memory is None else gpu_memory * 2**30 * max(1, len(gpus))


def upto(size: Size, layer: int) -> Size:
    """The sizes of the same model without the layers behind `layer`: a pass that ends there."""
    share = (layer + 1) / size.shape.n_layers
    blocks = round((size.parameters - size.embedding) * share)
    return replace(size, shape=replace(size.shape, n_layers=layer + 1), parameters=size.embedding + blocks)


def of_pass(model: HFModel, length: int, layer: int) -> Estimate:
    """What one pass over `length` tokens that ends in a layer takes where models run by default; a `sketch` of the model will do."""
    place = choose_device("auto")
    return estimate(upto(size_of(model), layer), [Pass(length)], device=place.type, dtype_bytes=choose_dtype("auto", place).itemsize)


def passes_of(model: HFModel, groups: Iterable[Group]) -> list[Pass]:
    """Every forward pass that the groups of `groups.plan` take, those of the nulls included; none for probes of the weights.

    Raises `InputError` for tests longer than the model's context, and for needles that cannot be read.
    """
    passes = []
    for group in groups:
        recipes = [group.recipe, group.recipe.control()] if group.recipe is not None else []
        for recipe in filter(None, recipes):
            lengths, batch = recipe.lengths(model), getattr(recipe, "batch", 1)
            if max(lengths) > model.positions:
                raise InputError(f"{max(lengths)} tokens do not fit {model.name}, which has {model.positions} learned positions; give shorter --lengths")
            steps = ANSWER_TOKENS if isinstance(recipe, NeedleTests) and not recipe.teacher_forced else 0
            passes += [Pass(length, min(batch, len(lengths) - start), steps) for start, length in list(enumerate(lengths))[::batch]]
    return passes


def of_probes(model: HFModel, preset: str = "quick") -> Estimate:
    """The cost of `measure.score` with all probes where the model, loaded or sketched, would be by default. Raises `InputError` for tests that do not fit."""
    place = choose_device("auto")
    return estimate(size_of(model), passes_of(model, plan(preset=preset)), device=place.type, dtype_bytes=choose_dtype("auto", place).itemsize)


def of_recall(model: HFModel, setting: Setting) -> Estimate:
    """The cost of `recall.measure` where the model, loaded or sketched, would be by default. Raises `InputError` for tests longer than the model's context."""
    setting.check(model)
    place = choose_device("auto")
    passes = [Pass(length, steps=setting.answer_tokens) for length in setting.answers(model)]
    return estimate(size_of(model), passes, device=place.type, dtype_bytes=choose_dtype("auto", place).itemsize)


def sketch(source: Source) -> Sketch:
    """Read a model's configuration and tokenizer, no weights. Raises `InputError` where they cannot be read."""
    hf = empty(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # readers of tokenizers raise what they like on broken files
        raise InputError(f"cannot read the tokenizer of {source.origin}: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
    return Sketch(source.name, source.origin, hf, tokenizer, source.revision)


def estimate(size: Size, passes: Iterable[Pass], *, device: str = "cpu", dtype_bytes: int = 4, threads: int | None = None, offloaded: float = 0) -> Estimate:
    """The cost of a run of forward passes, in each of which `offloaded` bytes of weights are fetched.

    Operations: 2 × parameters × tokens without the embeddings, and for attention 4 × layers × heads × head size × tokens² and half as much again, for
    the statistics. Memory: weights, activations and logits of the longest pass, and two blocks of scores; no part of it grows with tokens².
    Expect it to be right within a factor of about two. `threads` are PyTorch's unless given.
    """
    passes, shape = list(passes), size.shape
    speed = SPEED[device] * ((threads or torch.get_num_threads()) if device == "cpu" else 1)
    operations = sum(_operations(size, one) for one in passes)
    tokens = sum(one.batch * (one.length + one.steps) for one in passes)
    forwards = sum(1 + one.steps for one in passes)
    memory = RUNTIME_BYTES + size.parameters * dtype_bytes - offloaded + max((_working_bytes(size, one, dtype_bytes) for one in passes), default=0)
    assumptions = (
        f"{speed / 1e9:,.0f} GFLOP/s and {FORWARD_OVERHEAD[device] * 1e3:.0f} ms per forward on {device.upper()}",
        f"{size.parameters / 1e6:,.0f} M parameters of {dtype_bytes} bytes, {shape.n_layers} layers × {shape.n_heads} query heads of size {shape.d_head}",
        f"{RUNTIME_BYTES / 2**20:.0f} MiB for Python and its libraries",
        "right within a factor of about two; time to load or fetch the model is not counted",
    )
    if device == "cpu" and dtype_bytes < 4:
        assumptions += ("this CPU has instructions for 16-bit numbers; without them it takes several times as long as with --dtype float32",)
    if offloaded:
        fetched = f"{offloaded / 2**30:.1f} GiB of weights do not fit and are fetched in each of {forwards:,} forwards"
        assumptions += (f"{fetched}: {offloaded / LINK:.2g} s each at {LINK / 1e9:.0f} GB/s, as measured on an H100",)
    return Estimate(operations / speed + forwards * (FORWARD_OVERHEAD[device] + offloaded / LINK), memory, forwards, tokens, assumptions)


def _operations(size: Size, one: Pass) -> float:
    shape, whole = size.shape, one.length + one.steps
    dense = 2 * (size.parameters - size.embedding) * whole
    attention = 1.5 * 4 * shape.n_layers * shape.n_heads * shape.d_head * whole**2
    return one.batch * (dense + attention)


def _working_bytes(size: Size, one: Pass, dtype_bytes: int) -> float:
    shape, whole = size.shape, one.length + one.steps
    scores = 2 * 4 * BLOCK_SCORES / one.batch
    activations = dtype_bytes * whole * (6 * shape.d_model + 8 * shape.d_model)
    cache = 2 * dtype_bytes * shape.n_layers * shape.n_kv_heads * shape.d_head * whole if one.steps else 0
    logits = 2 * 4 * size.vocabulary
    return one.batch * (scores + activations + cache + logits)
