"""Eliminate KV heads one after another, by what right answers to needle tests lose, and write the order as scores.

    python benchmarks/head_elimination.py --out reports/smollm2-135m/elimination.json

The needles are those of `needles_to_choose_by.jsonl`, none of which the package has, so that `workbench verify` tests on others. OUT is a labels file with
the scores `elimination`, for `workbench policy` and `verify --scores OUT --by elimination`; every step is in its provenance.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from time import perf_counter

import numpy as np
from report import machine

from workbench import load
from workbench.elimination import PROBE, Eliminating, eliminate
from workbench.needles import NeedleTests

NEEDLES = Path(__file__).parent / "needles_to_choose_by.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--needles", type=Path, default=NEEDLES)
    parser.add_argument("--haystack", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[800, 1600, 2400])
    parser.add_argument("--depths", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--per-cell", type=int, default=10, help="needles for each length and depth")
    parser.add_argument("--tests-seed", type=int, default=1000)
    for setting in fields(Eliminating):
        parser.add_argument(f"--{setting.name}", type=type(setting.default), default=setting.default)
    given = parser.parse_args()
    model = load(given.model, device=given.device, dtype=given.dtype)
    tests = NeedleTests(str(given.needles), tuple(given.lengths), tuple(given.depths), given.per_cell, given.haystack)
    settings = Eliminating(**{setting.name: getattr(given, setting.name) for setting in fields(Eliminating)})
    begin = perf_counter()
    order = eliminate(model, tests.build(model, given.tests_seed), settings, say=lambda text: print(text, flush=True))
    path = order.labels(machine=machine(), seconds=round(perf_counter() - begin, 1), tests_seed=given.tests_seed).save(given.out)
    last = np.argsort(-order.place_LG, axis=None, kind="stable")
    print(f"{PROBE}, layer.KV head, last first:", *(f"{place // order.place_LG.shape[1]}.{place % order.place_LG.shape[1]}" for place in last))
    print(path)


if __name__ == "__main__":
    main()
