"""How fast do offloaded weights reach a GPU? A model with half of its layers in the CPU's memory, beside the same model on the GPU.

    PYTHONPATH=. python benchmarks/offload.py --out benchmarks/results

A random model of the layers of Llama-3.1-8B, few of them, in bfloat16. The seconds that a pass takes longer fetch the offloaded bytes. Both must give the same
captures, or nothing is reported. `--tiny` fetches from the disk to the CPU, with sizes that say nothing about speed.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from report import machine, write_report
from scale_sharded import LARGE, ROPE, TINY
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.captures import capture
from workbench.models import HFModel, load
from workbench.plan import LINK, away
from workbench.prompts import Prompts
from workbench.reads import Received
from workbench.tiny import random_model

LENGTHS = {True: (32, 64), False: (512, 8192)}


def saved(folder: Path, layers: int, *, tiny: bool) -> Path:
    """A random model in a folder."""
    small = random_model("llama")
    small.tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(**(TINY if tiny else LARGE) | {"num_hidden_layers": layers, "vocab_size": small.vocabulary}, **ROPE)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def timed(model: HFModel, length: int, rounds: int) -> tuple[list[float], np.ndarray]:
    """Seconds of `rounds` captures of one prompt, after one that is not counted; and what keys receive."""
    prompts = Prompts(torch.randint(0, model.vocabulary, (1, length), generator=torch.Generator().manual_seed(1)))
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        received = capture(model, prompts, [Received()])[Received()]
        seconds.append(time.perf_counter() - begin)
    return seconds[1:], received


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    near, far = ("cpu", "disk") if given.tiny else (0, "cpu")
    places = {f"model.layers.{layer}": near if layer % 2 else far for layer in range(given.layers)}
    places |= dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), near)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        where = str(saved(Path(folder) / "model", given.layers, tiny=given.tiny))
        here = load(where, device="cpu" if given.tiny else "cuda", dtype="bfloat16")
        there = load(where, device_map=places, dtype="bfloat16")
        for length in LENGTHS[given.tiny]:
            (whole, first), (fetching, second) = timed(here, length, given.rounds), timed(there, length, given.rounds)
            np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)
            for number, (less, more) in enumerate(zip(whole, fetching, strict=True)):
                rows.append({"tokens": length, "round": number, "GB fetched": away(there) / 1e9, "on the device s": less, "offloaded s": more})
    table = pd.DataFrame(rows)
    middle = table.groupby("tokens", as_index=False).median().drop(columns="round")
    middle["GB/s"] = middle["GB fetched"] / (middle["offloaded s"] - middle["on the device s"])
    middle["assumed GB/s"] = LINK / 1e9
    remark = (
        f"{given.layers} layers of the sizes of Llama-3.1-8B in bfloat16, every other one in the CPU's memory; one capture of what keys receive, "
        f"equal to that of the same model on the device. Medians of {given.rounds} rounds. GB/s: the bytes fetched by the seconds that a pass takes longer."
    )
    kind = machine()
    name = "cpu" if "CPU" in kind else kind.lower().replace(" ", "_").replace("nvidia_", "")
    write_report(given.out / f"offload_{name}", "How fast offloaded weights are fetched", [remark], middle, table)
    print(middle.to_string(index=False))


if __name__ == "__main__":
    main()
