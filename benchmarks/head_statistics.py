"""What do exact head statistics cost? One layer beside flash and cuDNN attention, and whole models beside a plain forward and other tools.

    python benchmarks/head_statistics.py attention
    python benchmarks/head_statistics.py model --model smollm2-135m

`attention` needs CUDA. It times a shape and length only after the statistics have passed the checks of `gates.py`: at up to 2,048 tokens against
probabilities held in float64; at the timed length by identities, and by rows and keys recomputed in float64. If one fails, nothing is reported and
the exit code is 1. `model` takes CUDA if it is there, else the CPU; what it runs is in `peers.py`.
Both write statistics_COMMAND_DEVICE.md and .csv into OUT. (A file called statistics.py would hide Python's own from its neighbours.)
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from gates import BLOCK, FIRST, LAST, CheckError, Gates, Implementation, against_oracle, describe, first_and_last, identities, make
from report import machine, write_report
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from workbench.ops.inputs import Attention, Statistics, Wanted

SHAPES = ((32, 8, 128), (32, 8, 64), (9, 3, 64))
"""Query heads, KV heads and head size."""

LENGTHS = (8192, 32768, 131072)
ORACLE_LENGTHS = (333, 2048)
BASELINES = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
ROUNDS = (5, 300)
CLEARED = 2**30
"""Bytes zeroed before each call: they empty the cache, and meanwhile the launches of the call run ahead."""

LIMITS = {"capture triton": {"time": 1.25, "more GiB": 1.0}, "capture torch": {"time": 1.5, "memory": 1.2}}
"""Targets: time and memory as ratios to those of `plain`, and GiB more than `plain`."""

HELD_FROM = {"capture triton": 8192, "capture torch": 2048}
"""The length from which on the targets count."""

OUTCOMES = ("ok", "not installed", "out of memory")
COLUMNS = ("model", "tokens", "method", "runs", "outcome", "ms", "ms 25%", "ms 75%", "time", "loaded GiB", "peak GiB", "more GiB", "memory", "targets")

Variants = dict[str, Callable[[], object]]


def ours(statistics: Implementation, attention: Attention) -> Variants:
    """The calls that are timed, by what they compute."""
    rows = Wanted(entropy=True, peak=True, ranges=first_and_last(attention.pos_BR))
    with_output = rows | Wanted(output=True)
    received = with_output | Wanted(received=frozenset({"sum"}))
    asked = {
        "output": Wanted(output=True),
        "rows": rows,
        "output + rows": with_output,
        "output + rows + received": received,
        "output + rows + received + map": received | Wanted(maps=frozenset({(BLOCK, "max")})),
    }
    return {name: partial(_fresh, statistics, attention, wanted) for name, wanted in asked.items()}


def _fresh(statistics: Implementation, attention: Attention, wanted: Wanted) -> Statistics:
    """One call that finds nothing cached from the last one."""
    return statistics(replace(attention), wanted)


def baselines(attention: Attention) -> Variants:
    """PyTorch's fused attention with one backend each; one that refuses the shape is left out, and its ratios with it."""

    def run(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(attention.q_BHRE, attention.k_BGKE, attention.v_BGKE, is_causal=True, enable_gqa=True)

    there: Variants = {}
    for name, backend in BASELINES.items():
        try:
            run(backend)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"SDPA {name} refuses {describe(attention)}: {str(error).partition('. ')[0]}", file=sys.stderr, flush=True)
        else:
            there[f"SDPA {name}"] = partial(run, backend)
    return there


def memory_of(run: Callable[[], object]) -> float:
    """Peak MiB on the GPU beside what was there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def in_turns(variants: Variants, budget: float) -> pd.DataFrame:
    """Milliseconds between CUDA events around each call: every variant once per round, for `budget` seconds per variant."""
    cleared = torch.empty(CLEARED, dtype=torch.uint8, device="cuda")
    rounds: list[dict[str, float]] = []
    begin = time.perf_counter()
    while len(rounds) < ROUNDS[0] or (time.perf_counter() - begin < budget * len(variants) and len(rounds) < ROUNDS[1]):
        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in variants}
        for name, run in variants.items():
            cleared.zero_()
            events[name][0].record()
            run()
            events[name][1].record()
        torch.cuda.synchronize()
        rounds.append({name: start.elapsed_time(end) for name, (start, end) in events.items()})
    return pd.DataFrame(rounds)


def first_calls(variants: Variants) -> float:
    """Seconds for every variant once, compilation and tuning included."""
    begin = time.perf_counter()
    for run in variants.values():
        run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def cost(variants: Variants, budget: float) -> list[dict[str, Any]]:
    """One row per variant: median and quartiles, ratios of the medians to the baselines', memory."""
    memory = {name: memory_of(run) for name, run in variants.items()}
    ms = in_turns(variants, budget)
    median = ms.median()
    rows = []
    for name in variants:
        ratios = {f"× {base}": float(median[name] / median.get(f"SDPA {base}", float("nan"))) for base in BASELINES}
        quartiles = {"ms": float(median[name]), "ms 25%": float(ms[name].quantile(0.25)), "ms 75%": float(ms[name].quantile(0.75))}
        rows.append({"variant": name} | quartiles | ratios | {"peak MiB": memory[name], "rounds": len(ms)})
    return rows


def attention_report(given: argparse.Namespace) -> tuple[str, list[str], pd.DataFrame]:
    """Title, remarks and rows of `attention`. Raises `CheckError` if a check fails."""
    from workbench.ops.streaming import statistics

    gates, rows, compiled = Gates(), [], 0.0
    for shape in SHAPES:
        for tokens in ORACLE_LENGTHS:
            against_oracle(gates, statistics, make(shape, tokens, given.seed, "cuda"))
        for tokens in given.lengths or LENGTHS:
            attention = make(shape, tokens, given.seed, "cuda")
            variants = ours(statistics, attention)
            compiled += (seconds := first_calls(variants))
            print(f"{describe(attention)}: compiled and tuned in {seconds:.1f} s", file=sys.stderr, flush=True)
            identities(gates, statistics, attention, given.seed)
            place = {"heads": f"{shape[0]}/{shape[1]}", "d": shape[2], "tokens": tokens}
            rows += [place | row for row in cost(baselines(attention) | variants, given.budget)]
    remarks = [
        "One layer, bf16, causal, batch 1, normally distributed inputs. Time on the GPU, all variants in turns; × is the ratio of medians in the same run.",
        f"`rows`: entropy, strongest key, masses of the first {FIRST} and the last {LAST} keys. `received`: mean per key. `map`: maxima of blocks of {BLOCK}.",
        f"Checked before anything was timed; the worst errors: {gates}.",
        f"The first calls, which compile and tune, took {compiled:.0f} s and are not counted. `peak MiB` is beside the inputs, results included.",
    ]
    return "What exact head statistics cost: one layer", remarks, pd.DataFrame(rows)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per model, length and method: median and quartiles, peak memory, both beside `plain`, and which targets are met."""
    rows = []
    for (model, tokens), group in runs.groupby(["model", "tokens"], sort=False):
        plain: dict[str, Any] = {}
        for method, calls in group.groupby("method", sort=False):
            row: dict[str, Any] = {"model": model, "tokens": tokens, "method": method, "runs": len(calls), "outcome": max(calls["outcome"], key=OUTCOMES.index)}
            if row["outcome"] == "ok":
                low, median, high = calls["ms"].quantile([0.25, 0.5, 0.75])
                row |= {"ms": median, "ms 25%": low, "ms 75%": high, "loaded GiB": calls["loaded GiB"].median(), "peak GiB": calls["peak GiB"].max()}
                plain = row if method == "plain" else plain
            if "ms" in row and plain:
                ratios = {"time": row["ms"] / plain["ms"], "memory": row["peak GiB"] / plain["peak GiB"]}
                row = row | ratios | {"more GiB": row["peak GiB"] - plain["peak GiB"]}
            rows.append(row | {"targets": verdicts(row)})
    return pd.DataFrame(rows, columns=COLUMNS)


def verdicts(row: dict[str, Any]) -> str:
    """The targets of a method, each with what was measured and whether it is met."""
    method = row["method"]
    if method not in LIMITS or row["tokens"] < HELD_FROM[method]:
        return ""
    if "time" not in row:
        return "missed" if row["outcome"] == "out of memory" else "not measured beside `plain`"
    return ", ".join(f"{what} {row[what]:.2f} ≤ {limit:g}: {'met' if row[what] <= limit else 'missed'}" for what, limit in LIMITS[method].items())


def stamp(seed: int) -> dict[str, Any]:
    """Device, versions and seed, as columns of the CSV."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "none"

    return {"device": machine(), **{name: of(name) for name in ("torch", "triton", "transformers")}, "cudnn": torch.backends.cudnn.version(), "seed": seed}


def finish(given: argparse.Namespace, title: str, remarks: list[str], rows: pd.DataFrame) -> None:
    """Write the report and print it."""
    marks = stamp(given.seed)
    device = re.sub(r"\W+", "_", machine().removeprefix("NVIDIA ").lower()) if torch.cuda.is_available() else "cpu"
    path = given.out / f"statistics_{given.command}_{device}"
    table = rows.astype(object).where(rows.notna(), "–")
    write_report(path, title, [*remarks, ", ".join(f"{name} {value}" for name, value in marks.items()) + "."], table, rows.assign(**marks))
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    attention = commands.add_parser("attention", help="one layer, on CUDA")
    attention.add_argument("--budget", type=float, default=2.0, help="seconds per variant, shape and length")
    model = commands.add_parser("model", help="whole models")
    model.add_argument("--model", default="smollm2-135m", help="a catalogue name, folder or GGUF file")
    model.add_argument("--large", type=int, nargs="*", default=[32768, 131072], help="lengths for random weights in the shape of Llama-3.1-8B, on CUDA")
    model.add_argument("--methods", nargs="+", help="only these; see peers.py")
    model.add_argument("--uniform", action="store_true", help="all token ids equally frequent, which makes induction cheap")
    model.add_argument("--budget", type=float, default=20.0, help="seconds per method and length, on CUDA")
    model.add_argument("--rounds", type=int, default=3, help="processes per method and length, on the CPU")
    for command in (attention, model):
        command.add_argument("--lengths", type=int, nargs="+")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if given.command == "model":
        from peers import model_report

        title, remarks, runs = model_report(given)
        return finish(given, title, remarks, summary(runs))
    if not torch.cuda.is_available():
        sys.exit("attention times kernels on a GPU; there is no CUDA here")
    try:
        return finish(given, *attention_report(given))
    except CheckError as error:
        sys.exit(f"no speed is reported, as a check failed: {error}")


if __name__ == "__main__":
    main()
