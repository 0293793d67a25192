"""How well does a model predict a text far longer than its cache? Dense, window, recomputed window, and sinks + window, as in StreamingLLM's table.

python benchmarks/streaming_perplexity.py --tokens 16384 --caches 256 1024 --out reports/smollm2-135m/streaming_llm
"""

import argparse
import time
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from report import write_report

from workbench.edits import Stream
from workbench.files import write_text
from workbench.models import load
from workbench.recipes import default_front, haystack_text, offsets
from workbench.streaming_text import losses, recomputed

BINS = 48
COLOURS = ("#000000", "#d62728", "#1f77b4", "#17becf", "#8c564b", "#ff7f0e", "#2ca02c", "#bcbd22", "#9467bd")


def perplexity(nll_N: np.ndarray) -> float:
    """exp of the mean loss."""
    return float(np.exp(nll_N.mean()))


def stretches(name: str, position_N: np.ndarray, nll_N: np.ndarray, length: int) -> pd.DataFrame:
    """Mean loss, position and number of tokens in stretches of the text."""
    table = pd.DataFrame({"stretch": position_N * BINS // length, "position": position_N, "nll": nll_N})
    means = table.groupby("stretch").agg(position=("position", "mean"), nll=("nll", "mean"), tokens=("nll", "size")).reset_index()
    return means.assign(way=name)[["way", "stretch", "position", "nll", "tokens"]].round(4)


def picture(curves: list[pd.DataFrame], title: str, trained: int) -> str:
    """Loss by position as a page with one drawing (SVG): a curve for each way, dots where few rows were measured."""
    every = pd.concat(curves)
    right, top = every["position"].max(), every["nll"].max()

    def at(position: float, nll: float) -> tuple[float, float]:
        return 50 + 850 * position / right, 420 - 390 * nll / top

    parts = [f'<text x="50" y="18">{escape(title)}: mean loss of a stretch (nats per token), by position</text>', '<path d="M50,30V420H900" stroke="black"/>']
    for nll, y in ((nll, at(0, nll)[1]) for nll in range(int(top) + 1)):
        parts += [f'<text x="30" y="{y + 4:.0f}">{nll}</text>', f'<path d="M50,{y:.1f}H900" stroke="#ddd"/>']
    parts += [f'<text x="{at(position, 0)[0]:.0f}" y="436">{position}</text>' for position in range(0, int(right), 1024)]
    if trained < right:
        parts.append(f'<path d="M{at(trained, 0)[0]:.1f},30V420" stroke="black" stroke-dasharray="4"/>')
    for number, table in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        points = [at(position, nll) for position, nll in zip(table["position"], table["nll"], strict=True)]
        parts.append(f'<text x="910" y="{40 + 18 * number}" fill="{colour}">{escape(table["way"][0])}</text>')
        if len(table) == BINS:
            parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" stroke="{colour}" stroke-width="1.5"/>')
        else:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" stroke="{colour}"/>' for x, y in points]
    drawing = "\n".join(parts).replace("<path ", '<path fill="none" ')
    style = "text{font:12px sans-serif;stroke:none} text:not([fill]){fill:black}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n<style>{style}</style>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1240 445" fill="none">\n{drawing}\n</svg></html>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--caches", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--samples", type=int, default=24, help="rows at which the window is recomputed")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = load(given.model, device=given.device, dtype=given.dtype)
    text, digest = haystack_text(given.text)
    ids_T = np.concatenate([default_front(model), offsets(model, text)[0]])[: given.tokens].astype(np.int64)
    length, tail = len(ids_T), max(given.caches)
    row_N = np.sort(np.random.default_rng(given.seed).choice(np.arange(tail, length - 1), given.samples, replace=False))
    every = np.arange(1, length)
    ways: dict[str, tuple[str, Callable[[], np.ndarray], np.ndarray]] = {"dense": ("all", lambda: losses(model, ids_T, chunk=given.chunk), every)}
    for size in given.caches:
        kept = f"{given.sinks}+{size - given.sinks}"
        streams = {
            f"window 0+{size}": Stream(0, size),
            f"sinks + window {kept}": Stream(given.sinks, size - given.sinks),
            f"sinks + window {kept}, positions of the text": Stream(given.sinks, size - given.sinks, reposition=False),
        }
        for name, edit in streams.items():
            ways[name] = str(size), lambda edit=edit: losses(model, ids_T, [edit], chunk=given.chunk), every
        ways[f"recomputed window {size}"] = str(size), lambda size=size: recomputed(model, ids_T, size, row_N), row_N + 1
    rows, curves = [], []
    for name, (size, compute, position_N) in ways.items():
        begin = time.perf_counter()
        nll_N = compute()
        seconds = time.perf_counter() - begin
        whole, behind, beyond, sampled = len(nll_N) == length - 1, position_N > tail, position_N > model.max_length, np.isin(position_N, row_N + 1)
        rows.append(
            {
                "way": name,
                "cache": size,
                "tokens": len(nll_N),
                "perplexity": perplexity(nll_N) if whole else "–",
                f"behind token {tail}": perplexity(nll_N[behind]) if whole else "–",
                f"behind the trained {model.max_length}": perplexity(nll_N[beyond]) if whole and beyond.any() else "–",
                "at the sampled rows": perplexity(nll_N[sampled]),
                "s": seconds,
            }
        )
        print(rows[-1], flush=True)
        curves.append(stretches(name, position_N, nll_N, length))
    kind = str(model.dtype).removeprefix("torch.")
    remarks = [
        f"{given.model}, {kind}, {model.device.type}, the first {length} tokens of the default text (SHA-256 {digest}), chunks of {given.chunk}.",
        "A cache of S+W shows each row S sinks and the last W tokens, its own among them; positions are counted within the cache unless said.",
        f"The recomputed window is measured at {given.samples} random rows behind token {tail} (seed {given.seed}), at which the others are given too.",
        "The text is a language reference, of which much repeats: a longer view helps more than in a novel.",
        f"The picture, loss by position: [{given.out.name}.html]({given.out.name}.html).",
    ]
    write_report(given.out, "Streaming with attention sinks", remarks, pd.DataFrame(rows), pd.concat(curves))
    write_text(given.out.with_suffix(".html"), picture(curves, f"{given.model}, {length} tokens", model.max_length))


if __name__ == "__main__":
    main()
