"""When do previous-token heads, induction heads and attention sinks appear? Small models are trained, and their checkpoints are scored.

    python benchmarks/emergence.py --out reports/emergence [--device cuda] [--only base sigmoid] [--seeds 0 1] [--steps 2048] [--batch 32]

Every run is a model of its own: `base`, no weight decay and strong weight decay, and sigmoid attention without normalisation (the cheap interventions of
Gu et al. 2024, 2410.10781). Checkpoints are model folders under --folder, and a run that is there with the same settings is not trained again. OUT
gets one table of all checkpoints (`emergence.csv`), when each kind of head appears (`onsets.csv`), the figure, and a README.
"""

import argparse
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd
import torch
from report import machine, made, markdown

from workbench.emergence.onset import onsets
from workbench.emergence.reading import swept
from workbench.emergence.training import Growth, checkpoints, grow
from workbench.files import write_text
from workbench.views import emergence_figure, save_figure

RUNS = {
    "base": {},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 1": {"weight_decay": 1.0},
    "sigmoid": {"attention": "sigmoid"},
}
"""The interventions: what differs from `Growth()`."""

SETTINGS = [setting for setting in fields(Growth) if setting.name not in {"seed", "attention", "weight_decay"}]
"""What may be set for all runs alike."""

DIGITS = 4
"""Of the numbers in the table of checkpoints."""

SHOWN = {"probe": "kind", "reading": "read from", "before": "absent at step", "step": "there at step", "highest": "highest score", "last": "score at the end"}
"""What the columns of the README's table are called."""

LOSSES = {"text": "loss on held-out text", "first": "loss on random tokens", "second": "loss on their repetition"}
"""What the columns of losses are called."""

ABOUT = """A Llama of {layers} layers × {heads} heads of {size} dimensions, residual stream {width}, on bytes: {steps} steps of {batch} sequences of {context}
tokens. Of these {repeats:.0%} are segments of random bytes, repeated to the end; the others are pieces of the language reference of Python, whose last tenth is
held out. AdamW, rate {rate:g}, weight decay {weight_decay:g} unless the run says otherwise.

A kind of head appears at the first checkpoint at which a head scores at least the threshold, and more than its null; at the checkpoint
before it was absent. — : at no checkpoint. `heads` are those at the end.

`attention_sink` is measured on text, `attention_sink_bos` on random tokens behind BOS, where an induction head finds nothing to attend to.

Sigmoid attention has no probabilities. The first table is of `shares`, its weights divided by their row's sum. The figure and `emergence.csv` also have the
`weights` themselves, each 0–1 and ½ before the first step; no threshold is meant for them, as a head may give weights near 1 to many keys at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/emergence"))
    parser.add_argument("--folder", type=Path, default=Path("runs/emergence"), help="where checkpoints lie")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; another number gives other rounding, hence another run")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    for setting in SETTINGS:
        parser.add_argument(f"--{setting.name}", type=type(setting.default), default=setting.default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shared = Growth(**{setting.name: getattr(given, setting.name) for setting in SETTINGS})
    tables, told = [], []
    for run in given.only:
        for seed in given.seeds:
            growth = replace(shared, seed=seed, **RUNS[run])
            table, facts = done(growth, given.folder / f"{run.replace(' ', '-')}-{seed}", given.device)
            tables.append(table.assign(run=run, seed=seed))
            made_by = {"seconds": facts["seconds"], "machine": facts["machine"], "torch": facts["versions"]["torch"]}
            told.append({"run": run, "seed": seed, **made_by, **last(table)})
    table = pd.concat(tables, ignore_index=True)
    report(table[["run", "seed", *tables[0].columns.drop(["run", "seed"])]], pd.DataFrame(told), shared, given.out)


def last(table: pd.DataFrame) -> dict[str, float]:
    """The losses of the last checkpoint."""
    return table.sort_values("step")[list(LOSSES)].iloc[-1].to_dict()


def done(growth: Growth, folder: Path, device: str) -> tuple[pd.DataFrame, dict]:
    """The table of a run and what is known about its making, from its folder if it is there with the same settings."""
    written, scores = folder / "growth.json", folder / "scores.csv"
    facts = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    if not facts.items() >= asdict(growth).items():
        print(f"{folder.name}: {growth}", flush=True)
        scores.unlink(missing_ok=True)
        grow(growth, folder, device=device, say=lambda text: print(text, flush=True))
        facts = {**json.loads(written.read_text(encoding="utf-8")), "machine": machine()}
        write_text(written, json.dumps(facts) + "\n")
    if not scores.exists():
        table = swept(checkpoints(growth, folder), growth, device=device, say=lambda text: print(text, flush=True))
        write_text(scores, table.round(DIGITS).to_csv(index=False))
    return pd.read_csv(scores), facts


def report(table: pd.DataFrame, told: pd.DataFrame, growth: Growth, out: Path) -> None:
    """The tables, the figure and the README."""
    out.mkdir(parents=True, exist_ok=True)
    found = onsets(table, ["run", "seed", "reading"])
    found["run"] = pd.Categorical(found["run"], list(dict.fromkeys(table["run"])))
    found = found.sort_values(["run", "probe", "reading", "seed"]).reset_index(drop=True)
    write_text(out / "emergence.csv", table.to_csv(index=False))
    write_text(out / "onsets.csv", found.to_csv(index=False))
    write_text(out / "runs.csv", told.to_csv(index=False))
    shown = found.rename(columns=SHOWN)
    for column in ("before", "step"):
        shown[SHOWN[column]] = ["—" if pd.isna(value) else f"{value:.0f}" for value in found[column]]
    parts = [
        "# When heads appear",
        "![Losses, strongest heads and their number over steps](emergence.png)",
        ABOUT.format(**asdict(growth)),
        markdown(shown),
        "## What the runs came to",
        "Losses in nats per token at the last step; bytes drawn at random cannot be foretold better than ln 256 = 5.55.",
        markdown(told.rename(columns=LOSSES)),
        "`emergence.csv` has every score of every head at every checkpoint with the losses beside it, `onsets.csv` the first table, `runs.csv` the second.",
        "The last line says what wrote this page; where and with what the runs were grown, the table above says.",
        made(),
    ]
    write_text(out / "README.md", "\n\n".join(parts) + "\n")
    print(shown.to_string())
    save_figure(emergence_figure(table), out / "emergence.png")  # last: it needs a browser, which a machine with a GPU may lack


if __name__ == "__main__":
    main()
