"""What does calibrating attention sinks cost? A forward pass with `Calibrate` beside one with PyTorch's fused attention, in turns, in one process.

python benchmarks/calibrate_cost.py --rounds 5 --out benchmarks/results/calibrate_cost_cpu
python benchmarks/calibrate_cost.py --device cuda --implementation auto --length 8192 --out benchmarks/results/calibrate_cost_h100_80gb_hbm3
"""

import argparse
import gc
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from report import write_report

from workbench.captures import capture
from workbench.edits import Calibrate
from workbench.heads import Head
from workbench.models import HFModel, load
from workbench.prompts import Prompts
from workbench.recipes import NaturalText

TARGET = 1.3


def ways(model: HFModel, prompts: Prompts, implementation: str, seed: int) -> dict[str, Callable[[], object]]:
    """The passes to compare. A fifth of the heads from layer 2 to the last but one is what ACT's longest list has."""
    shape = model.shape
    candidates = [Head(layer, index) for layer, index in product(range(2, shape.n_layers - 1), range(shape.n_heads))]
    some = np.random.default_rng(seed).choice(len(candidates), len(candidates) // 5, replace=False)
    ids_BT = torch.tensor(prompts.ids_BT, device=model.device)

    def plain() -> object:
        with torch.inference_mode(), model.attention("sdpa") as hf:
            return hf(ids_BT, use_cache=False, logits_to_keep=1)

    def edited(*edits: Calibrate) -> Callable[[], object]:
        return lambda: capture(model, prompts, [], edits, implementation=implementation)

    return {
        "plain (SDPA)": plain,
        "capture without edits": edited(),
        "Calibrate, a fifth of the heads": edited(Calibrate(tuple(candidates[place] for place in sorted(some)))),
        "Calibrate, all heads": edited(Calibrate()),
    }


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call, to its end on the device, and the seconds that all cores worked for it, which other work on the machine disturbs less."""
    begin, worked = time.perf_counter(), time.process_time()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - worked


def peaks(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """GiB on the device that each call takes at most beside what is there already; NaN on the CPU."""
    found = dict.fromkeys(calls, float("nan"))
    for name in calls if torch.cuda.is_available() else ():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        calls[name]()
        found[name] = (torch.cuda.max_memory_allocated() - held) / 2**30
    return found


def against(seconds: dict[str, tuple[float, float]], name: str) -> dict[str, float]:
    """The ratios of one round."""
    return {key: seconds[name][place] / seconds["plain (SDPA)"][place] for place, key in enumerate(("ratio", "CPU ratio"))}


def summary(name: str, part: pd.DataFrame) -> dict[str, object]:
    """One row of the table."""
    spread = {f"{key} {quarter:.0%}": part[key].quantile(quarter) for key in ("ratio", "CPU ratio") for quarter in (0.25, 0.75)}
    return {
        "way": name,
        "s": part["s"].median(),
        "CPU s": part["CPU s"].median(),
        "ratio": part["ratio"].median(),
        "CPU ratio": part["CPU ratio"].median(),
        **spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--implementation", default="torch")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = load(given.model, device=given.device)
    (prompts,) = NaturalText(length=given.length, count=1).build(model, given.seed)
    calls = ways(model, prompts, given.implementation, given.seed)
    (short,) = NaturalText(length=64, count=1).build(model, given.seed)
    for call in ways(model, short, given.implementation, given.seed).values():
        call()
    rows, process = [], psutil.Process()
    for round_ in range(given.rounds):
        seconds = {}
        for name in list(calls)[:: 1 if round_ % 2 == 0 else -1]:
            seconds[name] = timed(calls[name])
        rows += [{"round": round_, "way": name, "s": seconds[name][0], "CPU s": seconds[name][1], **against(seconds, name)} for name in calls]
        print(pd.DataFrame(rows[-len(calls) :]).to_string(index=False), flush=True)
    every = pd.DataFrame(rows)
    table = pd.DataFrame([summary(str(name), part) for name, part in every.groupby("way", sort=False)])
    if model.device.type == "cuda":
        table["peak GiB"] = table["way"].map(peaks(calls))
    found = capture(model, prompts, [], [Calibrate()], implementation=given.implementation).found[0]
    kind, pattern = str(model.dtype).removeprefix("torch."), 4 * model.shape.n_heads * given.length**2 / 2**30
    remarks = [
        f"{model.name}, one passage of {given.length} tokens of the default text, {given.implementation}, {kind}, {model.device.type}, seed {given.seed}.",
        (
            f"{given.rounds} rounds, the ways in turns, every second round backwards. `ratio`: the median of each round's to the plain pass, and quartiles; "
            "`CPU ratio` is the same of the seconds that all cores worked, which other work on the machine disturbs less. "
            f"The target for the edit is {TARGET}."
        ),
        f"Sinks by the default rule (α/N, α = 5): {found.sum()} in {int((found > 0).sum())} of {found.size} heads, at most {found.max()} in a head.",
        (
            f"`peak GiB`: what a pass takes at most beside the weights; the pattern of one layer would take {pattern:.2f} GiB more in float32."
            if model.device.type == "cuda"
            else f"Resident memory at the end {process.memory_info().rss / 2**30:.2f} GiB; the pattern of one layer would take {pattern:.2f} GiB more."
        ),
    ]
    write_report(given.out, "What Calibrate costs", remarks, table, every)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
