"""Which tile is fastest? Measured once for each kind of problem and graphics card, then kept on disk: the wrong one costs up to three times."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
from triton import knobs
from triton.runtime.errors import OutOfResources

from workbench.files import write_text
from workbench.sources import cache_folder

WORTH = 2**29
"""Pairs of a query and a key over all heads from which on a measurement pays; below it the first candidate is taken."""


class Tile(NamedTuple):
    """Rows and keys per tile, warps per program, stages of the software pipeline, and the limit of registers per thread (0: none)."""

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int = 0

    def launch(self) -> dict[str, int]:
        """The launch options of Triton, which its interpreter does not know."""
        if knobs.runtime.interpret:
            return {}
        return {"enable_fp_fusion": True, "num_warps": self.warps, "num_stages": self.stages, **({"maxnreg": self.registers} if self.registers else {})}


def choose(problem: tuple, candidates: Sequence[Tile], work: int, run: Callable[[Tile], object]) -> Tile:
    """The fastest candidate for a problem: from memory, from disk, or measured now if the work (pairs) is worth it, else the first that fits.

    `problem` names what decides: the kernel, its switches, the head size, the precision, and the size rounded to powers of two.
    Candidates that the card has no room for are passed over; if none is left, the last error is raised.
    """
    if knobs.runtime.interpret:
        return candidates[0]
    if work < WORTH:
        return next((tile for tile in candidates[:-1] if _fits(tile, run)), candidates[-1])
    name = f"{torch.cuda.get_device_name()}, triton {triton.__version__}: {' '.join(map(str, problem))}"
    known = _known()
    if name not in known:
        fastest, tile = min((_time(tile, run), tile) for tile in candidates)
        if fastest == float("inf"):
            run(tile)  # raises what the card says
        known[name] = list(tile)
        write_text(cache_folder() / "tiles.json", json.dumps(known, indent=1))
    return Tile(*known[name])


@cache
def _known() -> dict[str, list]:
    path = cache_folder() / "tiles.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _fits(tile: Tile, run: Callable[[Tile], object]) -> bool:
    """Whether the card has room for a tile."""
    try:
        run(tile)
    except OutOfResources:
        return False
    return True


def _time(tile: Tile, run: Callable[[Tile], object]) -> float:
    """Milliseconds, the best of three runs after one that compiles; infinite if the card has no room for the tile."""
    if not _fits(tile, run):
        return float("inf")
    times = []
    for _ in range(3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run(tile)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times)
