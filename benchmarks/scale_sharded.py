"""What does a second GPU bring to one model? The full set of reads by tensor parallelism, beside one GPU.

    PYTHONPATH=. torchrun --nproc-per-node 2 benchmarks/scale_sharded.py --out benchmarks/results

A random model of the sizes of Llama-3.1-8B is written to a folder, in bfloat16, and loaded from there: first whole on the first device, by rank 0 alone, then
spread over all. Before anything is reported, what is read of a short prompt must be as near to float32 on all ranks as on one; if it is not, nothing is
reported, and the exit code is 1. A call counts until every rank has the whole capture. The folder is removed at the end.
`--tiny` runs the same on the CPU, with sizes that say nothing about speed.
"""

import argparse
import copy
import gc
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from peers import FULL, draw
from report import machine, write_report
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.captures import Capture, capture
from workbench.models import HFModel, load
from workbench.prompts import Prompts
from workbench.sharding import from_first, join
from workbench.tiny import byte_tokenizer

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "max_position_embeddings": 131072, "tie_word_embeddings": False}
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512}
SPREAD = {True: 0.2, False: 0.02}
"""Standard deviation of the weights, larger in the tiny model, whose attention would be uniform otherwise."""

SHORT = {True: 64, False: 2048}
LENGTHS = {True: [96, 192], False: [32768, 131072]}
TARGET = 1.6
NEAR = 1.5
"""How much further from float32 than on one device the reads may be on several: their partial sums are rounded once more."""


class CheckError(Exception):
    """A check that failed: no speed is reported."""


def written(tiny: bool, seed: int, folder: Path, device: torch.device) -> None:
    """The random model in bfloat16 as a folder, drawn on a device, with a tokenizer of bytes, which nothing asks."""
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(LlamaConfig(**(TINY if tiny else LARGE), **ROPE), dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(seed)
    for weight in hf.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, SPREAD[tiny], generator=generator)
    hf.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def loaded(folder: Path, **where: Any) -> HFModel:
    """The model as everybody loads it, until its fingerprint is known and every GPU has finished."""
    model = load(str(folder), dtype="bfloat16", **where)
    _ = model.fingerprint
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return model


def together() -> None:
    """Wait for every rank, on the CPU: a rank that waits for long must not keep its GPU busy."""
    dist.all_reduce(torch.zeros(1))


def numbers(seen: Capture) -> dict[str, np.ndarray]:
    """What was read, number by number; which key is the strongest is none, as near ties turn."""
    parts = {str(read): value if isinstance(value, tuple) else (value,) for read, value in seen.values.items()}
    return {f"{read} {place}": part for read, value in parts.items() for place, part in enumerate(value) if np.issubdtype(part.dtype, np.floating)}


def gate(one: Capture, several: Capture, exact: Capture) -> str:
    """The worst of how much further from float32 several ranks are than one, root mean squares. Raises `CheckError` where it is more than `NEAR`."""
    parts, worst = [numbers(seen) for seen in (one, several, exact)], 0.0
    for name, right in parts[2].items():
        far_one, far_several = (float(np.sqrt(np.nanmean((part[name] - right) ** 2))) for part in parts[:2])
        if not far_one or not far_several <= NEAR * far_one:
            raise CheckError(f"{name}: {far_several:.2e} from float32 on several ranks, {far_one:.2e} on one")
        worst = max(worst, far_several / far_one)
    return f"{worst:.2f}"


def timed(run: Callable[[], Any], device: torch.device, wait: Callable[[], None]) -> dict[str, float]:
    """Seconds until every rank that takes part is done, and the peak of this one's memory beside what it held before, in GiB."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    wait()
    begin = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    wait()
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    return {"seconds": time.perf_counter() - begin, "held GiB": before / 2**30, "peak GiB": peak / 2**30}


def runs(model: HFModel, prompts: list[Prompts], given: argparse.Namespace, implementation: str, wait: Callable[[], None], place: dict[str, Any]) -> list[dict]:
    """One row per call and length; the first call of each length, which compiles and tunes, has the round 0."""
    rows = []
    for prompt in prompts:
        for number in range(given.rounds + 1):
            row = place | {"tokens": prompt.length, "round": number}
            rows.append(row | timed(lambda prompt=prompt: capture(model, prompt, FULL, implementation=implementation), model.device, wait))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def largest(rows: list[dict]) -> list[dict]:
    """The rows of all ranks as one: of memory the most that any of them took."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, rows)
    return [row | {name: max(other[place][name] for other in everyone) for name in ("held GiB", "peak GiB")} for place, row in enumerate(rows)]


def judged(ratio: float) -> str:
    """Whether a ratio is what was aimed at."""
    return "met" if ratio >= TARGET else "missed"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per length: seconds and memory per device, both beside one device, and which target is met."""
    table = []
    for tokens, calls in rows[rows["round"] > 0].groupby("tokens"):
        middle = calls.groupby("devices")[["seconds", "load s", "held GiB", "peak GiB"]].median()
        one, several = middle.iloc[0], middle.iloc[-1]
        ratio, counted = one["seconds"] / several["seconds"], (one["seconds"] + one["load s"]) / (several["seconds"] + several["load s"])
        table.append(
            {"tokens": tokens, "devices": middle.index[-1], "one s": one["seconds"], "several s": several["seconds"], "×": ratio}
            | {"load one s": one["load s"], "load several s": several["load s"]}
            | {"× with loading": counted}
            | {f"{what}, {who}": row[f"{what} GiB"] for what in ("held", "peak") for who, row in (("one", one), ("several", several))}
            | {f"target {TARGET}": judged(ratio), f"target {TARGET} with loading": judged(counted)}
        )
    return pd.DataFrame(table)


def alone(given: argparse.Namespace, folder: Path, device: torch.device, prompts: list[Prompts], implementation: str) -> tuple[list[dict], Capture, Capture]:
    """What rank 0 does by itself: the model's folder, the timed calls, and the short prompt in bfloat16 and in float32."""
    written(given.tiny, given.seed, folder, device)
    begin = time.perf_counter()
    model = loaded(folder, device=str(device))
    seconds = time.perf_counter() - begin
    short = capture(model, prompts[0], FULL, implementation=implementation)
    rows = runs(model, prompts[1:], given, implementation, lambda: None, {"devices": 1, "load s": seconds})
    exact = HFModel(model.name, model.origin, copy.deepcopy(model.hf).float())
    return rows, short, capture(exact, prompts[0], FULL, implementation="torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls per length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="where there is room for the model's folder, 16 GB; by default where temporary files go")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    begin = time.perf_counter()
    device = join("auto")
    started = time.perf_counter() - begin
    if device.type != "cuda" and not given.tiny:
        sys.exit("the model of 8 billion weights takes GPUs; on the CPU there is --tiny")
    ranks, rank, implementation = dist.get_world_size(), dist.get_rank(), "torch" if device.type == "cpu" else "triton"
    sizes = TINY if given.tiny else LARGE
    prompts = [draw(tokens, sizes["vocab_size"], given.seed, uniform=False) for tokens in [SHORT[given.tiny], *(given.lengths or LENGTHS[given.tiny])]]
    folder = Path(from_first(lambda: tempfile.mkdtemp(dir=given.scratch)))
    rows, short, exact = alone(given, folder, device, prompts, implementation) if rank == 0 else ([], None, None)
    gc.collect()
    torch.cuda.empty_cache()
    together()
    begin = time.perf_counter()
    model = loaded(folder, tensor_parallel=True)
    together()
    seconds = started + time.perf_counter() - begin
    if rank == 0:
        shutil.rmtree(folder)
    seen = capture(model, prompts[0], FULL, implementation=implementation)
    try:
        worst = gate(short, seen, exact) if short is not None and exact is not None else ""
    except CheckError as error:
        sys.exit(f"no speed is reported, as a check failed: {error}")
    rows += largest(runs(model, prompts[1:], given, implementation, together, {"devices": ranks, "load s": seconds}))
    if rank == 0:
        finish(given, pd.DataFrame(rows), worst, ranks)
    dist.destroy_process_group()


def finish(given: argparse.Namespace, rows: pd.DataFrame, worst: str, ranks: int) -> None:
    """Write the report and print it."""
    sizes = TINY if given.tiny else LARGE
    checked = f"Checked before anything was reported: of a prompt of {SHORT[given.tiny]} tokens, no read was more than {worst} times as far from float32 on"
    remarks = [
        f"bfloat16, one prompt of random ids as unequally frequent as words. Random weights, {', '.join(f'{name} {size}' for name, size in sizes.items())}.",
        f"Reads, of all heads and rows: {', '.join(map(str, FULL))}. Every rank ends with all of them.",
        f"{checked} {ranks} ranks as on one (at most {NEAR} are allowed), root mean squares.",
        "Medians of the timed calls, until the last rank is done; first calls, which compile and tune, are left out, and are round 0 in the CSV.",
        "`load` is `workbench.load` of a folder just written, hence from memory, with the fingerprint and the start of the group; not part of the seconds.",
        "`held` is what a device holds before a call, `peak` what it takes beside that, the largest of all ranks, in GiB.",
    ]
    path = given.out / ("scale_sharded_" + ("cpu" if not torch.cuda.is_available() else re.sub(r"\W+", "_", machine().removeprefix("NVIDIA ").lower())))
    given.out.mkdir(parents=True, exist_ok=True)
    stamp = {"device": machine(), "torch": torch.__version__, "seed": given.seed}
    write_report(path, "One model over several devices", remarks, summary(rows), rows.assign(**stamp))
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
