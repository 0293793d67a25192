"""Which heads does a program need, for certain? Programs in RASP, compiled to weights by Tracr (Lindner et al. 2023, arXiv 2301.05062; `tracr-pypi`).

The compiled transformer is put into a GPT-2 without norms: coordinates and head sizes are filled up with zeros, MLPs are relu, and
scores are divided by the root of Tracr's own key size. Tracr fills its layers up with heads that do nothing: ranking live heads above them is easy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import GPT2Config, PreTrainedTokenizerFast

from workbench.circuits.compiled_ioi import without_norms
from workbench.errors import InputError, unknown
from workbench.heads import Head
from workbench.models import HFModel

START, PADDING = "<s>", "<pad>"

LETTERS, DIGITS = ("a", "b", "c", "d"), (1, 2, 3, 4)


@dataclass(frozen=True)
class Program:
    """A program: what it computes, over which values, and how `tracr.compiler.lib` makes it from `tracr.rasp.rasp`, given the longest sequence."""

    about: str
    values: tuple[str | int, ...]
    make: Callable[[Any, Any, int], Any]


PROGRAMS = {
    "reverse": Program("the sequence backwards; seen causally, the first value", LETTERS, lambda lib, rasp, _: lib.make_reverse(rasp.tokens)),
    "frac_prevs": Program("the share of a among the values so far (a number)", LETTERS, lambda lib, rasp, _: lib.make_frac_prevs(rasp.tokens == "a")),
    "hist": Program("how often the value occurs so far", LETTERS, lambda lib, rasp, _: lib.make_hist()),
    "sort": Program("the values in order", DIGITS, lambda lib, rasp, length: lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=length, min_key=1)),
    "sort_freq": Program("the values in the order of their frequency", LETTERS, lambda lib, rasp, length: lib.make_sort_freq(length)),
    "shift": Program("the value before", LETTERS, lambda lib, rasp, _: lib.shift_by(1, rasp.tokens)),
    "dyck": Program("whether brackets of two kinds are balanced", ("(", ")", "{", "}"), lambda lib, rasp, _: lib.make_shuffle_dyck(["()", "{}"])),
}
"""The programs known by name. What they compute is meant for a model that sees all; a causal one computes it from what it has seen."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled program: the model, the values its outputs stand for (none if it computes a number), and the heads that write anything.

    `tracr` is Tracr's own model, for comparison.
    """

    model: HFModel
    outputs: tuple[Any, ...]
    live: frozenset[Head]
    tracr: Any

    def run(self, values: list[Any]) -> list[Any]:
        """What the program puts out for a sequence of values: one value (or number) for each."""
        ids = [self.tracr.input_encoder.encoding_map[value] for value in (START, *values)]
        logit_TV = self.model.hf(torch.tensor([ids]), use_cache=False).logits[0, 1:]
        if not self.outputs:
            return logit_TV[:, 0].tolist()
        return [self.outputs[index] for index in logit_TV[:, : len(self.outputs)].argmax(-1).tolist()]


def compiled_program(name: str, length: int = 6) -> Compiled:
    """Compile one of `PROGRAMS` for sequences of up to `length` values, causally, as a GPT-2 without norms.

    Ids are those of Tracr's encoder; the first token is `<s>`. A program that computes a number gives it as logit 0. Takes seconds. Raises `InputError`
    for an unknown name, for a length below 2, and if `tracr-pypi` is not installed.
    """
    if name not in PROGRAMS:
        raise unknown("program", name, PROGRAMS)
    if length < 2:
        raise InputError(f"programs work on sequences of two values or more, not {length}")
    if find_spec("tracr") is None:
        raise InputError("compiled programs need Tracr; install it: pip install tracr-pypi")
    lib, rasp, compiling = (import_module(f"tracr.{part}") for part in ("compiler.lib", "rasp.rasp", "compiler.compiling"))
    program = PROGRAMS[name]
    made = program.make(lib, rasp, length)
    ours = compiling.compile_rasp_to_model(made, set(program.values), length, causal=True, compiler_bos=START, compiler_pad=PADDING)
    unembed_DV = _unembedding(ours)
    numeric = ours.output_encoder is None or not hasattr(ours.output_encoder, "encoding_map")
    outputs = () if numeric else tuple(sorted(ours.output_encoder.encoding_map, key=ours.output_encoder.encoding_map.get))
    hf = _converted(ours, unembed_DV)
    model = HFModel(f"tracr-{name}", f"RASP program {name}, up to {length} values", hf, _tokenizer(ours.input_encoder.encoding_map))
    shape = model.shape
    heads = [Head(layer, index) for layer in range(shape.n_layers) for index in range(shape.n_heads)]
    return Compiled(model, outputs, frozenset(head for head in heads if model.weights.o(head).any()), ours)


def _unembedding(ours: Any) -> Float[Tensor, "D V"]:
    """From the residual stream to output values, as Tracr does it before it takes the largest."""
    haiku = import_module("haiku")
    size = len(ours.residual_labels)
    read = haiku.without_apply_rng(haiku.transform(lambda x: ours.get_compiled_model().unembed(x, use_unembed_argmax=False)))
    return _tensor(read.apply(ours.params, np.eye(size, dtype=np.float32))).reshape(size, -1)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _filled(weight: Tensor, *size: int) -> Tensor:
    """A tensor with zeros behind it in every dimension."""
    larger = torch.zeros(size)
    larger[tuple(slice(part) for part in weight.shape)] = weight
    return larger


def _converted(ours: Any, unembed_DV: Tensor) -> Any:
    settings, size = ours.model_config, len(ours.residual_labels)
    token_VD, place_TD = (_tensor(ours.params[name]["embeddings"]) for name in ("token_embed", "pos_embed"))
    inner = max(settings.key_size, -(-size // settings.num_heads))
    width, vocabulary = inner * settings.num_heads, max(len(token_VD), unembed_DV.shape[1])
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=len(place_TD), n_embd=width, n_layer=settings.num_layers, n_head=settings.num_heads,
        n_inner=settings.mlp_hidden_size, activation_function="relu", scale_attn_weights=False, tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    hf = without_norms(config)
    hf.transformer.wte.weight.data = _filled(token_VD, vocabulary, width)
    hf.transformer.wpe.weight.data = _filled(place_TD, len(place_TD), width)
    hf.lm_head.weight.data = _filled(unembed_DV.T, vocabulary, width)
    for layer, block in enumerate(hf.transformer.h):
        _fill_block(block, partial(_part, ours, layer), settings, inner)
    return hf


def _part(ours: Any, layer: int, name: str) -> tuple[Tensor, Tensor]:
    """Weight [in, out] and bias of a linear part of a layer."""
    found = ours.params[f"transformer/layer_{layer}/{name}"]
    return _tensor(found["w"]), _tensor(found["b"])


def _fill_block(block: Any, part: Callable[[str], tuple[Tensor, Tensor]], settings: Any, inner: int) -> None:
    heads, key, width = settings.num_heads, settings.key_size, inner * settings.num_heads
    weights, biases = [], []
    for name, factor in (("query", key**-0.5), ("key", 1.0), ("value", 1.0)):
        weight, bias = part(f"attn/{name}")
        weights.append(_filled(factor * weight.unflatten(1, (heads, key)), width, heads, inner).flatten(1))
        biases.append(_filled(factor * bias.unflatten(0, (heads, key)), heads, inner).flatten())
    block.attn.c_attn.weight.data, block.attn.c_attn.bias.data = torch.cat(weights, dim=1), torch.cat(biases)
    weight, bias = part("attn/linear")
    block.attn.c_proj.weight.data = _filled(weight.unflatten(0, (heads, key)), heads, inner, width).flatten(0, 1)
    block.attn.c_proj.bias.data = _filled(bias, width)
    (first, first_bias), (second, second_bias) = part("mlp/linear_1"), part("mlp/linear_2")
    block.mlp.c_fc.weight.data, block.mlp.c_fc.bias.data = _filled(first, width, settings.mlp_hidden_size), first_bias
    block.mlp.c_proj.weight.data, block.mlp.c_proj.bias.data = _filled(second, settings.mlp_hidden_size, width), _filled(second_bias, width)


def _tokenizer(encoding: dict[Any, int]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(vocab={str(value): number for value, number in encoding.items()}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, encoding[START])])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=START, pad_token=PADDING)
