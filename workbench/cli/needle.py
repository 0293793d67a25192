"""Do some heads carry what a model finds in a long text? The command that asks with and without them."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show
from workbench.cli.app import Depths, Device, Dtype, Haystack, Json, ModelName, Needles, Revision, Runs, app, needle_tests
from workbench.cli.policy import Labels
from workbench.cli.spreading import DeviceMap, GpuMemory
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from workbench.recall import Recall
    from workbench.recall.measuring import Setting


@app.command()
def needle(
    labels: Labels,
    *,
    model: ModelName = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="The single tests, .csv; beside it what made them, .json, and the maps, .html.")] = Path(
        "needle.csv"
    ),
    ablate: Annotated[str, typer.Option("--ablate", "-a", help="So many of the strongest heads, a label, or heads such as L17H3,L18H6.")] = "10",
    by: Annotated[str, typer.Option("--by", help="The probe by which heads are strongest.")] = "retrieval",
    kind: Annotated[str, typer.Option(help="What they do instead: write nothing (zero), their mean (mean), or look everywhere alike (uniform).")] = "zero",
    lengths: Annotated[str | None, typer.Option(help="Lengths of the tests in tokens; 200,400,800 by default.")] = None,
    depths: Depths = None,
    per_cell: Annotated[int, typer.Option("--per-cell", help="Needles for each length and depth.")] = 2,
    draws: Annotated[int, typer.Option(help="How often as many other heads are drawn.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the needle tests.")] = 1,
    needles: Needles = None,
    haystack: Haystack = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    device_map: DeviceMap = None,
    gpu_memory: GpuMemory = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Measure needle recall over length × depth with all heads, without some, and without as many others of the same layers.

    Recall is the share of those words of the needle that are not in the question. The tests are the same for all variants; answers are kept and not made again.

    Example: `workbench needle heads.json --ablate 10 --lengths 200,400 --depths 0.1,0.9 --out needle.csv`
    """
    from workbench import models
    from workbench.labels import HeadLabels
    from workbench.recall import measuring

    begin = time.perf_counter()
    if out.suffix != ".csv":
        raise InputError(f"--out is a .csv file, not {out}")
    known = HeadLabels.load(labels)
    heads = measuring.chosen(known, ablate, by)
    setting = setting_of(lengths, depths, kind=kind, per_cell=per_cell, draws=draws, seed=seed, needles=needles, haystack=haystack)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, device_map=device_map, gpu_memory=gpu_memory, say=show.remark)
    known.check_model(loaded.card)
    with show.progress() as progress:
        found = measuring.measure(loaded, heads, setting, runs=None if str(runs) == "-" else runs, progress=progress)
    files = _written(found, out)
    if as_json:
        totals = found.totals().to_dict("records")
        show.as_json({"totals": totals, "provenance": found.provenance, "files": files, "seconds": time.perf_counter() - begin})
    else:
        _shown(found, files)


def setting_of(
    lengths: str | None,
    depths: str | None,
    *,
    kind: str = "zero",
    per_cell: int = 2,
    draws: int = 2,
    seed: int = 1,
    needles: Path | None = None,
    haystack: Path | None = None,
) -> "Setting":
    """What is asked, from the texts of the options; what was not given is as the package has it. Raises `InputError`."""
    from workbench.recall.measuring import TESTS, Setting

    tests = needle_tests(TESTS, lengths, depths, per_cell, needles, haystack)
    return Setting(tests, kind, draws, seed)


def _written(found: "Recall", out: Path) -> dict[str, Path]:
    """The single tests, what made them, and the maps, as files."""
    from workbench import views

    return found.save(out) | {"maps": views.save_html(views.recall_figure(found), out.with_suffix(".html"))}


def _shown(found: "Recall", files: dict[str, Path]) -> None:
    from workbench.recall import VARIANTS

    table = show.table("variant", "recall", "95%", "all words", "tests", numbers=("recall", "95%", "all words", "tests"))
    words = found.totals("word_recall")["mean"]
    row: dict[str, Any]
    for row, whole in zip(found.totals().to_dict("records"), words, strict=True):
        table.add_row(VARIANTS[row["variant"]], f"{row['mean']:.3f}", f"{row['low']:.2f} – {row['high']:.2f}", f"{whole:.3f}", str(row["n"]))
    show.result(table, found.verdict(), f"tests {files['tests']}, maps {files['maps']}")
