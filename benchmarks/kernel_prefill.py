"""Prefill: the whole layer, dense and with labels, by every way there is."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from gates import CheckError, Gates, off
from kernel_times import (
    Variants,
    beyond,
    device,
    full_heads,
    in_turns,
    kernel_names,
    masked_sdpa,
    note,
    softmax_rows,
    streaming,
    synchronize,
    tensors,
    those_that_run,
)
from torch import Tensor

from workbench.ops import flex
from workbench.ops.attend import attend
from workbench.ops.dense import dense
from workbench.ops.sink_window import SinkWindow

ORACLE_LENGTHS = {"cuda": 2000, "cpu": 70}
SAMPLE = 64
"""Rows recomputed in float64 at the timed length."""

DENSE = "SDPA "
EXACT = (
    "Streaming heads see no more than these in prefill either. Milliseconds on the GPU, all variants in turns; medians, with quartiles and the number of "
    "rounds in the CSV."
)
TERMS = (
    "`full` KV heads keep everything; of 3 KV heads, 0.5 is 2 and 0.25 is 1. `×` is the time of the best dense attention of the same run over that of "
    "the variant. Ideal is 1 / (r + (1 − r) ε) with r the share that is full and ε the share of the pairs that a streaming head sees."
)
WAYS = (
    "`ours`: cuDNN on the full slice and one Triton kernel on the others, joined in one output, the copy included. `merged`: cuDNN, and for the others "
    "flash with a window, joined with the sinks by their log-sum-exp, no kernel of ours. `Flex, same mask`: one call for all heads; its block mask is made "
    "beforehand, from arithmetic."
)
SHOWN = ("ours", "merged", "Flex, same mask")


def layer(q: Tensor, k: Tensor, v: Tensor, full: int, given: argparse.Namespace, backend: str, implementation: str) -> Tensor:
    """The labelled layer: dense attention for the full slice, an implementation for the others, in one output [1, H, N, E]."""
    cut = full * (q.shape[1] // k.shape[1])
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    if full:
        out[:, :cut] = dense(q[:, :cut], k[:, :full], v[:, :full], q.shape[3] ** -0.5, backend)[0]
    attend(streaming(q[:, cut:], k[:, full:], v[:, full:], given.sinks, given.window), implementation, out[:, cut:])
    return out


def variants_of(q: Tensor, k: Tensor, v: Tensor, given: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Dense ones by name; labelled ones by name and number of full KV heads."""
    backends = ("cudnn", "flash") if q.is_cuda else ("flash", "math")
    scaling = q.shape[3] ** -0.5
    made = {DENSE + name: partial(lambda name: dense(q, k, v, scaling, name)[0], name) for name in backends}
    causal = streaming(q, k, v, 0, 1)
    masks = {"Flex causal": flex.block_mask(causal, k.shape[1])}
    for share in given.shares:
        full = full_heads(share, k.shape[1])
        masks[f"Flex, same mask {full}"] = flex.block_mask(streaming(q, k, v, given.sinks, given.window), full)
        for name, implementation in (("merged", "merged"), ("ours", "triton")) if q.is_cuda else (("ours", "torch"),):
            made[f"{name} {full}"] = partial(layer, q, k, v, full, given, backends[0], implementation)
    made |= {name: partial(lambda name, mask: flex.run(problem_for(name, causal, given), mask)[0], name, mask) for name, mask in masks.items()}
    return {name: run for name, run in made.items() if not any(name.startswith(word) for word in given.without)}


def problem_for(name: str, causal: SinkWindow, given: argparse.Namespace) -> SinkWindow:
    """What Flex is told beside its mask."""
    return causal if name == "Flex causal" else replace(causal, sinks=given.sinks, window=given.window)


def check(gates: Gates, shape: tuple[int, int, int], tokens: int, given: argparse.Namespace, wrong: dict[str, str]) -> None:
    """Every variant against float64, and a window off by one, which must fail."""
    gates.place = f"{shape}, {tokens} tokens"
    q, k, v = tensors(shape, tokens, given.seed + 1)
    every = torch.arange(tokens, device=q.device)
    seen = {full: partial(sees, given, every, full) for full in {0, *(full_heads(share, shape[1]) for share in given.shares)}}
    for name, run in those_that_run(variants_of(q, k, v, given), gates.place).items():
        full = int(name.split()[-1]) if name.split()[-1].isdigit() else shape[1]
        cut = full * (shape[0] // shape[1])
        truth, usual = [], []
        for heads, kv, mask in ((slice(0, cut), slice(0, full), causal_of(every)), (slice(cut, None), slice(full, None), seen.get(full))):
            if q[0, heads].shape[0]:
                truth.append(softmax_rows(q[0, heads], k[0, kv], v[0, kv], every, mask, shape[2] ** -0.5)[0])
                usual.append(masked_sdpa(q[:, heads], k[:, kv], v[:, kv], mask(every))[0])
        with unless_ours(name, wrong):
            beyond(gates, name.rstrip("0123456789 "), run()[0], torch.cat(truth), torch.cat(usual))
    problem = streaming(q, k, v, given.sinks, given.window)
    how = "triton" if q.is_cuda else "torch"
    _, lse = softmax_rows(q[0], k[0], v[0], every, seen[0], shape[2] ** -0.5)
    gates.hold("log-sum-exp", off(attend(problem, how)[1][0], lse), 1e-4)
    parts = [
        attend(replace(problem, q_BHQE=q[:, :, rows], k_BGKE=k[:, :, : rows.stop], v_BGKE=v[:, :, : rows.stop], first=rows.start), how)
        for rows in (slice(0, tokens // 3), slice(tokens // 3, tokens))
    ]
    gates.hold("log-sum-exp of chunks", off(torch.cat([part[1] for part in parts], dim=2)[0], lse), 1e-4)
    for change in ({"window": given.window - 1}, {"window": given.window + 1}, {"sinks": given.sinks - 1}, {"sinks": given.sinks + 1}):
        if tokens > given.sinks + given.window + 1 and float(off(attend(replace(problem, **change), how)[1][0], lse)) < 1e-3:
            raise CheckError(f"{gates.place}: {change} is not noticed")


@contextmanager
def unless_ours(name: str, wrong: dict[str, str]) -> Iterator[None]:
    """What others compute wrongly is left out, and the report says so; what is ours must be right."""
    try:
        yield
    except CheckError as error:
        if name.startswith("ours"):
            raise
        wrong[name] = f"{name}, {error}"
        note(f"left out: {wrong[name]}")


def causal_of(row_R: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda key_K: key_K <= row_R[:, None]


def sees(given: argparse.Namespace, row_R: Tensor, full: int, key_K: Tensor) -> Tensor:
    return (key_K <= row_R[:, None]) & ((key_K < given.sinks) | (key_K > row_R[:, None] - given.window))


def check_rows(gates: Gates, q: Tensor, k: Tensor, v: Tensor, variants: Variants, given: argparse.Namespace, wrong: dict[str, str]) -> None:
    """Random rows of each variant at the timed length against float64."""
    tokens, group = q.shape[2], q.shape[1] // k.shape[1]
    gates.place = f"{q.shape[1]}/{k.shape[1]} heads, {tokens} tokens"
    rng = np.random.default_rng(given.seed)
    row_R = torch.as_tensor(np.sort(rng.choice(tokens, min(SAMPLE, tokens), replace=False)), device=q.device)
    scaling = q.shape[3] ** -0.5
    dense_HRE = softmax_rows(q[0, :, row_R], k[0], v[0], row_R, causal_of(row_R), scaling)[0]
    stream_HRE = softmax_rows(q[0, :, row_R], k[0], v[0], row_R, partial(sees, given, row_R, 0), scaling)[0]
    for name, run in variants.items():
        cut = group * (int(name.split()[-1]) if name.split()[-1].isdigit() else k.shape[1])
        truth_HRE = torch.cat([dense_HRE[:cut], stream_HRE[cut:]])
        error = (run()[0][:, row_R].double() - truth_HRE).norm(dim=-1) / truth_HRE.norm(dim=-1)
        with unless_ours(name, wrong):
            gates.hold(f"{name.rstrip('0123456789 ')}, rows at the timed length, relative", error.max(), 2e-2)


def report(given: argparse.Namespace) -> tuple[str, list[str], pd.DataFrame, pd.DataFrame]:
    """Title, remarks, the table and the rows behind it. Raises `CheckError` if a check fails."""
    gates, rows, names = Gates(), [], {}
    wrong: dict[str, str] = {}
    checked: set[tuple[int, int, int]] = set()
    work = sum(tokens * tokens * shape[0] for shape in given.shapes for tokens in given.lengths) ** 0.5
    places = [(shape, tokens) for shape in given.shapes for tokens in given.lengths]
    weight = {place: (place[0][0] * place[1] ** 2) ** 0.5 / work + 0.5 for place in places}
    begin, left = time.perf_counter(), []
    for shape, tokens in places:
        if time.perf_counter() - begin > given.stop_after:
            left.append(f"{shape[0]}/{shape[1]} heads of {shape[2]} at {tokens}")
            continue
        if shape not in checked:
            check(gates, shape, ORACLE_LENGTHS[device()], given, wrong)
            checked.add(shape)
        q, k, v = tensors(shape, tokens, given.seed)
        place = f"{shape[0]}/{shape[1]} heads of {shape[2]}, {tokens} tokens"
        variants: Variants = those_that_run({name: run for name, run in variants_of(q, k, v, given).items() if name not in wrong}, place)
        check_rows(gates, q, k, v, variants, given, wrong)
        variants = {name: run for name, run in variants.items() if name not in wrong}
        if tokens == given.lengths[0]:
            names |= {f"{name} ({shape[0]}/{shape[1]}, {shape[2]})": kernel_names(run) for name, run in variants.items()}
        ms = in_turns(variants, given.budget * weight[shape, tokens] / sum(weight.values()))
        rows += rows_of(shape, tokens, ms, given)
        note(f"{place}: " + ", ".join(f"{name} {ms[name].median():.3g}" for name in ms))
        del q, k, v, variants
        synchronize()
    precision = "bf16" if device() == "cuda" else "bf16 on the CPU, only to show that it runs"
    remarks = [
        f"One layer, {precision}, causal, batch 1, normally distributed inputs; {given.sinks} sinks and a window of {given.window}. {EXACT}",
        TERMS,
        WAYS,
        f"Checked before anything was timed; the worst errors: {gates}.",
        *([f"Left out, as wrong: {'; '.join(wrong.values())}."] if wrong else []),
        *([f"Not begun for lack of time: {', '.join(left)}."] if left else []),
        "Kernels that ran: " + ". ".join(f"{name}: {kernels}" for name, kernels in names.items()) + ".",
    ]
    frame = pd.DataFrame(rows)
    return "What labels save in prefill: attention of one layer", remarks, wide(frame), frame


def rows_of(shape: tuple[int, int, int], tokens: int, ms: pd.DataFrame, given: argparse.Namespace) -> list[dict]:
    """One row per variant."""
    best = min((name for name in ms if name.startswith(DENSE)), key=lambda name: ms[name].median())
    pairs = tokens * (tokens + 1) / 2
    reach = min(tokens, given.sinks + given.window)
    near = (reach * (reach + 1) / 2 + (tokens - reach) * reach) / pairs
    rows = []
    for name in ms:
        full = int(name.split()[-1]) if name.split()[-1].isdigit() else shape[1]
        r = full / shape[1]
        low, median, high = ms[name].quantile([0.25, 0.5, 0.75])
        place = {"heads": f"{shape[0]}/{shape[1]}", "d": shape[2], "tokens": tokens, "full": full, "r": r, "variant": name.rstrip("0123456789 ")}
        speed, ideal = ms[best].median() / median, 1 / (r + (1 - r) * near)
        useful = 4 * shape[0] * shape[2] * pairs * (r + (1 - r) * near) / median / 1e9
        rows.append(
            place
            | {
                "ms": median,
                "ms 25%": low,
                "ms 75%": high,
                "rounds": len(ms),
                "best dense": best,
                "×": speed,
                "ideal": ideal,
                "of ideal": speed / ideal,
                "useful TFLOP/s": useful,
            }
        )
    return rows


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per shape, length and number of full heads."""
    table = []
    for (heads, d, tokens), group in frame.groupby(["heads", "d", "tokens"], sort=False):
        dense_ms = {row["variant"]: row["ms"] for _, row in group.iterrows() if row["variant"].startswith((DENSE, "Flex causal"))}
        for full, part in group[~group["variant"].isin(dense_ms)].groupby("full", sort=False):
            by_name = {row["variant"]: row for _, row in part.iterrows()}
            row = {"heads": heads, "d": d, "tokens": tokens, "full": full} | {f"{name} ms": value for name, value in dense_ms.items()}
            row |= {f"{name} ms": by_name[name]["ms"] for name in SHOWN if name in by_name}
            row |= {f"{name} ×": by_name[name]["×"] for name in SHOWN if name in by_name}
            row |= {
                "ideal ×": part["ideal"].iloc[0],
                "ours of ideal": by_name["ours"]["of ideal"],
                "best dense": part["best dense"].iloc[0].removeprefix(DENSE),
            }
            table.append(row)
    return pd.DataFrame(table)
