"""What do two processes find that one finds alone? torchrun starts this twice; each rank measures tiny models both ways and leaves what it found in a folder.

python -m torch.distributed.run --nproc-per-node 2 tests/sharded.py FOLDER
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers.utils import logging

from workbench import measure
from workbench.captures import Capture, capture, generate
from workbench.circuits.anatomy import Anatomy
from workbench.edits import Ablate, Calibrate, Redistribute, Reference, Stream
from workbench.errors import InputError
from workbench.heads import Head
from workbench.kernels import apply
from workbench.models import HFModel, load
from workbench.options import Options
from workbench.policies import SEMANTICS, HeadPolicy
from workbench.prompts import Prompts
from workbench.reads import BlockOutput, Entropy, HeadOutput, Mass, NextToken, Pattern, Peak, QueryKey, Received, Written
from workbench.tiny import random_model

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_neox")
"""All that are supported but gpt2, of which transformers has no plan."""

DEEP = "llama of four layers"
"""Which two ranks cannot split the vocabulary of: they hold embeddings and logits whole."""
READS = (Mass(first=2), Entropy(), Peak(), Received(), HeadOutput(), Written(), BlockOutput(), NextToken())
TEXTS = ["the cat sat on the mat and the dog sat on the log", "the cat sat on the mat and the"]


def plain(seen: Capture) -> dict[str, Any]:
    """A capture as plain data: values by read, what edits found, provenance."""
    values = {str(read): tuple(value) if isinstance(value, tuple) else (value,) for read, value in seen.values.items()}
    return {"values": values, "found": seen.found, "provenance": dict(seen.provenance)}


def heads_of(model: HFModel) -> tuple[Head, ...]:
    """Heads of both ranks, and a layer in which only one rank has some."""
    return (Head(0, 0), Head(0, model.shape.n_heads - 1), Head(1, 1))


def captures(model: HFModel) -> dict[str, dict]:
    """Captures with every edit, padded, in chunks, of some layers."""
    shape, heads = model.shape, heads_of(model)
    prompts = Prompts.from_text(model, TEXTS)
    reference = Reference(np.random.default_rng(3).normal(size=(2, shape.n_layers, shape.n_heads, 12, shape.d_head)).astype(np.float32))
    edits = {
        "nothing": [],
        "zero": [Ablate(heads)],
        "uniform": [Ablate(heads, "uniform")],
        "mean": [Ablate(heads, "mean", reference=reference)],
        "resample": [Ablate(heads, "resample", reference=reference)],
        "calibrate": [Calibrate()],
        "calibrate some, then ablate": [Calibrate(heads), Ablate(heads[:1])],
        **({} if model.windows[0] else {"stream": [Stream(2, 8, heads)]}),
    }
    seen = {name: capture(model, prompts, READS, edit) for name, edit in edits.items()}
    seen["reference implementation"] = capture(model, prompts, READS, edits["calibrate some, then ablate"], implementation="reference")
    alone = prompts.only(0)
    seen["in chunks"] = capture(model, alone, READS, [Ablate(heads), Calibrate(heads, find="running")], chunk=16)
    seen["one layer, some rows"] = capture(model, alone, (Mass(first=2), Received()), layers=[1], sample=8)
    seen["generated"] = generate(model, alone, [Mass(first=2, rows="answer"), Entropy(rows="answer")], max_new_tokens=6, edits=[Ablate(heads, phase="decode")])
    return {name: plain(one) for name, one in seen.items()}


def redistributed(model: HFModel) -> dict[str, Any]:
    """A capture in which every token of a span is a sink."""
    prompts = Prompts.from_text(model, TEXTS[0])
    spans = Prompts(prompts.ids_BT, {"image": np.array([[2, 9]])})
    return plain(capture(model, spans, READS, [Redistribute(("image",), (0, 5), tau=0.5, least=0.0, rho=0.0, heads=tuple(Head(2, index) for index in (1, 3)))]))


def policies(model: HFModel) -> dict[str, list[np.ndarray]]:
    """Logits of a prompt, of its first token behind it, and what is generated, under a policy of each semantics."""
    if None not in model.windows:
        return {}  # there is nothing for a policy to decide
    shape = model.shape
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 259, (2, 60)))
    full_LG = np.random.default_rng(1).random((shape.n_layers, shape.n_kv_heads)) < 0.5
    full_LG[0, 0], full_LG[-1, -1] = True, False
    found = {}
    for semantics in SEMANTICS:
        policy = HeadPolicy(model.card, full_LG, sinks=2, window=8, semantics=semantics, compensation=semantics == "exact")
        with torch.no_grad(), apply(model, policy) as applied:
            cache = applied.cache(100)
            logits = [applied.hf(part, past_key_values=cache).logits for part in (ids, ids[:, :1])]
            found[semantics] = [part.float().numpy() for part in (*logits, applied.generate(ids, max_new_tokens=6, do_sample=False))]
    return found


def refusals(model: HFModel, folder: Path) -> dict[str, str]:
    """What is said of things that cannot be done."""
    tries = {
        "gpt2": lambda: load(str(folder / "gpt2"), tensor_parallel=True),
        "three heads": lambda: load(str(folder / "three heads"), tensor_parallel=True),
        "no model": lambda: load(str(folder / "nowhere"), tensor_parallel=True),
        "device": lambda: load(str(folder / "llama"), device="cuda:1", tensor_parallel=True),
        "pattern": lambda: capture(model, TEXTS[0], [Pattern()]),
        "queries": lambda: capture(model, TEXTS[0], [QueryKey()]),
        "heads": lambda: capture(model, TEXTS[0], [Entropy()], [Ablate((Head(0, 99),))]),
        "weights": lambda: model.weights,
        "lens": lambda: model.lens,
        "circuits": lambda: Anatomy(model, 8).learn(),
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
            said[name] = "nothing"
        except InputError as error:
            said[name] = str(error)
    return said


def saved(folder: Path) -> None:
    """The models, as a user would have them, and a short text to make prompts of."""
    (folder / "text.txt").write_text(" ".join(f"In year {year} the river rose by {year * 7 % 91} feet." for year in range(300)), encoding="utf-8")
    few = {"num_attention_heads": 3, "num_key_value_heads": 3}
    models = {name: random_model(name) for name in (*ARCHITECTURES, "gpt2")}
    models |= {"three heads": random_model("llama", **few), DEEP: random_model("llama", num_hidden_layers=4, vocab_size=261)}
    for name, model in models.items():
        model.hf.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)


def measured(folder: Path, rank: int) -> dict[str, Any]:
    """What this rank finds: of every model together, and of every second by itself."""
    options = Options(lengths=(450,), depths=(0.5,), haystack=folder / "text.txt")
    found: dict[str, Any] = {}
    for number, name in enumerate(ARCHITECTURES):
        ways = {"together": load(str(folder / name), tensor_parallel=True)}
        if number % 2 == rank:
            ways["alone"] = load(str(folder / name), device="cpu")
        for way, model in ways.items():
            kept = folder / "runs" if way == "together" else None
            scores = measure.score(model, options=options, runs=kept)
            found[name, way] = {"card": model.card, "table": scores.table, "evidence": dict(scores.evidence)} | {
                "captures": captures(model),
                "policies": policies(model),
            }
    deep = {"together": load(str(folder / DEEP), tensor_parallel=True), "alone": load(str(folder / DEEP), device="cpu")}
    found |= {(DEEP, way): redistributed(model) for way, model in deep.items()}
    found["refusals"] = refusals(deep["together"], folder)
    found["again"] = measure.score(load(str(folder / "llama"), tensor_parallel=True), options=options, runs=folder / "runs").table
    return found


def main(folder: Path) -> None:
    """Measure, and leave what was found."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if rank == 0:
        saved(folder)
    dist.barrier()
    (folder / f"rank{rank}.pkl").write_bytes(pickle.dumps(measured(folder, rank)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
