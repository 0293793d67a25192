"""What do a plain forward, our capture and other tools cost on a whole model? Time and peak memory of each, of one prompt.

`plain` is transformers with PyTorch's fused attention and observes nothing. `capture <implementation>` reads for all heads and rows the masses of the
first 4 keys, the last 256, the previous token and the tokens behind earlier equal ones (induction), the entropy, the strongest key, and the mean that keys
receive. The peers keep the patterns of all layers, as they offer no less: `eager` (transformers, output_attentions), `TransformerLens` and `nnsight`.
On CUDA they run in one process, in turns. On the CPU each run is a process of its own, as only so its peak memory is its own.
"""

import argparse
import copy
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch.nn.attention import SDPBackend
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.captures import capture
from workbench.models import HFModel, load
from workbench.prompts import Prompts
from workbench.reads import Entropy, Mass, Peak, Received

FULL = (Mass(first=4), Mass(last=256), Mass(at="previous"), Mass(at="induction"), Entropy(), Peak(), Received())
METHODS = {
    "cuda": ("plain", "capture triton", "eager", "TransformerLens", "nnsight"),
    "cpu": ("plain", "capture torch", "capture reference", "eager", "TransformerLens", "nnsight"),
}
LENGTHS = {"cuda": (2048, 4096, 8192), "cpu": (512, 2048, 4096)}
PACKAGES = {"TransformerLens": "transformer_lens", "nnsight": "nnsight"}
TITLE = "What exact head statistics cost: whole models"
WARM_UP, LEAST_ROUNDS, MOST_ROUNDS = 64, 3, 20


def prepare(method: str, model: HFModel, prompts: Prompts) -> Callable[[], Any]:
    """The call to measure: it returns what the tool gives its user."""
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)
    if method.startswith("capture "):
        return lambda: capture(model, prompts, FULL, implementation=method.removeprefix("capture "))
    if method == "TransformerLens":
        return lambda: model.lens.run_with_cache(ids_BT, names_filter=lambda name: name.endswith("attn.hook_pattern"), return_type=None)
    if method == "nnsight":
        return _nnsight(model, ids_BT)

    def forward() -> Any:
        with model.attention("eager" if method == "eager" else "sdpa") as hf:
            return hf(ids_BT, use_cache=False, logits_to_keep=1, output_attentions=method == "eager")

    return forward


def _nnsight(model: HFModel, ids_BT: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
    """A trace that saves every layer's probabilities, on a copy of the module that shares the weights: nnsight changes the module it wraps."""
    import nnsight

    hf = copy.deepcopy(model.hf, {id(tensor): tensor for tensor in [*model.hf.parameters(), *model.hf.buffers()]})
    hf.config._attn_implementation = "eager"
    wrapped = nnsight.NNsight(hf)

    def trace() -> list[torch.Tensor]:
        kept = []
        with wrapped.trace(ids_BT, use_cache=False, logits_to_keep=1):
            for layer in wrapped.model.layers:
                kept.append(layer.self_attn.output[1].save())  # noqa: PERF401 (nnsight reads the source of the loop)
        return kept

    return trace


def draw(tokens: int, vocabulary: int, seed: int, uniform: bool) -> Prompts:
    """One prompt of random ids, as unequally frequent as words (Zipf and Mandelbrot) unless uniform: equal ids decide what `induction` costs."""
    rng = np.random.default_rng(seed)
    weight = np.ones(vocabulary) if uniform else 1 / (np.arange(vocabulary) + 2.7)
    return Prompts(rng.permutation(vocabulary)[rng.choice(vocabulary, (1, tokens), p=weight / weight.sum())])


def llama_8b(seed: int) -> HFModel:
    """Random weights in the shape of Llama-3.1-8B, made on the GPU in bfloat16; transformers draws them with a spread of 0.02."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=128256, max_position_embeddings=131072, rope_parameters=rope, tie_word_embeddings=False)
    torch.manual_seed(seed)
    with torch.device("cuda"):
        return HFModel("llama-8b-shaped", "random", AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def attempt(run: Callable[[], Any]) -> str:
    """Run, and drop the result: `ok`, or `out of memory`, for which our capture and nnsight have errors of their own."""
    try:
        run()
    except Exception as error:
        said = str(error)
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in said or "can't allocate memory" in said):
            raise
        return "out of memory"
    return "ok"


def missing(method: str) -> bool:
    """Whether a tool is not installed."""
    return method in PACKAGES and find_spec(PACKAGES[method]) is None


def in_turns(model: HFModel, prompts: Prompts, methods: tuple[str, ...], budget: float) -> list[dict[str, Any]]:
    """One row per call on CUDA: milliseconds to the end of all work on the GPU, peak GiB beside the weights. The first calls, which compile, are left out."""
    place = {"model": model.name, "tokens": prompts.length}
    rows, lost = [], [place | {"method": method, "outcome": "not installed"} for method in methods if missing(method)]
    alive = {method: prepare(method, model, prompts) for method in methods if not missing(method)}
    for method in list(alive):
        row = place | {"method": method} | _on_cuda(alive[method])
        print(f"{model.name}, {prompts.length} tokens, {method}: the first call took {row['ms'] / 1e3:.2f} s, {row['outcome']}", file=sys.stderr, flush=True)
        if row["outcome"] != "ok":
            lost.append(row)
            del alive[method]
    begin, rounds = time.perf_counter(), 0
    while alive and (rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() - begin < budget * len(alive))):
        rows += [place | {"method": method} | _on_cuda(run) for method, run in alive.items()]
        rounds += 1
    return rows + lost


def _on_cuda(run: Callable[[], Any]) -> dict[str, Any]:
    torch.cuda.synchronize()
    loaded = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    with torch.inference_mode():
        outcome = attempt(run)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    if outcome != "ok":
        gc.collect()
        torch.cuda.empty_cache()
    return {"outcome": outcome} | _numbers(seconds, loaded, torch.cuda.max_memory_allocated() - loaded)


def _numbers(seconds: float, loaded: int, peak: int) -> dict[str, float]:
    return {"ms": 1e3 * seconds, "loaded GiB": loaded / 2**30, "peak GiB": peak / 2**30}


def alone(method: str, name: str, tokens: int, how: dict[str, Any]) -> dict[str, Any]:
    """What was measured in this process on the CPU: milliseconds of one call after a short one, resident GiB after loading, and the process's peak."""
    model = load(name, device="cpu")
    loaded = psutil.Process().memory_info().rss
    with torch.inference_mode():
        prepare(method, model, draw(WARM_UP, model.vocabulary, **how))()
        run = prepare(method, model, draw(tokens, model.vocabulary, **how))
        begin = time.perf_counter()
        outcome = attempt(run)
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"outcome": outcome} | _numbers(seconds, loaded, peak)


def one_by_one(name: str, lengths: tuple[int, ...], methods: tuple[str, ...], rounds: int, how: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per process on the CPU. No process may take more than what is free now, lest the system end another one."""
    rows = []
    for tokens, _, method in product(lengths, range(rounds), methods):
        found = {"outcome": "not installed"}
        if not missing(method):
            words = [json.dumps([method, name, tokens, how]), str(int(psutil.virtual_memory().available * 0.9))]
            said = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True, text=True).stdout
            found = json.loads(said.strip().splitlines()[-1])
        rows.append({"model": Path(name).name, "tokens": tokens, "method": method} | found)
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def fused_choice(model: HFModel) -> str:
    """Which fused attention PyTorch takes for the shape of a model's heads by itself."""
    shape = model.shape
    q, k, v = (torch.empty(1, heads, 1024, shape.d_head, dtype=model.dtype, device=model.device) for heads in (shape.n_heads, *[shape.n_kv_heads] * 2))
    return SDPBackend(torch._fused_sdp_choice(q, k, v, None, 0.0, True, enable_gqa=True)).name


def model_report(given: argparse.Namespace) -> tuple[str, list[str], pd.DataFrame]:
    """Title, remarks and one row per run of the command `model`."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    lengths, methods, how = tuple(given.lengths or LENGTHS[kind]), tuple(given.methods or METHODS[kind]), {"seed": given.seed, "uniform": given.uniform}
    ids = "which are all equally frequent" if given.uniform else "as unequally frequent as words"
    remarks = [" ".join(str(__doc__).split("\n\n")[1].split())]
    remarks.append(f"One prompt of random ids, {ids}. `time` and `memory` are ratios to `plain`, `more GiB` is the difference.")
    if kind == "cpu":
        remarks.append("float32. `peak GiB` is the process's, weights and libraries included; each run is a process, with one call after a short one.")
        return TITLE, remarks, pd.DataFrame(one_by_one(given.model, lengths, methods, given.rounds, how))
    rows, choices = [], []
    for make, sizes, asked in ((lambda: load(given.model), lengths, methods), (lambda: llama_8b(given.seed), tuple(given.large), METHODS[kind][:2])):
        if sizes:
            model = make()
            choices.append(f"{model.name}: {fused_choice(model)}")
            for tokens in sizes:
                rows += in_turns(model, draw(tokens, model.vocabulary, **how), asked, given.budget)
            del model
            gc.collect()
            torch.cuda.empty_cache()
    remarks.append("bfloat16. `peak GiB` is beside the weights, which are `loaded GiB`; first calls, which compile and tune, are left out.")
    remarks.append(f"PyTorch's own choice of attention in `plain`: {', '.join(choices)}.")
    return TITLE, remarks, pd.DataFrame(rows)


if __name__ == "__main__":
    question, free = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + int(free), resource.RLIM_INFINITY))
    print(json.dumps(alone(*json.loads(question))))
