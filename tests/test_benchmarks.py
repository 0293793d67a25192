"""Do the benchmarks of kernels run? Small shapes on the CPU, from the command line to the report."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kernels.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the benchmark measures for minutes; this test asks whether it runs")
@pytest.mark.parametrize("command", ["prefill", "decode"])
def test_kernels(tmp_path, command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(SCRIPT), command, "--out", str(tmp_path)], capture_output=True, text=True, env=environment, check=True)
    rows = pd.read_csv(tmp_path / f"kernels_{command}_cpu.csv")
    assert {"SDPA flash", "ours"} <= set(rows["variant"])
    assert (rows["ms" if command == "prefill" else "us"] > 0).all()
    assert {"device", "torch", "seed"} <= set(rows.columns)
    assert "Checked before anything was timed" in run.stdout
    report = (tmp_path / f"kernels_{command}_cpu.md").read_text(encoding="utf-8")
    assert report.strip() in run.stdout
