"""What do the benchmarks of kernels share? Sizes, clocks, checks against float64, and the names of the kernels that ran."""

import sys
import time
from collections.abc import Callable

import head_statistics
import pandas as pd
import torch
from einops import rearrange
from gates import Gates, off
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workbench.errors import InputError
from workbench.ops.sink_window import SinkWindow

SIZES = {
    "cuda": {"shapes": [(32, 8, 128), (32, 32, 128), (9, 3, 64)], "lengths": [8192, 32768, 131072], "sinks": 64, "window": 256},
    "cpu": {"shapes": [(6, 3, 16)], "lengths": [96], "sinks": 4, "window": 24},
}
"""What runs if nothing else is asked for: query heads, KV heads and head size; tokens; sinks and window."""

Variants = dict[str, Callable[[], object]]


def note(text: str) -> None:
    """Progress, on the standard error stream."""
    print(text, file=sys.stderr, flush=True)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def full_heads(share: float, kv_heads: int) -> int:
    """The number of full KV heads for a share, rounded up at one half."""
    return int(share * kv_heads + 0.5)


def tensors(shape: tuple[int, int, int], tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normally distributed queries, keys and values [1, heads, tokens, size] in bfloat16."""
    heads, kv_heads, size = shape
    noise = torch.Generator(device()).manual_seed(seed)
    q, k, v = (torch.randn(1, count, tokens, size, generator=noise, device=device(), dtype=torch.bfloat16) for count in (heads, kv_heads, kv_heads))
    return q, k, v


def streaming(q: Tensor, k: Tensor, v: Tensor, sinks: int, window: int) -> SinkWindow:
    """All rows of one prompt."""
    zero_B = torch.zeros(1, dtype=torch.int32, device=q.device)
    return SinkWindow(q, k, v, sinks, window, 0, zero_B, zero_B, 0, 0, q.shape[3] ** -0.5)


def those_that_run(variants: Variants, place: str) -> Variants:
    """Without those that refuse, which is said; the first call compiles and tunes."""
    there: Variants = {}
    for name, run in variants.items():
        begin = time.perf_counter()
        try:
            run()
            synchronize()
        except torch.OutOfMemoryError as error:
            note(f"{name} is out of memory at {place}: {error}")
        except (RuntimeError, InputError) as error:  # what torch and Triton, and this package, refuse with; the report says so
            note(f"{name} refuses {place}: {str(error).partition(chr(10))[0][:300]}")
        else:
            there[name] = run
            if (seconds := time.perf_counter() - begin) > 2:
                note(f"{name} at {place}: first call {seconds:.1f} s")
    return there


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(variants: Variants, budget: float) -> pd.DataFrame:
    """Milliseconds of every variant, once per round, for `budget` seconds of all together; at least five rounds."""
    if torch.cuda.is_available():
        return head_statistics.in_turns(variants, budget / len(variants))
    rounds = []
    for _ in range(5):
        row = {}
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            row[name] = (time.perf_counter() - begin) * 1e3
        rounds.append(row)
    return pd.DataFrame(rounds)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy within the device's memory: the median of ten."""
    size = 2**31 if torch.cuda.is_available() else 2**24
    source, target = (torch.empty(size, dtype=torch.uint8, device=device()) for _ in range(2))
    source.random_() if size < 2**25 else source.fill_(7)
    return 2 * size / (in_turns({"copy": lambda: target.copy_(source)}, 0.3)["copy"].median() / 1e3)


def kernel_names(run: Callable[[], object]) -> str:
    """The kernels of one call on CUDA, longest first, with their share of the time where there are several."""
    if not torch.cuda.is_available():
        return "none: CPU"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        run()
        synchronize()
    times = {event.key: event.device_time_total for event in seen.key_averages() if event.device_time_total > 0}
    total = sum(times.values()) or 1
    return "; ".join(f"{name[:110]} {time / total:.0%}" for name, time in sorted(times.items(), key=lambda item: -item[1])[:4])


def softmax_rows(q_HRE: Tensor, k_GKE: Tensor, v_GKE: Tensor, row_R: Tensor, seen_RK: Callable[[Tensor], Tensor], scaling: float) -> tuple[Tensor, Tensor]:
    """Outputs [H, R, E] and log-sum-exp [H, R] of chosen rows in float64, one KV head at a time; `seen_RK` says of keys which rows see them."""
    mask_RK = seen_RK(torch.arange(k_GKE.shape[1], device=k_GKE.device))
    parts = []
    for q_hRE, k_KE, v_KE in zip(rearrange(q_HRE, "(g h) r e -> g h r e", g=len(k_GKE)), k_GKE, v_GKE, strict=True):
        score = (q_hRE.double() @ k_KE.double().T * scaling).masked_fill_(~mask_RK, -torch.inf)
        parts.append((score.softmax(-1) @ v_KE.double(), score.logsumexp(-1)))
    return torch.cat([z for z, _ in parts]), torch.cat([lse for _, lse in parts])


def beyond(gates: Gates, what: str, got: Tensor, truth: Tensor, usual: Tensor) -> None:
    """An output may err twice as much as PyTorch's in the same precision; three times if it was joined from parts, each of which was rounded before."""
    times = 3 if what in ("merged", "two calls") else 2
    gates.hold(f"{what} beyond {times} × SDPA's error", (off(got, truth) - times * off(usual, truth)).clamp(min=0), 1e-5)


def masked_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
