"""How well does a model predict a text far longer than its cache? Dense, window, recomputed window, and sinks + window, as in StreamingLLM's table.

python benchmarks/streaming_perplexity.py --tokens 16384 --caches 256 1024 --out reports/smollm2-135m/streaming_llm
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from report import write_report

from workbench.edits import Stream
from workbench.files import write_text
from workbench.models import load
from workbench.recipes import default_front, haystack_text, offsets
from workbench.streaming_text import losses, recomputed

BINS = 48


def curve(figure: go.Figure, name: str, position_N: np.ndarray, nll_N: np.ndarray, length: int) -> None:
    """Mean loss in stretches of the text."""
    place_N = position_N * BINS // length
    means = [(float(position_N[place_N == place].mean()), float(nll_N[place_N == place].mean())) for place in np.unique(place_N)]
    figure.add_scatter(x=[x for x, _ in means], y=[y for _, y in means], name=name, mode="lines" if len(nll_N) > length // 2 else "lines+markers")


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
    rows, figure, curves = [], go.Figure(), []
    for name, (size, compute, position_N) in ways.items():
        begin = time.perf_counter()
        nll_N = compute()
        seconds = time.perf_counter() - begin
        behind, beyond = position_N > tail, position_N > model.max_length
        sampled = np.isin(position_N, row_N + 1)
        rows.append(
            {
                "way": name,
                "cache": size,
                "tokens": len(nll_N),
                "perplexity": float(np.exp(nll_N.mean())) if len(nll_N) == length - 1 else float("nan"),
                f"behind token {tail}": float(np.exp(nll_N[behind].mean())),
                f"behind the trained {model.max_length}": float(np.exp(nll_N[beyond].mean())) if beyond.any() else float("nan"),
                "at the sampled rows": float(np.exp(nll_N[sampled].mean())),
                "s": seconds,
            }
        )
        print(rows[-1], flush=True)
        curve(figure, name, position_N, nll_N, length)
        curves.append(pd.DataFrame({"way": name, "position": position_N, "nll": nll_N.round(4)}))
    figure.update_layout(
        title=f"{given.model}: loss along {length} tokens", xaxis_title="position", yaxis_title="nats per token, mean of a stretch", template="plotly_white"
    )
    figure.add_vline(x=model.max_length, line_dash="dot", annotation_text="trained context")
    kind = str(model.dtype).removeprefix("torch.")
    remarks = [
        f"{given.model}, {kind}, {model.device.type}, the first {length} tokens of the default text (SHA-256 {digest}), chunks of {given.chunk}.",
        "A cache of S+W shows each row S sinks and the last W tokens, its own among them; positions are counted within the cache unless said.",
        f"The recomputed window is measured at {given.samples} random rows behind token {tail} (seed {given.seed}), at which the others are given too.",
        "The text is a language reference, of which much repeats: a longer view helps more than in a novel.",
        f"The picture, loss by position: [{given.out.name}.html]({given.out.name}.html).",
    ]
    write_report(given.out, "Streaming with attention sinks", remarks, pd.DataFrame(rows), pd.concat(curves))
    write_text(given.out.with_suffix(".html"), figure.to_html(include_plotlyjs="cdn"))


if __name__ == "__main__":
    main()
