"""What does a capture cost? Peak memory and time of one capture, beside a forward pass that observes nothing and Hugging Face's eager one.

    python benchmarks/capture_memory.py --tokens 2048 --out benchmarks/results/capture_memory_cpu

Each method runs in a process of its own, so that peaks do not mix; peak is the process's resident maximum, imports and weights included.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

METHODS = ("forward", "capture", "eager")


def measure(method: str, model_name: str, tokens: int, repeats: int) -> dict[str, float | str]:
    """Seconds (median) and peak GiB of one method in this process."""
    import torch

    from workbench import Prompts, capture, load
    from workbench.reads import Entropy, Mass, Peak, Received

    model = load(model_name, device="cpu")
    ids = np.random.default_rng(0).integers(1000, 40000, (1, tokens))
    reads = [Mass(first=4), Mass(last=64), Mass(at="previous"), Mass(at="duplicate"), Mass(at="induction"), Entropy(), Peak(), Received()]

    def once() -> None:
        if method == "capture":
            capture(model, Prompts(ids), reads)
            return
        with torch.inference_mode(), model.attention("eager" if method == "eager" else "sdpa") as hf:
            hf(torch.tensor(ids), use_cache=False, logits_to_keep=1, output_attentions=method == "eager")

    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - begin)
    scale = 2**30 if sys.platform == "darwin" else 2**20
    return {"method": method, "tokens": tokens, "seconds": statistics.median(seconds), "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", choices=METHODS, help="measure one method in this process and print JSON")
    given = parser.parse_args()
    if given.method:
        print(json.dumps(measure(given.method, given.model, given.tokens, given.repeats)))
        return
    command = [sys.executable, __file__, "--model", given.model, "--tokens", str(given.tokens), "--repeats", str(given.repeats)]
    lines = [subprocess.run([*command, "--method", method], check=True, capture_output=True, text=True).stdout for method in METHODS]
    table = pd.DataFrame([json.loads(line.strip().splitlines()[-1]) for line in lines])
    print(table.to_string(index=False))
    if given.out:
        from report import write_report

        what = "`capture` computes eight reads of all heads and rows; `eager` returns the patterns"
        remarks = [f"{given.model}, float32, {given.tokens} tokens, median of {given.repeats}; {what}."]
        write_report(given.out, "What a capture costs", remarks, table)


if __name__ == "__main__":
    main()
