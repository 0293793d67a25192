"""Does ACT help? The head search on the tasks of the package, the held-out answers, what it cost, and how well screening knows the heads that matter.

    python benchmarks/calibration.py --out reports/smollm2-135m/calibration

Writes OUT.md (the held-out table, and what the search found), OUT.csv (one row per head measured) and OUT.heldout.csv. In float32 on a CPU: one without
instructions for bfloat16 is slower in it.
"""

import argparse
import os
from pathlib import Path

import pandas as pd
from report import write_report

from workbench import load
from workbench.calibration import Asked, Calibration, Setting, calibrate
from workbench.edits import Calibrate, SinkRule
from workbench.files import write_text


def load_of_machine() -> str:
    """How many processes want a core, on average over the last 15 minutes."""
    return f"{os.getloadavg()[2]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def remarks(found: Calibration, before: str) -> list[str]:
    facts, edit = found.provenance, found.provenance["edit"]
    tasks = "; ".join(f"{task}: {of['calibration']} questions to search on, {of['held_out']} held out" for task, of in facts["tasks"].items())
    sinks = f"sinks: {edit['rule']} {edit['threshold']:g}, β = {edit['beta']:g}"
    return [
        f"{facts['model']} ({facts['fingerprint']}), {facts['dtype']}; {sinks}; {tasks}; seed {facts['seed']}.",
        verdict(found),
        *searched(found),
        timed(found, before),
        "`difference` is against no calibration, with a 95% interval (paired bootstrap); `p` is McNemar's exact test; `mean` weighs the tasks alike.",
    ]


def verdict(found: Calibration) -> str:
    mean = found.held_out[found.held_out["task"] == "mean"].set_index("heads")
    if "kept" not in mean.index:
        return "No head helped on the calibration questions, so that none was calibrated."
    kept = mean.loc["kept"]
    sure = kept["p"] < 0.05
    said = "helps" if sure and kept["difference"] > 0 else "hurts" if sure else "shows no effect that these questions could tell"
    interval = f"95% {kept['difference_low']:+.1%} to {kept['difference_high']:+.1%}"
    turned = f"{kept['fixed']} answers turned right and {kept['broken']} wrong, McNemar p = {kept['p']:.2g}"
    random = ", ".join(f"{value:+.1%}" for value in mean.loc[["random"], "difference"]) if "random" in mean.index else "not measured"
    sinks = (
        f"{kept['sinks']:.0f} sinks per question in the kept heads, {mean.loc[['random'], 'sinks'].mean():.0f} in random ones" if "random" in mean.index else ""
    )
    others = f"as many random heads: {random} ({sinks}); all heads: {mean.loc['all', 'difference']:+.1%}"
    return (
        f"**On held-out questions calibrating the kept heads {said}**: {kept['difference']:+.1%} ({interval}; {turned}); {others}. One split, one rule, one β."
    )


def searched(found: Calibration) -> list[str]:
    search = found.search
    counts = search.table["stopped"].replace("", "all questions seen").value_counts()
    drawn = (search.table["chosen"] == "sample").sum()
    chosen = (
        f"{len(search.table)} of {len(search.candidates)} candidates measured: the best {found.provenance['screen']:.0%} by first-order effect, {drawn} others"
    )
    agreement = [
        f"{name} ({of['heads']} heads): Spearman {of['spearman']:.2f}, " + ", ".join(f"{key.replace('_', ' ')} {of[key]:.2f}" for key in of if "top" in key)
        for name, of in search.agreement.items()
    ]
    return [
        f"{chosen} at random. Why each was left: {'; '.join(f'{name} {count}' for name, count in counts.items())}.",
        f"Kept: {', '.join(map(str, search.kept)) or 'none'}.",
        f"{'. '.join(found.remarks)}.",
        f"Screening beside exact changes of the loss, on the same questions: {'; '.join(agreement)}.",
    ]


def timed(found: Calibration, before: str) -> str:
    cost = found.search.cost
    times = {name: (cost[f"{name}_seconds"] / 60, cost[f"{name}_cpu_seconds"] / 60) for name in ("screening", "measuring", "held_out", "full", "naive")}
    told = {name: f"{wall:.1f} min ({cpu:.1f} of processor time)" for name, (wall, cpu) in times.items()}
    both = times["screening"][1] + times["measuring"][1]
    full = f"without screening and early stops it would take about {told['full']}, as one plain pass per head and question {told['naive']}"
    shared = f"The machine was shared: {before} processes wanted its cores on average before, {load_of_machine()} at the end"
    return (
        f"The search: screening {told['screening']}, measuring {told['measuring']}, {cost['passes']:,.0f} passes; {both:.1f} min of processor time are about "
        f"{both / 2:.1f} min of two cores, were both busy with nothing else all the time; {full}. Held-out questions took {told['held_out']}. {shared}."
    )


def measured(given: argparse.Namespace) -> Calibration:
    model = load(given.model, device=given.device, dtype=given.dtype)
    setting = Setting(Calibrate(beta=given.beta, rule=SinkRule(given.rule)), screen=given.screen, seed=given.seed)
    asked = Asked(examples=given.examples, held_out=given.held_out, seed=given.seed)
    return calibrate(model, asked, setting, seeds=range(given.random_sets), progress=lambda what, done, total: print(f"{what} {done}/{total}", flush=True))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--random-sets", type=int, default=2)
    parser.add_argument("--screen", type=float, default=0.15)
    parser.add_argument("--beta", type=float, default=0.4)
    parser.add_argument("--rule", default="share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    return parser.parse_args()


def write(given: argparse.Namespace, found: Calibration, before: str) -> pd.DataFrame:
    shown = {"seed": "{:.0f}", "low": "{:.3f}", "high": "{:.3f}", "p": "{:.2g}", "sinks": "{:.1f}"}
    text = {name: ["" if pd.isna(value) else how.format(value) for value in found.held_out[name]] for name, how in shown.items()}
    table = found.held_out.assign(**text)
    write_report(given.out, "Attention sinks calibrated (ACT)", remarks(found, before), table, found.search.table)
    write_text(given.out.with_suffix(".heldout.csv"), found.held_out.to_csv(index=False))
    return table


def main() -> None:
    given, before = parsed(), load_of_machine()
    print(write(given, measured(given), before).to_string(index=False))


if __name__ == "__main__":
    main()
