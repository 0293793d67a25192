"""Decoding: one step of a stack of layers, replayed as a CUDA graph, so that keys come from memory and launches cost nothing."""

import argparse
import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from gates import Gates, off
from kernel_times import beyond, copy_bandwidth, device, full_heads, in_turns, kernel_names, note, softmax_rows, synchronize, those_that_run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from workbench.ops.attend import decode
from workbench.ops.decoding import DecodeStep

KINDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
ROTATED = {"cuda": 3 * 2**26, "cpu": 2**16}
"""Bytes that a stack's fewest keys take at least: beyond what an H100's cache of 50 MB holds from one replay to the next."""

FEWEST_LAYERS, MOST_LAYERS = 12, 64
"""Few layers would bear the start of the graph."""

STACK = (
    "A stack of layers, each with its own keys, replayed as one CUDA graph, all variants in turns. Microseconds per layer: medians; quartiles, rounds and "
    "the number of layers in the CSV."
)
RATIO = "`×` is the time of the best full attention of the same run over that of the variant. Of 3 KV heads, 0.5 is 2 and 0.25 is 1."


def bytes_of(shape: tuple[int, int, int], tokens: int, full: int, given: argparse.Namespace) -> int:
    """What one layer keeps under a policy, in bfloat16."""
    return 4 * shape[2] * (full * tokens + (shape[1] - full) * (given.sinks + given.window))


def stack(shape: tuple[int, int, int], tokens: int, given: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Queries, keys and values of some layers, and rings for all their KV heads."""
    heads, kv_heads, size = shape
    least = min(bytes_of(shape, tokens, full_heads(share, kv_heads), given) for share in given.shares)
    noise = torch.Generator(device()).manual_seed(given.seed)

    def random(*sizes: int) -> Tensor:
        return torch.randn(1, *sizes, size, generator=noise, device=device(), dtype=torch.bfloat16)

    layers = []
    for _ in range(max(FEWEST_LAYERS, min(MOST_LAYERS, -(-ROTATED[device()] // least)))):
        layer = {"q": random(heads), "k": random(kv_heads, tokens), "v": random(kv_heads, tokens)}
        token_C = ring_tokens(tokens, given)
        layers.append(layer | {f"ring_{name}": layer[name][:, :, token_C].contiguous() for name in "kv"})
    return layers


def ring_tokens(tokens: int, given: argparse.Namespace) -> Tensor:
    """Which token is in which slot, after the last."""
    slot_W = torch.arange(given.window, device=device())
    return torch.cat([torch.arange(given.sinks, device=device()), tokens - 1 - (tokens - 1 - slot_W) % given.window])


def sdpa(q_BHE: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    with sdpa_kernel(KINDS[backend]):
        return scaled_dot_product_attention(q_BHE[:, :, None], k, v, enable_gqa=q_BHE.shape[1] != k.shape[1])[:, :, 0]


def two_calls(layer: dict[str, Tensor], full: int, backend: str) -> Tensor:
    """One call for the full heads and one for the rings, put side by side."""
    cut = full * (layer["q"].shape[1] // layer["k"].shape[1])
    whole = sdpa(layer["q"][:, :cut], layer["k"][:, :full], layer["v"][:, :full], backend)
    return torch.cat([whole, sdpa(layer["q"][:, cut:], layer["ring_k"][:, full:], layer["ring_v"][:, full:], backend)], dim=1)


def ours(layer: dict[str, Tensor], full: int, position: Tensor, start_B: Tensor, given: argparse.Namespace) -> Tensor:
    buffers = layer["k"][:, :full], layer["v"][:, :full], layer["ring_k"][:, full:], layer["ring_v"][:, full:]
    step = DecodeStep(layer["q"], *buffers, given.sinks, given.window, position, start_B, layer["q"].shape[2] ** -0.5)
    return decode(step, "triton" if layer["q"].is_cuda else "torch")[0]


def variants_of(tokens: int, kv_heads: int, given: argparse.Namespace) -> dict[str, Callable[[dict[str, Tensor]], Tensor]]:
    """What is done to each layer, by name and number of full KV heads."""
    position, start_B = torch.tensor(tokens - 1, device=device()), torch.zeros(1, dtype=torch.int32, device=device())
    backends = ("cudnn", "flash") if device() == "cuda" else ("flash",)
    made: dict[str, Callable] = {f"SDPA {name} {kv_heads}": lambda layer, name=name: sdpa(layer["q"], layer["k"], layer["v"], name) for name in backends}
    for share in given.shares:
        full = full_heads(share, kv_heads)
        made |= {f"two calls, {name} {full}": lambda layer, full=full, name=name: two_calls(layer, full, name) for name in backends}
        made[f"ours {full}"] = lambda layer, full=full: ours(layer, full, position, start_B, given)
    return {name: run for name, run in made.items() if not any(name.startswith(word) for word in given.without)}


def check(gates: Gates, layer: dict[str, Tensor], run: Callable[[dict[str, Tensor]], Tensor], name: str, full: int, given: argparse.Namespace) -> None:
    """A variant's first layer against float64."""
    q, k, v = layer["q"], layer["k"], layer["v"]
    tokens, cut = k.shape[2], full * (q.shape[1] // k.shape[1])
    gates.place = f"{name}, {q.shape[1]}/{k.shape[1]} heads of {q.shape[2]}, {tokens} tokens"
    last_R, scaling = torch.tensor([tokens - 1], device=q.device), q.shape[2] ** -0.5
    every = partial(torch.ones_like, dtype=torch.bool)
    z_HRE = (
        softmax_rows(q[0, :cut, None], k[0, :full], v[0, :full], last_R, lambda key_K: every(key_K)[None], scaling)[0]
        if full
        else q.new_zeros(0, 1, q.shape[2]).double()
    )
    if full < k.shape[1]:

        def near(key_K: torch.Tensor) -> torch.Tensor:
            return ((key_K < given.sinks) | (key_K >= tokens - given.window))[None]

        z_HRE = torch.cat([z_HRE, softmax_rows(q[0, cut:, None], k[0, full:], v[0, full:], last_R, near, scaling)[0]])
    usual = torch.cat(
        [sdpa_any(q[:, :cut], k[:, :full], v[:, :full])] * (full > 0)
        + [sdpa_any(q[:, cut:], layer["ring_k"][:, full:], layer["ring_v"][:, full:])] * (full < k.shape[1]),
        dim=1,
    )
    beyond(gates, name.partition(",")[0].rstrip("0123456789 "), run(layer)[0], z_HRE[:, 0], usual[0])


def sdpa_any(q_BHE: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not q_BHE.shape[1]:
        return q_BHE
    return scaled_dot_product_attention(q_BHE[:, :, None], k, v, enable_gqa=q_BHE.shape[1] != k.shape[1])[:, :, 0]


def replayed(run: Callable[[dict[str, Tensor]], Tensor], layers: list[dict[str, Tensor]]) -> Callable[[], list[Tensor]]:
    """All layers in one CUDA graph; a plain loop on the CPU."""

    def all_layers() -> list[Tensor]:
        return [run(layer) for layer in layers]

    if device() == "cpu":
        return all_layers
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        all_layers()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = all_layers()

    def replay() -> list[Tensor]:
        graph.replay()
        return kept

    return replay


def graph_says_the_same(gates: Gates, run: Callable, replay: Callable[[], list[Tensor]], layers: list[dict[str, Tensor]]) -> None:
    """A replay overwrites NaN with what the calls give."""
    if device() == "cpu":
        return
    kept = replay()
    for tensor in kept:
        tensor.fill_(torch.nan)
    replay()
    synchronize()
    gates.hold("replayed graph, from a call", max(off(tensor, run(layer)) for tensor, layer in zip(kept, layers, strict=True)), 4e-3)


def report(given: argparse.Namespace) -> tuple[str, list[str], pd.DataFrame, pd.DataFrame]:
    """Title, remarks, the table and the rows behind it. Raises `CheckError` if a check fails."""
    gates, rows, names = Gates(), [], {}
    bandwidth = copy_bandwidth()
    places = [(shape, tokens) for shape in given.shapes for tokens in given.lengths]
    begin, left = time.perf_counter(), []
    for shape, tokens in places:
        if time.perf_counter() - begin > given.stop_after:
            left.append(f"{shape[0]}/{shape[1]} heads of {shape[2]} at {tokens}")
            continue
        layers = stack(shape, tokens, given)
        calls = variants_of(tokens, shape[1], given)
        place = f"{shape[0]}/{shape[1]} heads of {shape[2]}, {tokens} tokens"
        there = those_that_run({name: partial(run, layers[0]) for name, run in calls.items()}, place)
        graphs: dict[str, Callable[[], list[Tensor]]] = {}
        for name in there:
            check(gates, layers[0], calls[name], name, int(name.split()[-1]), given)
            graphs[name] = replayed(calls[name], layers)
            graph_says_the_same(gates, calls[name], graphs[name], layers)
            if tokens == given.lengths[-1]:
                names[f"{name} ({shape[0]}/{shape[1]}, {shape[2]})"] = kernel_names(there[name])
        ms = in_turns(graphs, given.budget / len(places)) / len(layers)
        rows += rows_of(shape, tokens, ms, bandwidth, len(layers), given)
        note(f"{place}, {len(layers)} layers: " + ", ".join(f"{name} {ms[name].median() * 1e3:.1f}" for name in ms))
        del layers, graphs, there, calls
        if device() == "cuda":
            torch.cuda.empty_cache()
    copied = f"a copy within the device's memory moved {bandwidth / 1e12:.2f} TB/s in the same run, read and written"
    remarks = [
        f"One query row, batch 1, bf16, {given.sinks} sinks and a window of {given.window}. {STACK}",
        f"Bandwidth counts the keys and values that the policy leaves; {copied}. {RATIO}",
        f"Checked before anything was timed; the worst errors: {gates}.",
        *([f"Not begun for lack of time: {', '.join(left)}."] if left else []),
        "Kernels that ran: " + ". ".join(f"{name}: {kernels}" for name, kernels in names.items()) + ".",
    ]
    frame = pd.DataFrame(rows)
    return "What labels save in decoding: attention of one layer", remarks, frame.drop(columns=["us 25%", "us 75%", "rounds", "best full", "layers"]), frame


def rows_of(shape: tuple[int, int, int], tokens: int, ms: pd.DataFrame, bandwidth: float, layers: int, given: argparse.Namespace) -> list[dict]:
    """One row per variant."""
    best = min((name for name in ms if name.startswith("SDPA")), key=lambda name: ms[name].median())
    rows = []
    for name in ms:
        full = int(name.split()[-1])
        low, median, high = ms[name].quantile([0.25, 0.5, 0.75]) * 1e3
        rate = bytes_of(shape, tokens, full, given) / median * 1e6
        place = {"heads": f"{shape[0]}/{shape[1]}", "d": shape[2], "tokens": tokens, "full": full, "variant": name.rstrip("0123456789 ")}
        times = {"us": median, "us 25%": low, "us 75%": high, "rounds": len(ms), "layers": layers}
        kept = bytes_of(shape, tokens, full, given) / bytes_of(shape, tokens, shape[1], given)
        rows.append(
            place | times | {"GB/s": rate / 1e9, "of copy": rate / bandwidth, "×": ms[best].median() / ms[name].median(), "bytes kept": kept, "best full": best}
        )
    return rows
