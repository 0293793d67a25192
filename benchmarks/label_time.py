"""How long does `workbench label` take, and how much memory? The whole command, imports included, weights in the cache.

python benchmarks/label_time.py --repeats 3 --out benchmarks/results/label_time_cpu
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from report import write_report


def once(model: str, device: str) -> dict[str, float]:
    """Wall seconds, the command's own clock, and the peak resident memory of one run in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "workbench.cli",
            "label",
            "--model",
            model,
            "--device",
            device,
            "--out",
            f"{folder}/heads.json",
            "--runs",
            "-",
            "--json",
        ]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
    if status:
        raise RuntimeError(f"workbench label ended with status {status}")
    return {
        "wall s": wall,
        "own s": json.loads(said)["seconds"],
        "CPU s": usage.ru_utime + usage.ru_stime,
        "peak GiB": usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    runs = pd.DataFrame([once(given.model, given.device) for _ in range(given.repeats)])
    table = pd.DataFrame([{"what": name, "median": statistics.median(runs[name]), "min": runs[name].min(), "max": runs[name].max()} for name in runs])
    write_report(given.out, "workbench label, quick preset", [f"{given.model}, all probes, {given.repeats} runs, weights in the cache."], table, runs, digits=2)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
