"""What do methods that look for circuits cost? All heads patched, paths to the logits, attribution and codes, beside TransformerLens' plain loop.

    python benchmarks/circuits.py --rounds 3

The loop is one hooked forward per head in which its z is that of the corrupted prompts; the metric is the logit difference. Every method runs once per
round, and the loop its share of the heads, so that all heads have run after the last round. Nothing is reported, and the exit code is 1, if the effects
of a few heads (before anything is timed) or of all heads (afterwards) are not the loop's.
Writes circuits_DEVICE.md and .csv into OUT.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from report import machine, write_report

from workbench.circuits import codes
from workbench.circuits.attribution import edge_attribution, node_attribution
from workbench.circuits.finding import residual_means
from workbench.circuits.patching import activation_patching, replace_sets
from workbench.circuits.paths import path_patching
from workbench.circuits.tasks import Pairs, TaskSet, prepare
from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel, load
from workbench.runs import versions

DRAWN, FORWARDS, CHECKED = 200, 20, 6
"""Items drawn to find as many of one length as are wanted; forwards timed at once; heads compared with the loop before anything is timed."""

LIMITS = {"float32": 1e-3, "bfloat16": 0.25}
"""Logits by which effects may differ from the loop's: those of each prompt in float32; in bfloat16, where logits are rounded to 1/16–1/8, their means."""

LOOP, ALL, LAST, FORWARD = "TransformerLens loop", "patching, all positions", "patching, last position", "one plain forward"
PATHS, PATHS_LAST = "path patching to the logits, all positions", "path patching to the logits, last position"
NODES, EDGES, CODES = "EAP-IG over heads", "EAP-IG over edges", "autoencoder codes"
COLUMNS = ("dtype", "method", "s", "s least", "s most", "loop ÷ this", "forwards", "target")

TARGETS = {
    (ALL, "cuda"): ("faster than the loop", LOOP, 50),
    (ALL, "cpu"): ("faster than the loop", LOOP, 1.7),
    (LAST, "cpu"): ("faster than the loop", LOOP, 8),
    **{(name, device): ("patching there", of, 1.5) for name, of in ((PATHS, ALL), (PATHS_LAST, LAST)) for device in ("cpu", "cuda")},
    **{(NODES, device): ("forwards", FORWARD, 20) for device in ("cpu", "cuda")},
    (CODES, "cpu"): ("s", None, 10),
}
"""By method and device: what is compared, with which method (None: with nothing), and the bound: of the first kind a lower one, else an upper one."""


class CheckError(Exception):
    """What is measured is not right."""


def prompts(model: HFModel, count: int, tokens: int, seed: int) -> TaskSet:
    """So many IOI pairs of one length, that nearest to `tokens` of which there are enough among those drawn. Raises `InputError` if there is none."""
    drawn = prepare(model, "ioi", max(DRAWN, 4 * count), seed=seed)
    enough = [pairs for pairs in drawn.pairs if len(pairs) >= count]
    if not enough:
        raise InputError(f"no length has {count} of the {len(drawn)} prompts that were drawn; ask for fewer")
    return TaskSet(drawn.task, (min(enough, key=lambda pairs: abs(pairs.length - tokens)).rows(range(count)),), drawn.dropped, seed)


class Loop:
    """One hooked forward per head, as users of TransformerLens write it. The corrupted prompts' z are cached beforehand."""

    def __init__(self, model: HFModel, pairs: Pairs) -> None:
        self.lens, self.pairs = model.lens, pairs
        self.clean_BT, corrupted_BT = (torch.tensor(ids_BT, device=model.device) for ids_BT in (pairs.clean_BT, pairs.corrupted_BT))
        with torch.no_grad():
            _, self.cache = self.lens.run_with_cache(corrupted_BT, names_filter=lambda name: name.endswith("attn.hook_z"))
            self.base_B = self.metric(self.lens(self.clean_BT))

    def metric(self, logits_BTV: torch.Tensor) -> np.ndarray:
        """The logit difference of every prompt."""
        return self.pairs.measure(logits_BTV[:, -1], "logit_difference").cpu().numpy()

    def effects(self, heads: Sequence[Head], positions: Sequence[int] | None = None) -> np.ndarray:
        """How replacing each head by itself changes the metric, [prompts, heads]."""
        found, at = [], slice(None) if positions is None else list(positions)
        with torch.no_grad():
            for head in heads:
                name = f"blocks.{head.layer}.attn.hook_z"

                def put(z: torch.Tensor, hook: Any, index: int = head.index, name: str = name) -> torch.Tensor:
                    z = z.clone()
                    z[:, at, index] = self.cache[name][:, at, index]
                    return z

                found.append(self.metric(self.lens.run_with_hooks(self.clean_BT, fwd_hooks=[(name, put)])) - self.base_B)
        return np.stack(found, axis=1)


def methods_of(model: HFModel, data: TaskSet) -> dict[str, Callable[[], Any]]:
    """What is timed beside the loop, from task set to numbers: the passes over clean and corrupted prompts included."""
    ids_BT = torch.tensor(data.pairs[0].clean_BT, device=model.device)

    def forwards() -> None:
        with torch.no_grad():
            for _ in range(FORWARDS):
                model.hf(ids_BT, use_cache=False, logits_to_keep=1)

    all_methods = {
        FORWARD: forwards,
        ALL: lambda: activation_patching(model, data),
        LAST: lambda: activation_patching(model, data, positions=[-1]),
        PATHS: lambda: path_patching(model, data),
        PATHS_LAST: lambda: path_patching(model, data, positions=[-1]),
        NODES: lambda: node_attribution(model, data),
        EDGES: lambda: edge_attribution(model, data),
        CODES: lambda: codes.node_scores(codes.encode(*residual_means(model, data))),
    }
    return {name: run for name, run in all_methods.items() if name != CODES or model.device.type == "cpu"}  # they are trained on the CPU


def compared(ours_BN: np.ndarray, loop_BN: np.ndarray, dtype: str, what: str) -> float:
    """The largest difference from the loop on any prompt. Raises `CheckError` if effects differ by more than the limit of the precision."""
    difference_BN = ours_BN - loop_BN
    worst = float(np.abs(difference_BN if dtype == "float32" else difference_BN.mean(0)).max())
    if not worst <= LIMITS[dtype]:
        raise CheckError(f"{what}, {dtype}: effects differ from the loop's by up to {worst:.2g} logits; {LIMITS[dtype]:g} is allowed")
    return float(np.abs(difference_BN).max())


def gate(model: HFModel, data: TaskSet, loop: Loop, dtype: str) -> None:
    """Compare a few heads, at all positions and at the last one, with the loop. Raises `CheckError`."""
    heads = list(model.shape.heads())
    some = heads[:: max(1, len(heads) // CHECKED)]
    replaced_SLH = np.zeros((len(some), model.shape.n_layers, model.shape.n_heads), bool)
    for row, head in enumerate(some):
        replaced_SLH[row, head.layer, head.index] = True
    value_SN, base_N, _ = replace_sets(model, data, replaced_SLH)
    compared((value_SN - base_N).T, loop.effects(some), dtype, ALL)
    last_NLH = activation_patching(model, data, positions=[-1]).effect_NLH
    compared(last_NLH[:, [head.layer for head in some], [head.index for head in some]], loop.effects(some, [-1]), dtype, LAST)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, the GPU's work included, and what it gives."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begin = time.perf_counter()
    result = run()
    wait()
    return time.perf_counter() - begin, result


def timed(model: HFModel, data: TaskSet, rounds: int, dtype: str) -> tuple[pd.DataFrame, float, float]:
    """Seconds of every method in every round; the largest effect of any head on any prompt, and difference from the loop's. Raises `CheckError`."""
    torch.backends.cuda.matmul.allow_tf32 = False
    loop, methods, heads = Loop(model, data.pairs[0]), methods_of(model, data), list(model.shape.heads())
    gate(model, data, loop, dtype)
    if model.device.type == "cuda":  # on CPUs there is nothing to compile or to load
        for run in methods.values():
            run()
    rows, largest, worst = [], 0.0, 0.0
    for number in range(rounds):
        some, results = heads[number::rounds], {}
        spent, effect_BN = seconds(lambda some=some: loop.effects(some))
        rows.append({"dtype": dtype, "method": LOOP, "round": number, "s": spent * len(heads) / len(some)})
        for name, run in methods.items():
            spent, results[name] = seconds(run)
            rows.append({"dtype": dtype, "method": name, "round": number, "s": spent / (FORWARDS if name == FORWARD else 1)})
            print(f"{dtype}, round {number + 1} of {rounds}: {name} {rows[-1]['s']:.3f} s", file=sys.stderr, flush=True)
        ours_BN = results[ALL].effect_NLH[:, [head.layer for head in some], [head.index for head in some]]
        largest, worst = max(largest, float(np.abs(effect_BN).max())), max(worst, compared(ours_BN, effect_BN, dtype, ALL))
    return pd.DataFrame(rows), largest, worst


def summary(runs: pd.DataFrame, device: str) -> pd.DataFrame:
    """One row per precision and method: median, least and most seconds, ratios of medians, and the target."""
    rows = []
    for dtype, group in runs.groupby("dtype", sort=False):
        by = group.groupby("method", sort=False)["s"]
        median = by.median()
        for name, one in by:
            row = {"dtype": dtype, "method": name, "s": median[name], "s least": one.min(), "s most": one.max()}
            ratios = {"loop ÷ this": median[LOOP] / median[name], "forwards": median[name] / median[FORWARD]}
            rows.append({**row, **ratios, "target": verdict(str(name), device, median)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def verdict(name: str, device: str, median: Mapping[str, float]) -> str:
    """The target of a method, what was measured, and whether it is met."""
    if (name, device) not in TARGETS:
        return ""
    what, of, bound = TARGETS[name, device]
    least = of == LOOP
    value = median[name] if of is None else median[of] / median[name] if least else median[name] / median[of]
    return f"{value:.2f} {'× ' if of in (LOOP, ALL, LAST) else ''}{what} {'≥' if least else '≤'} {bound:g}: {'met' if (value >= bound) == least else 'missed'}"


def write(given: argparse.Namespace, rows: pd.DataFrame, device: str, data: TaskSet, remarks: list[str]) -> None:
    """The report: circuits_DEVICE.md and .csv in OUT."""
    pairs, name = data.pairs[0], re.sub(r"\W+", "_", machine().removeprefix("NVIDIA ").lower()) if device == "cuda" else "cpu"
    what = (
        f"{Path(given.model).name}, {len(pairs)} IOI pairs of {pairs.length} tokens (templates {', '.join(sorted(set(pairs.templates)))}), seed {given.seed}; "
        f"logit difference, all heads, resampled from the corrupted prompts. Medians of {given.rounds} rounds in one run, with least and most; "
        f"{torch.get_num_threads()} threads, no TF32."
    )
    how = (
        f"`{LOOP}`: one hooked forward per head, its cache of the corrupted prompts not counted; each round runs its share of the heads, and the time is that "
        f"of all. `{FORWARD}`: last logits only, from {FORWARDS} in a row. Everything else counts all its passes. `forwards`: in plain forwards."
    )
    stamp = {
        "device": machine(),
        "prompts": len(pairs),
        "tokens": pairs.length,
        "seed": given.seed,
        **versions(),
        "transformer_lens": version("transformer_lens"),
    }
    write_report(given.out / f"circuits_{name}", "What methods that look for circuits cost", [what, how, *remarks], summary(rows, device), rows.assign(**stamp))
    print((given.out / f"circuits_{name}.md").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a catalogue name, folder or GGUF file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="+", choices=list(LIMITS), default=["float32"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    runs, remarks = [], []
    for dtype in given.dtypes:
        model = load(given.model, device=given.device, dtype=dtype)
        data, device = prompts(model, given.prompts, given.tokens, given.seed), model.device.type
        try:
            found, largest, worst = timed(model, data, given.rounds, dtype)
        except CheckError as error:
            sys.exit(f"no speed is reported, as a check failed: {error}")
        runs.append(found)
        heads = model.shape.n_layers * model.shape.n_heads
        remarks.append(f"{dtype}: the effects of all {heads} heads are the loop's to {worst:.1e} logits on every prompt; the largest is {largest:.2f}.")
    write(given, pd.concat(runs, ignore_index=True), device, data, remarks)


if __name__ == "__main__":
    main()
