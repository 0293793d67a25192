"""What does a policy save from end to end? Prefill, time per token, memory and the longest context, with every head full and with a part of them.

    python benchmarks/generation.py --out benchmarks/results

A random model of Llama 3.1 8B's shape on CUDA (a small one on the CPU, to try the script). Full heads are drawn at random, unequally many in each
layer, and every variant runs through the same harness: chunks or one pass of prefill, then decoding steps that are recorded as a CUDA graph.
Beside it, `transformers` is the model as it comes, with SDPA and its `DynamicCache`, whose steps are not recorded. A variant is timed
only if, at a length that can be checked, its logits are those of the masked reference. Writes generation_DEVICE.md and .csv.
"""

import argparse
import gc
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from report import machine, write_report
from transformers import LlamaConfig, LlamaForCausalLM

from workbench import HFModel, choosing
from workbench.kernels import cache as caches
from workbench.kernels.applied import Applied, apply
from workbench.policies import HeadPolicy

SHARES = (1.0, 0.5, 0.25)
SINKS, WINDOW = 64, 256
STEPS, WARM = 48, 3
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
SMALL = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 512}
CHECKED = 1500
LIMIT = 1e-3
"""The largest error of logits, against their spread, in single precision and two layers: low precision in many layers would hide a fault."""

GRAIN = 16384
"""How exactly the longest context is found, in tokens."""


def random_model(sizes: dict[str, int], device: str, dtype: torch.dtype) -> HFModel:
    """A Llama of these sizes with random weights, made where it runs."""
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, max_position_embeddings=4_194_304, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            hf = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    hf.generation_config.eos_token_id = None
    return HFModel("llama-shaped", "random", hf)


def policy_of(model: HFModel, share: float) -> HeadPolicy:
    """The heads that stay full: all, or a random part of them."""
    how = {"sinks": SINKS, "window": WINDOW}
    return choosing.everything(model.card, **how) if share == 1 else choosing.at_random(model.card, share, 0, **how)


def timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds, and what came out."""
    synchronise(device)
    begin = time.perf_counter()
    made = run()
    synchronise(device)
    return time.perf_counter() - begin, made


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> float:
    """GiB allocated at most since the last reset."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")


def clean(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def tokens(model: HFModel, length: int) -> torch.Tensor:
    return torch.randint(10, model.vocabulary, (1, length), device=model.device, generator=torch.Generator(model.device).manual_seed(length))


def check(model: HFModel, share: float) -> float:
    """The error of the last logits after prefill in chunks and decoding, against the reference; raises if it is too large."""
    ids, policy, outcome = tokens(model, CHECKED), policy_of(model, share), {}
    for implementation in ("reference", "auto"):
        with apply(model, policy, implementation=implementation) as applied, torch.inference_mode():
            cache = applied.cache(CHECKED)
            for piece in (ids[:, :1000], ids[:, 1000:1490], *ids[:, 1490:].split(1, dim=1)):
                logits = applied.hf(piece, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            outcome[implementation] = logits.float()
    error = float((outcome["auto"] - outcome["reference"]).abs().max() / outcome["reference"].std())
    if not error <= LIMIT:
        raise SystemExit(f"share {share}: the logits are off by {error:.3f} of their spread, the limit is {LIMIT}")
    return error


def prefill(applied: Applied, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    """The first token of the answer."""
    return applied.hf(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)


def recorded(applied: Applied, cache: Any, first: torch.Tensor) -> list[float]:
    """Seconds of each decoding step, recorded once as a CUDA graph and replayed (run as they are on the CPU)."""
    device = first.device.type
    token = first.clone()
    place = torch.full((1, 1), cache.get_seq_length(), device=first.device)
    layers = [layer for layer in cache.layers if isinstance(layer, caches.HybridLayer)]
    clock = layers[0].clocks[first.device]

    def step() -> None:
        logits = applied.hf(token, position_ids=place, past_key_values=cache, use_cache=True).logits
        token.copy_(logits[:, -1].argmax(-1, keepdim=True))

    for _ in range(WARM):
        step()
        place.add_(1)
    if device == "cpu":
        return [timed(step, device)[0] for _ in range(WARM)]
    clock.set(cache.get_seq_length(), first.device)  # told before the step is recorded, so that the graph follows the device's own number
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    assert clock.position is not None
    seconds = []
    for _ in range(STEPS):
        seconds.append(timed(graph.replay, device)[0])
        place.add_(1)
        clock.position.add_(1)
    return seconds


def variant(model: HFModel, share: float, length: int, rounds: int) -> dict[str, Any]:
    """One policy at one length."""
    device, policy, ids = model.device.type, policy_of(model, share), tokens(model, length)
    with apply(model, policy) as applied, torch.inference_mode():
        seconds = []
        for number in range(rounds + 1):
            clean(device)
            held = torch.cuda.memory_allocated() if device == "cuda" else 0
            cache = applied.cache(length + STEPS + 2 * WARM)
            spent, first = timed(lambda cache=cache: prefill(applied, ids, cache), device)
            seconds += [spent] * (number > 0)
            if number < rounds:
                del cache
        most = peak(device)
        kept = (torch.cuda.memory_allocated() - held) / 2**30 if device == "cuda" else float("nan")
        said = policy.kv_bytes(length + STEPS + 2 * WARM, model.dtype.itemsize) / 2**30
        steps = sorted(recorded(applied, cache, first))
        facts = applied.facts
    return {
        "variant": f"policy, {share:.0%} of KV heads full",
        "tokens": length,
        "prefill s": statistics.median(seconds),
        "ms per token": 1000 * statistics.median(steps),
        "ms 25%": 1000 * steps[len(steps) // 4],
        "ms 75%": 1000 * steps[3 * len(steps) // 4],
        "peak GiB": most,
        "KV GiB": kept,
        "KV GiB by arithmetic": said,
        "runs": f"{facts['implementation']}, {'+'.join(facts['dense'])}",
    }


def plain(model: HFModel, length: int) -> dict[str, Any]:
    """The model as it comes."""
    device, ids = model.device.type, tokens(model, length)
    clean(device)
    held = torch.cuda.memory_allocated() if device == "cuda" else 0
    with torch.inference_mode(), model.attention("sdpa") as hf:
        timed(lambda: hf(ids, use_cache=True, logits_to_keep=1), device)
        clean(device)
        spent, result = timed(lambda: hf(ids, use_cache=True, logits_to_keep=1), device)
        most, cache = peak(device), result.past_key_values
        kept = (torch.cuda.memory_allocated() - held) / 2**30 if device == "cuda" else float("nan")
        token = result.logits[:, -1].argmax(-1, keepdim=True)
        steps = sorted(timed(lambda: hf(token, past_key_values=cache, use_cache=True), device)[0] for _ in range(WARM * 3))
    row = {"variant": "transformers, steps not recorded", "tokens": length, "prefill s": spent, "ms per token": 1000 * statistics.median(steps)}
    return {**row, "ms 25%": 1000 * steps[2], "ms 75%": 1000 * steps[6], "peak GiB": most, "KV GiB": kept, "KV GiB by arithmetic": float("nan"), "runs": "sdpa"}


def longest(model: HFModel, share: float) -> int:
    """The most tokens whose cache fits beside the weights, with a chunk of 256 rows at its end and a step of decoding; keys are left as memory has them."""
    clean("cuda")
    policy = policy_of(model, share)
    free = torch.cuda.mem_get_info()[0]
    per_token = (policy.kv_bytes(2 * GRAIN) - policy.kv_bytes(GRAIN)) / GRAIN
    low, high = 0, int(free / per_token) // GRAIN + 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(model, policy, middle * GRAIN) else (low, middle)
    return low * GRAIN


def fits(model: HFModel, policy: HeadPolicy, length: int) -> bool:
    clean("cuda")
    try:
        with apply(model, policy) as applied, torch.inference_mode():
            cache = applied.cache(length)
            shape = 1, model.shape.n_kv_heads, 0, model.shape.d_head
            for layer in cache.layers:
                layer.lazy_initialization(*[torch.zeros(shape, dtype=model.dtype, device=model.device)] * 2)
                layer.full_k.zero_(), layer.full_v.zero_()
                layer.length = length - 257
            first = prefill(applied, tokens(model, 256), cache)
            prefill(applied, first, cache)
            torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-longest", action="store_true", help="do not look for the longest context")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = LARGE if device == "cuda" else SMALL
    errors = [check(random_model({**sizes, "num_hidden_layers": 2}, device, torch.float32), share) for share in SHARES]
    model = random_model(sizes, device, torch.bfloat16 if device == "cuda" else torch.float32)
    rows = []
    for length in given.lengths:
        rows += [plain(model, length), *(variant(model, share, length, given.rounds) for share in SHARES)]
        print(pd.DataFrame(rows[-4:]).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    full = table[table["variant"].str.contains("100%")].set_index("tokens")
    table["prefill x"] = [full.loc[row.tokens, "prefill s"] / row["prefill s"] for _, row in table.iterrows()]
    table["token x"] = [full.loc[row.tokens, "ms per token"] / row["ms per token"] for _, row in table.iterrows()]
    what = (
        f"Random weights, {model.shape}, {str(model.dtype).removeprefix('torch.')}; {SINKS} sinks, a window of {WINDOW}, exact semantics; prompts in one pass"
    )
    how = f"{given.rounds} rounds of prefill, {STEPS} recorded steps. `x`: times faster than the same harness with every head full."
    held = ", ".join(f"{error:.1e}" for error in errors)
    checked = f"Checked first, in float32 and two layers: logits after chunked prefill and decoding at {CHECKED:,} tokens against the reference"
    checked += f": {held} of their spread (limit {LIMIT})."
    remarks = [f"{what}; {how}", checked]
    if device == "cuda" and not given.no_longest:
        found = {share: longest(model, share) for share in SHARES}
        remarks.append(
            "Longest context that fits beside the weights: " + ", ".join(f"{count:,} tokens with {share:.0%} full" for share, count in found.items()) + "."
        )
        print(found)
    place = re.sub(r"\W+", "_", machine().lower().replace("nvidia ", "")) if device == "cuda" else "cpu"
    write_report(given.out / f"generation_{place}", "Generating under a policy, from end to end", remarks, table)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
