"""Train one gate per KV head on passkeys (DuoAttention's way), and write what DuoAttention and kvpress read.

    python benchmarks/gates_training.py --out reports/smollm2-135m/duo_gates

Writes OUT/full_attention_heads.tsv (the gates) and OUT/config.json (sizes, settings, seed, device, versions, the loss of every step).
"""

import argparse
from dataclasses import fields
from pathlib import Path
from time import perf_counter

import numpy as np
from report import machine

from workbench import load
from workbench.formats import write
from workbench.gates import PROBE, Training, train
from workbench.passkeys import Passkeys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--lengths", type=int, nargs=2, default=Passkeys().lengths, metavar=("FROM", "TO"), help="tokens of a prompt")
    parser.add_argument("--haystack", type=Path, help="a text file to hide the passkeys in")
    for setting in fields(Training):
        parser.add_argument(f"--{setting.name}", type=type(setting.default), default=setting.default)
    given = parser.parse_args()
    model = load(given.model, device=given.device, dtype=given.dtype)
    settings = Training(**{setting.name: getattr(given, setting.name) for setting in fields(Training)})
    start = perf_counter()
    gates = train(model, settings, Passkeys(tuple(given.lengths), haystack=given.haystack), say=print)
    seconds = perf_counter() - start
    labels = gates.labels(machine=machine(), seconds=round(seconds, 1))
    paths = write(labels, given.out, "duo")
    order = np.argsort(-gates.alpha_LG, axis=None, kind="stable")
    names = [f"{layer}.{head}" for layer, head in zip(*np.unravel_index(order, gates.alpha_LG.shape), strict=True)]
    print(f"{settings.steps} steps in {seconds:.0f} s; gates above a half: {(gates.alpha_LG > 0.5).sum()} of {gates.alpha_LG.size}")
    print(f"{PROBE}, layer.KV head, most open first: {' '.join(names)}")
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
