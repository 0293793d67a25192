"""What do head labels save in attention? One layer, full heads beside heads with sinks and a window, against the best dense attention of the same run.

    python benchmarks/kernels.py prefill
    python benchmarks/kernels.py decode

Nothing is timed before it has passed its checks: against float64 at 2,000 tokens, where it may err twice as much as PyTorch's own attention
in the same precision (three times, where it is joined from parts that were rounded); at the timed length by rows recomputed in float64. If one fails,
nothing is reported and the exit code is 1.
Both write kernels_COMMAND_DEVICE.md and .csv into OUT. Without CUDA they run small shapes on the CPU, to show that they run.
"""

import argparse
import re
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prefill", "decode"))
    parser.add_argument("--budget", type=float, default=100.0, help="seconds of timing, over all shapes and lengths")
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds after which no other shape and length is begun; the report says so")
    parser.add_argument("--shapes", nargs="+", help="query heads, KV heads and head size, as 32,8,128")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25], help="of the KV heads that are full; rounded to whole heads")
    parser.add_argument("--sinks", type=int)
    parser.add_argument("--window", type=int)
    parser.add_argument("--without", nargs="+", default=[], help="variants to leave out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()

    import torch  # here, as other packages look for one that is called `kernels`, and may find this file
    from gates import CheckError
    from head_statistics import stamp
    from kernel_times import SIZES
    from report import machine, write_report

    cuda = torch.cuda.is_available()
    for name, value in SIZES["cuda" if cuda else "cpu"].items():
        setattr(given, name, getattr(given, name) or value)
    given.shapes = [tuple(map(int, shape.split(","))) if isinstance(shape, str) else shape for shape in given.shapes]
    if given.command == "prefill":
        from kernel_prefill import report
    else:
        from kernel_decode import report
    try:
        title, remarks, table, rows = report(given)
    except CheckError as error:
        sys.exit(f"no speed is reported, as a check failed: {error}")
    marks = stamp(given.seed)
    device = re.sub(r"\W+", "_", machine().removeprefix("NVIDIA ").lower()) if cuda else "cpu"
    path = given.out / f"kernels_{given.command}_{device}"
    shown = table.astype(object).where(table.notna(), "–")
    write_report(path, title, [*remarks, ", ".join(f"{name} {value}" for name, value in marks.items()) + "."], shown, rows.assign(**marks))
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
