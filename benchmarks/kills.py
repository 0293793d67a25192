"""Is nothing lost, done twice or half-written? A sweep on a Ray cluster of two nodes on this machine, during which workers, nodes and drivers are killed.

    PYTHONPATH=. python benchmarks/kills.py --kills 50

A driver runs a sweep of small models, as a user would. Every few seconds one of three things is killed without warning: a worker (SIGKILL), a node (its
raylet; another is added), or the driver (SIGKILL; it is begun again). When the kills are over the sweep runs to its end. Counted at every kill and at the
end: files that cannot be read or differ from those of a sweep in one process, files that were finished and were written again, files that are missing,
rubbish beside them.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from report import write_report

from workbench.executors import Wanted, executor
from workbench.sweeping import Dataset, Sweep, run
from workbench.tiny import random_model

PROBES = ("previous_token", "induction", "attention_sink")
KINDS = ("worker", "worker", "worker", "driver", "node")
NODE = {"object_store_memory": 80 * 2**20, "num_cpus": 1}


def saved(folder: Path, seeds: int) -> list[Wanted]:
    """Small random models in folders."""
    made = []
    for seed in range(seeds):
        model = random_model("llama", seed=seed)
        model.hf.save_pretrained(folder / str(seed))
        model.tokenizer.save_pretrained(folder / str(seed))
        made.append(Wanted(str(folder / str(seed))))
    return made


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every finished file with the time at which it was written, and its content."""
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*.parquet")}


class Watch:
    """What has gone wrong so far."""

    def __init__(self, root: Path, expected: dict[str, bytes]) -> None:
        self._root, self.expected, self._seen = root, expected, {}
        self.wrong: Counter[str] = Counter()

    def look(self) -> int:
        """Hold what is there to what is expected, and to what was there before; how much is there."""
        there = files(self._root) if self._root.exists() else {}
        self.wrong["half-written or different"] += sum(content != self.expected.get(name) for name, (_, content) in there.items())
        self.wrong["written again"] += sum(there[name][0] != time_ for name, time_ in self._seen.items() if name in there)
        self.wrong["gone"] += sum(name not in there for name in self._seen)
        self._seen = {name: time_ for name, (time_, _) in there.items()}
        return len(there)

    def end(self) -> None:
        """What must be there at the end, and nothing else."""
        self.look()
        self.wrong["missing"] += len(set(self.expected) - set(self._seen))
        self.wrong["rubbish that blocks nothing"] += len(list(self._root.rglob("*.part")))


def driver(sweep: Sweep, address: str, out: Path) -> subprocess.Popen:
    """A process that runs the sweep."""
    models = [part for wanted in sweep.models for part in ("--model", wanted.name)]
    asked = [*models, *(part for probe in PROBES for part in ("--probe", probe)), *(part for seed in sweep.seeds for part in ("--seed", str(seed)))]
    command = [sys.executable, "-m", "workbench.cli", "sweep", *asked, "--executor", "ray", "--address", address, "--out", str(out)]
    with out.with_name("driver.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def workers() -> list[psutil.Process]:
    """The processes that Ray runs our actors in."""
    return [process for process in psutil.process_iter(["cmdline"]) if (process.info["cmdline"] or [""])[0].startswith("ray::Worker")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = Sweep(tuple(saved(folder / "models", given.models)), PROBES, seeds=tuple(range(given.seeds)))
        with closing(executor(cpus=1)) as alone:
            begin = time.perf_counter()
            run(sweep, Dataset(folder / "expected"), alone)
            undisturbed = time.perf_counter() - begin
        watch = Watch(folder / "sweep", {name: content for name, (_, content) in files(folder / "expected").items()})
        finish(given, *disturbed(given, sweep, watch, folder), undisturbed)


def disturbed(given: argparse.Namespace, sweep: Sweep, watch: "Watch", folder: Path) -> tuple[pd.DataFrame, "Watch", float, int]:
    """Run the sweep and kill; every kill, what was wrong, the seconds, and how the last driver ended."""
    from ray.cluster_utils import Cluster

    rng = np.random.default_rng(given.seed)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    node, begin, rows = cluster.add_node(**NODE), time.perf_counter(), []
    process = driver(sweep, cluster.address, folder / "sweep")
    while len(rows) < given.kills:
        time.sleep(rng.uniform(1.0, 4.0))
        if process.poll():
            sys.exit(f"the driver ended with {process.returncode}: {(folder / 'driver.log').read_text()[-600:]}")
        if process.poll() == 0:  # all is done before the kills are: once more from the beginning
            watch.end()
            shutil.rmtree(folder / "sweep")
            watch = fresh(watch, folder)
            process = driver(sweep, cluster.address, folder / "sweep")
            continue
        kind, alive = str(rng.choice(KINDS)), workers()
        if kind == "worker" and not alive:
            continue
        if kind == "worker":
            alive[rng.integers(len(alive))].kill()
        elif kind == "node":
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(**NODE)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(1.0)
        there = watch.look()
        if kind == "driver":
            process = driver(sweep, cluster.address, folder / "sweep")
        rows.append({"kill": len(rows) + 1, "kind": kind, "at s": time.perf_counter() - begin, "finished files": there})
        print(rows[-1], dict(watch.wrong), flush=True)
    process.wait()
    watch.end()
    cluster.shutdown()
    return pd.DataFrame(rows), watch, time.perf_counter() - begin, process.returncode


def fresh(watch: Watch, folder: Path) -> Watch:
    """Watch the same sweep from its beginning, with what has been counted."""
    made = Watch(folder / "sweep", watch.expected)
    made.wrong = watch.wrong
    return made


def finish(given: argparse.Namespace, rows: pd.DataFrame, watch: Watch, seconds: float, code: int, undisturbed: float) -> None:
    """Write the report; exit with 1 if anything was wrong."""
    kills = rows["kind"].value_counts().sort_index()
    counts = {**{f"kills of a {kind}": count for kind, count in kills.items()}, **watch.wrong}
    table = pd.DataFrame({"what": list(counts), "count": list(counts.values())})
    remark = (
        f"{given.models} models × {given.seeds} seeds, {', '.join(PROBES)}: {len(watch.expected)} files. "
        f"In one process, undisturbed: {undisturbed:.0f} s; with the kills: {seconds:.0f} s. The last driver ended with {code}. Seed {given.seed}."
    )
    write_report(given.out / "kills", "Workers, nodes and drivers killed during a sweep", [remark], table, rows)
    if code or sum(watch.wrong[name] for name in ("half-written or different", "written again", "gone", "missing")):
        sys.exit("something was lost, done twice or half-written")


if __name__ == "__main__":
    main()
