"""What does an executor cost, and what do more devices bring? Three tables, each with its target.

    PYTHONPATH=. python benchmarks/scale.py cost       one-second tasks on the workers of a Ray cluster of this machine, beside no executor at all
    PYTHONPATH=. python benchmarks/scale.py found      a sweep of 10,000 cells, all finished, is asked again
    PYTHONPATH=. python benchmarks/scale.py devices    a sweep of 64 tasks on one GPU, on two, …, loading counted; scores must be the same

`devices` makes a random model of the sizes of SmolLM2-135M in a folder, and refuses to report if the scores of one and of several devices differ.
"""

import argparse
import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from report import machine, write_report

from workbench.executors import Wanted, executor
from workbench.sweeping import Dataset, Sweep, run

MOST, FOUND, GAIN = 0.05, 5.0, 1.9
"""The targets: the most that an executor may cost, seconds to find what is finished, and the gain by a second device."""

SIZES = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}


@dataclass(frozen=True)
class Second:
    """A task that takes a second, and nothing of the machine."""

    number: int
    wanted: None = None

    @property
    def what(self) -> str:
        return f"second {self.number}"

    def run(self, _desk: object) -> int:
        time.sleep(1.0)
        return self.number


def cost(given: argparse.Namespace) -> None:
    """Seconds of a sweep of one-second tasks, beginning included and not, beside the seconds that the tasks take."""
    rows = []
    for round_ in range(given.rounds):
        for name, workers in (("local", 1), ("ray", given.workers)):
            begin = time.perf_counter()
            with closing(executor(name, cpus=1)) as chosen:
                chosen.submit(*(Second(number) for number in range(given.tasks)))
                outcomes = chosen.outcomes()
                first = next(outcomes)
                started = time.perf_counter() - begin - first.seconds
                found = sorted([first.value, *(one.taken() for one in outcomes)])
                seconds = time.perf_counter() - begin
            if found != list(range(given.tasks)):
                raise SystemExit("a task was lost, or done twice")
            least = given.tasks / workers
            share = {"cost": (seconds - started) / least - 1, "cost with beginning": seconds / least - 1}
            rows.append(
                {"round": round_, "executor": name, "workers": workers, "tasks": given.tasks, "tasks s": least, "begins s": started, "s": seconds, **share}
            )
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    middle = table.groupby(["executor", "workers", "tasks"], as_index=False).median().drop(columns="round")
    middle["target"] = [f"{value:.1%} ≤ {MOST:.0%}: {'met' if value <= MOST else 'missed'}" for value in middle["cost"]]
    remark = (
        f"{given.tasks} tasks that sleep for a second, by {given.workers} workers of a cluster that is begun for them, and one by one in this process. "
        "Cost: what the tasks took beyond their own seconds, from when the first began; beside it with the cluster's and the workers' beginning. "
        f"Medians of {given.rounds} rounds."
    )
    write_report(given.out / f"scale_cost_{given.name}", "What an executor costs", [remark], middle, table)


def found(given: argparse.Namespace) -> None:
    """Seconds until a sweep whose cells are all finished is seen to be finished."""
    with tempfile.TemporaryDirectory() as folder:
        root, model = Path(folder) / "sweep", saved(Path(folder) / "model", tiny=True)
        one = Sweep((Wanted(str(model)),), ("copying",))
        with closing(executor("local")) as chosen:
            run(one, Dataset(root), chosen)
        (made,) = (root / "scores").glob("*.parquet")
        content = made.read_bytes()
        many = Sweep(one.models, one.probes, seeds=tuple(range(given.cells)))
        for cell in many.cells():
            (root / "scores" / f"{cell.fingerprint}.parquet").write_bytes(content)
        rows = []
        for round_ in range(given.rounds):
            begin = time.perf_counter()
            with closing(executor("local")) as chosen:
                done = run(many, Dataset(root), chosen)
            rows.append({"round": round_, "cells": done.found, "seconds": time.perf_counter() - begin})
            if (done.found, done.made) != (given.cells, 0):
                raise SystemExit(f"not all was found: {done}")
        begin = time.perf_counter()
        length = len(pd.read_parquet(root / "scores"))
        reading = time.perf_counter() - begin
    table = pd.DataFrame(rows)
    middle = float(table["seconds"].median())
    shown = pd.DataFrame(
        [{"finished cells": given.cells, "found s": middle, "target": f"{middle:.2f} ≤ {FOUND:g} s: {'met' if middle <= FOUND else 'missed'}"}]
    )
    shown["pandas reads all s"], shown["rows"] = reading, length
    write_report(given.out / f"scale_found_{given.name}", "Finished tasks are found again", [f"Median of {given.rounds} rounds, files in cache."], shown, table)


def devices(given: argparse.Namespace) -> None:
    """A sweep on one device, then on more; from the first command to the last score, loading counted."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        model = saved(Path(folder) / "model", tiny=given.tiny)
        ray.init(address="local", log_to_driver=False, logging_level="error", include_dashboard=False)
        there = int(ray.cluster_resources().get("GPU", 0)) if not given.tiny else 2
        options = {f"length {given.length}": {"length": given.length}}
        seeds = list(range(given.tasks))
        asked = {"models": [str(model)], "probes": given.probes, "prompts": list(options.values()), "seeds": seeds}
        sweep, rows, tables = Sweep.parse(asked), [], []
        earlier = pd.read_csv(given.add) if given.add else pd.DataFrame({"round": []})
        for round_ in range(len(set(earlier["round"])), len(set(earlier["round"])) + given.rounds):
            for count in sorted({1, there}, reverse=round_ % 2 == 1):
                root = Path(folder) / f"{count}_{round_}"
                ahead = hold(there - count, given.tiny)
                begin = time.perf_counter()
                with closing(executor("ray", gpus=0.0 if given.tiny else 1.0)) as chosen:
                    done = run(sweep, Dataset(root), chosen)
                seconds = time.perf_counter() - begin
                for actor in ahead:
                    ray.kill(actor)
                if done.failed:
                    raise SystemExit(f"failed: {done.failed}")
                table = Dataset(root).table()
                tables.append(table.sort_values(["cell", "layer", "head"], ignore_index=True)["score"].to_numpy())
                work = Dataset(root).overview()["seconds"].sum()
                rows.append(
                    {
                        "round": round_,
                        "devices": count,
                        "tasks": given.tasks,
                        "seconds": seconds,
                        "work s": work,
                        "tasks per minute": given.tasks / seconds * 60,
                    }
                )
                print(rows[-1], flush=True)
                shutil.rmtree(root)
        ray.shutdown()
    if not all(np.array_equal(tables[0], other) for other in tables):
        raise SystemExit("the scores of one and of several devices differ: nothing is reported")
    table = pd.concat([earlier, pd.DataFrame(rows)], ignore_index=True)
    middle = table.groupby("devices", as_index=False).median().drop(columns="round")
    middle["×"] = middle["tasks per minute"] / middle["tasks per minute"].iloc[0]
    middle["target"] = ["" if row["devices"] == 1 else f"{row['×']:.2f} ≥ {GAIN}: {'met' if row['×'] >= GAIN else 'missed'}" for _, row in middle.iterrows()]
    probes = ", ".join(f"`{probe}`" for probe in given.probes)
    remark = f"{given.tasks} seeds of {probes} at {given.length} tokens, from before the workers begin to the last score; all scores equal."
    remarks = [f"{remark} Medians of {table['round'].nunique()} rounds, the second in the other order."]
    write_report(given.out / f"scale_devices_{given.name}", "What more devices bring to a sweep", remarks, middle, table)


def hold(count: int, tiny: bool) -> list:
    """Actors that keep devices from the sweep."""
    import ray

    class Holder:
        def there(self) -> bool:
            return True

    needs = {"num_cpus": 1} if tiny else {"num_cpus": 0, "num_gpus": 1}
    actors = [ray.remote(Holder).options(**needs).remote() for _ in range(count)]
    ray.get([actor.there.remote() for actor in actors])
    return actors


def saved(folder: Path, *, tiny: bool) -> Path:
    """A random model in a folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from workbench.tiny import random_model

    small = random_model("llama")
    hf = small.hf
    if not tiny:
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES, vocab_size=small.vocabulary, max_position_embeddings=32768)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    hf.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("cost", "found", "devices"))
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="CPUs of this machine, for `cost`")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--probes", nargs="+", default=["previous_token"], help="what a task of `devices` asks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--add", type=Path, help="a CSV of `devices` that was made before on the same machine: its rounds count too")
    parser.add_argument("--tiny", action="store_true", help="devices are CPUs, the model is tiny: says nothing about speed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    kind = machine()
    given.name = "cpu" if "CPU" in kind else kind.lower().replace(" ", "_").replace("nvidia_", "")
    {"cost": cost, "found": found, "devices": devices}[given.table](given)


if __name__ == "__main__":
    main()
