"""What would larger work take? A cost model fitted to the committed measurements, and three answers from it; nothing is measured here.

    PYTHONPATH=. python benchmarks/scaling.py

One pass with the full set of reads over T tokens on n devices takes

    s(T, n) = (dense · 2 P T + pairs · 2 L H E T²) / n + spread · T L D · 2 (n − 1) / n

P: parameters of the blocks; L, D, H, E: layers, residual size, query heads, head size. `dense` and `pairs` are seconds per operation; `spread` is what a
second device adds: sums of layers that travel in a ring, and what every device does. Memory of a device beside its weights: (alike + parted / n) T bytes, in
units of the MLP's width. Three of four measurements fix the constants; the fourth, the long prompt on several devices, says how far to believe them.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from report import markdown, write_report

HERE = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Kind:
    """The sizes of a model."""

    name: str
    parameters: float
    layers: int
    heads: int
    size: int
    width: int
    vocabulary: int
    model: int

    @property
    def blocks(self) -> float:
        """Parameters without the embedding and the unembedding."""
        return self.parameters - 2 * self.vocabulary * self.model

    def dense(self, tokens: float) -> float:
        """Operations of the projections and MLPs."""
        return 2 * self.blocks * tokens

    def pairs(self, tokens: float) -> float:
        """Operations of queries with keys and of probabilities with values, causal."""
        return 2 * self.layers * self.heads * self.size * tokens**2


EIGHT = Kind("8B (Llama-3.1-8B's sizes)", 8.03e9, 32, 32, 128, 14336, 128256, 4096)
SEVENTY = Kind("70B (Llama-3.1-70B's sizes)", 70.55e9, 80, 64, 128, 28672, 128256, 8192)


@dataclass(frozen=True)
class Fit:
    """The constants; seconds per operation, seconds per token, bytes per token and unit of the MLP's width."""

    dense: float
    pairs: float
    spread: float
    alike: float
    parted: float

    def seconds(self, kind: Kind, tokens: float, devices: int) -> float:
        """Of a pass."""
        work = self.dense * kind.dense(tokens) + self.pairs * kind.pairs(tokens)
        return work / devices + self.spread * tokens * kind.model * kind.layers * 2 * (devices - 1) / devices

    def gib(self, kind: Kind, tokens: float, devices: int) -> tuple[float, float]:
        """Of weights in bfloat16 and of the pass, per device."""
        embedding = 2 * kind.vocabulary * kind.model  # every device has it
        return ((2 * kind.parameters - embedding) / devices + embedding) / 2**30, (self.alike + self.parted / devices) * tokens * kind.width / 2**30


def fitted(rows: pd.DataFrame) -> tuple[Fit, pd.DataFrame]:
    """The constants from all but the long prompt on several devices, and how each measurement is met."""
    middle = rows[rows["round"] > 0].groupby(["devices", "tokens"])[["seconds", "peak GiB"]].median()
    short, long = sorted({tokens for _, tokens in middle.index})
    several = max(devices for devices, _ in middle.index)
    work = np.array([[EIGHT.dense(tokens), EIGHT.pairs(tokens)] for tokens in (short, long)])
    dense, pairs = np.linalg.solve(work, [middle.loc[(1, short), "seconds"], middle.loc[(1, long), "seconds"]])
    spread = (middle.loc[(several, short), "seconds"] - middle.loc[(1, short), "seconds"] / several) / (short * EIGHT.model * EIGHT.layers)
    one, part = (middle.loc[(devices, short), "peak GiB"] * 2**30 / short / EIGHT.width for devices in (1, several))
    parted = (one - part) / (1 - 1 / several)
    fit = Fit(dense, pairs, spread, one - parted, parted)
    shown = [
        {
            "devices": devices,
            "tokens": tokens,
            "measured s": row["seconds"],
            "model s": fit.seconds(EIGHT, tokens, devices),
            "measured peak GiB": row["peak GiB"],
            "model peak GiB": fit.gib(EIGHT, tokens, devices)[1],
        }
        for (devices, tokens), row in middle.iterrows()
    ]
    return fit, pd.DataFrame(shown)


def answers(fit: Fit) -> pd.DataFrame:
    """What a 70B model at 128k takes, by numbers of devices; and the 8B one, whose two first rows were measured."""
    rows = []
    for kind, numbers in ((EIGHT, (1, 2, 8)), (SEVENTY, (2, 4, 8))):
        for devices in numbers:
            weights, peak = fit.gib(kind, 131072, devices)
            row = {
                "model": kind.name,
                "tokens": 131072,
                "devices": devices,
                "s per pass": fit.seconds(kind, 131072, devices),
                "weights GiB": weights,
                "pass GiB": peak,
            }
            rows.append(row | {"fits 80 GB": "yes" if weights + peak < 72 else "no", "fits 141 GB": "yes" if weights + peak < 128 else "no"})
    return pd.DataFrame(rows)


def tasks(path: Path) -> dict[str, float]:
    """Of a sweep: seconds until the first task begins and per task, per device."""
    rows = pd.read_csv(path)
    work = rows["work s"] / rows["tasks"]
    return {"s per task": float(work.median()), "s until all begin": float((rows["seconds"] - rows["work s"] / rows["devices"]).median())}


def told(fit: Fit) -> list[str]:
    """The constants, how they meet what was measured, and what follows for checkpoints and users."""
    met = fitted(pd.read_csv(HERE / "scale_sharded_h200.csv"))[1]
    sweep, hours = tasks(HERE / "scale_devices_h200.csv"), 1000 / 3600
    label = float(pd.read_csv(HERE / "label_time_cpu.csv")["own s"].median())
    users = pd.read_csv(HERE / "dashboard_users_cpu.csv")
    per_user = float(np.polyfit(users["users"], users["server MB"], 1)[0])
    change = float(users["server CPU s per change"].median())
    constants = (
        f"Fitted to H200s: projections and MLPs {1e-12 / fit.dense:.0f} TFLOP/s, attention with its reads {1e-12 / fit.pairs:.0f} TFLOP/s; a second device "
        f"adds {fit.spread * EIGHT.model * EIGHT.layers * 1e6:.2f} µs per token of the 8B shape; a pass takes {fit.alike:.2f} + {fit.parted:.2f} / n bytes per "
        "token and unit of the MLP's width. Beyond two devices, and for 70B, nothing was measured; `fits` leaves a tenth of the card free."
    )
    checkpoints = (
        f"A sweep of 64 cells at 32,768 tokens with the sizes of SmolLM2 takes {sweep['s per task']:.2f} s per cell of one device and "
        f"{sweep['s until all begin']:.1f} s until all have begun. A thousand checkpoints so: {sweep['s per task'] * hours:.2f} h of one H200. All probes "
        f"of the quick preset take {label:.0f} s per model of that size on 2 CPU cores: {label * hours:.0f} h for a thousand."
    )
    people = (
        f"The dashboard's server takes {per_user:.0f} MB per user beside the first user's {users['server MB'].iloc[0]:.0f}, and {change:.2f} s of a processor "
        f"per page change. A hundred users who change a page every 20 s: {per_user * 100 / 1000:.1f} GB more, and {change * 100 / 20:.1f} cores, of which one "
        "Python process uses about one."
    )
    return [constants, "The fit, of which the last row is no part:", markdown(met), checkpoints, people]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "scaling")
    given = parser.parse_args()
    fit, _ = fitted(pd.read_csv(HERE / "scale_sharded_h200.csv"))
    write_report(given.out, "What larger work would take", told(fit), answers(fit))


if __name__ == "__main__":
    main()
