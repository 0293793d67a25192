"""How far does the quick preset agree with the paper's? Retrieval scored both ways on one model.

    python benchmarks/presets.py --out reports/smollm2-135m/presets

`quick`: teacher-forced gold answers, one forward per test. `paper`: greedy decoding, here over 2 lengths × 3 depths × 3 of 6 needles,
successful tests only.
Writes OUT.md and OUT.csv (every head's two scores).
"""

import argparse
import time
from pathlib import Path

import pandas as pd
from report import write_report

from workbench import Options, load, score
from workbench.scores import rank_agreement

PROBES = ("retrieval", "semantic_retrieval")
PAPER = Options(lengths=(400, 800), depths=(0.0, 0.5, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    model = load(given.model, device=given.device, dtype=given.dtype)
    scores, seconds = {}, {}
    for preset in ("quick", "paper"):
        begin = time.perf_counter()
        scores[preset] = score(model, PROBES, preset=preset, runs=given.runs, options=PAPER if preset == "paper" else None)
        seconds[preset] = time.perf_counter() - begin
    summary, rows = [], []
    for probe in PROBES:
        quick, paper = (scores[preset].matrix(probe) for preset in ("quick", "paper"))
        tests = {preset: scores[preset].evidence[probe] for preset in scores}
        summary.append(
            {
                "probe": probe,
                "quick tests": f"{tests['quick']['counted']}/{tests['quick']['tests']}",
                "paper tests": f"{tests['paper']['counted']}/{tests['paper']['tests']}",
            }
            | rank_agreement(quick, paper, 10)
            | {"top30_overlap": rank_agreement(quick, paper, 30)["top30_overlap"], "pearson": float(pd.Series(quick.ravel()).corr(pd.Series(paper.ravel())))}
            | {"heads ≥ 0.1, quick": int((quick >= 0.1).sum()), "heads ≥ 0.1, paper": int((paper >= 0.1).sum())}
        )
        rows += [
            {"probe": probe, "head": str(head), "quick": quick[head.layer, head.index], "paper": paper[head.layer, head.index]} for head in model.shape.heads()
        ]
    what = f"{model.name} ({model.card.fingerprint}), {str(model.dtype).removeprefix('torch.')}, {model.shape.n_layers} × {model.shape.n_heads} heads, seed 0."
    took = f"quick took {seconds['quick']:.0f} s, paper {seconds['paper']:.0f} s. Tests: counted/made; failed and dead tests do not count."
    remarks = [f"{what} {took}"]
    write_report(given.out, "Retrieval scores: quick against paper", remarks, pd.DataFrame(summary), pd.DataFrame(rows))
    print(pd.DataFrame(summary).to_string(index=False))


if __name__ == "__main__":
    main()
