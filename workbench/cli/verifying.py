"""Is anything lost? The command that measures what a policy costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show
from workbench.cli.app import Device, Dtype, Haystack, Json, ModelName, Revision, app, needle_tests, numbers
from workbench.cli.policy import Combine, Compensation, How, Labels, Scores, Semantics, Sinks, Window, given_sizes, with_scores
from workbench.cli.spreading import DeviceMap, GpuMemory, TensorParallel, by_all, check_workers
from workbench.cli.workers import Address, Cpus, ExecutorName, Gpus, called, threads
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from workbench.labels import HeadLabels
    from workbench.verification import Setting, Verification


@app.command()
def verify(
    labels: Labels,
    *,
    model: ModelName = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="The table, .csv or .parquet; beside it the picture and the single tests.")] = Path("verify.csv"),
    by: Annotated[list[str] | None, typer.Option("--by", help="Scores that rank KV heads, as in `policy`; given several times, each is compared.")] = None,
    combine: Combine = "sum",
    scores: Scores = None,
    gates: Annotated[Path | None, typer.Option(help="A DuoAttention folder; its gates can be named as `--by duo_gate`.")] = None,
    budgets: Annotated[str | None, typer.Option("--kv-budgets", help="Shares of full KV heads, such as 0.25,0.5.")] = None,
    sinks: Sinks = None,
    window: Window = None,
    semantics: Semantics = None,
    compensation: Compensation = None,
    lengths: Annotated[str | None, typer.Option(help="Lengths of needle tests in tokens; 600,1200,2400 by default.")] = None,
    depths: Annotated[str | None, typer.Option(help="Depths of the needle, 0 (start) to 1 (end).")] = None,
    per_cell: Annotated[int, typer.Option("--per-cell", help="Needles for each length and depth.")] = 3,
    seeds: Annotated[int, typer.Option(help="How many random choices of heads to measure at each budget.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the needle tests.")] = 1,
    text_tokens: Annotated[int, typer.Option("--text-tokens", help="Tokens of text for perplexity and agreement.")] = 2048,
    chunk: Annotated[int | None, typer.Option(help="Read prompts in pieces of so many tokens.")] = None,
    needles: Annotated[Path | None, typer.Option(help="A file of needles of your own, JSON lines with needle and question.")] = None,
    haystack: Haystack = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    implementation: How = "auto",
    executor: ExecutorName = "local",
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    device_map: DeviceMap = None,
    gpu_memory: GpuMemory = None,
    tensor_parallel: TensorParallel = False,
    as_json: Json = False,
) -> None:
    """Prove what a policy costs: needle recall, perplexity and agreement with the full model along a sweep of KV budgets.

    Recall is the share of those words of the answer that are not in the question: echoing the question is worth nothing. The heads that scores choose stand
    beside random ones, a uniform window and the full model. Minutes on a GPU; on a CPU, take short lengths.

    Example: `workbench verify heads.json --lengths 600 --kv-budgets 0.33,0.5 --seeds 2 --out verify.csv`
    """
    asked = dict(locals())
    from dataclasses import replace

    from workbench import choosing
    from workbench.labels import HeadLabels

    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out is a .csv or .parquet file, not {out}")
    given = HeadLabels.load(labels)
    known = _with_gates(with_scores(given, scores), gates)
    rankings = {name: choosing.kv_scores(known, name, combine=combine) for name in by or [choosing.RANKING]}
    base = choosing.policy_of(given) if given.policy is not None else choosing.uniform(given.card)
    policy = replace(base, **given_sizes(sinks, window, semantics, compensation))
    setting = _setting(budgets, lengths, depths, per_cell, range(seeds), seed, text_tokens, chunk, needles, haystack)
    show.hush_libraries()
    found = _found(asked, {"policy": policy, "rankings": rankings, "setting": setting, "saved": given.policy is not None, "implementation": implementation})
    _shown(found, _written(found, out), as_json)


def _with_gates(labels: "HeadLabels", gates: Path | None) -> "HeadLabels":
    """Labels with the gates of a DuoAttention folder among their scores."""
    from dataclasses import replace

    from workbench import formats

    return labels if gates is None else replace(labels, scores={**labels.scores, **formats.read(gates, "duo", labels.card).scores})


def _found(asked: dict[str, Any], how: dict[str, Any]) -> "Verification":
    """All ways measured, as the command's options ask: one by one here, or each by a worker."""
    from workbench import models
    from workbench.executors import Wanted
    from workbench.verification import combined, measured, ways
    from workbench.verification import verify as measure

    chosen = asked["executor"], asked["address"], asked["cpus"], asked["gpus"]
    place = {key: asked[key] for key in ("revision", "device", "dtype")}
    spread = {key: asked[key] for key in ("device_map", "gpu_memory", "tensor_parallel")}
    check_workers(chosen[0], spread)
    if chosen[0] == "local":
        threads(chosen)
        return by_all(models.load(asked["model"], **place, **spread, say=show.remark), measure, **how)
    calls = [{**how, "number": number} for number, _ in enumerate(ways(how["policy"], how["rankings"], how["setting"], saved=how["saved"]))]
    return combined(called(chosen, Wanted(asked["model"], **place), "policies", measured, calls))


def _setting(
    budgets: str | None,
    lengths: str | None,
    depths: str | None,
    per_cell: int,
    seeds: Sequence[int],
    seed: int,
    text_tokens: int,
    chunk: int | None,
    needles: Path | None,
    haystack: Path | None,
) -> "Setting":
    """What to measure; what was not given is as the package has it."""
    from workbench.verification import BUDGETS, TESTS, Setting

    tests = needle_tests(TESTS, lengths, depths, per_cell, needles, haystack)
    return Setting(tests, numbers(budgets, float, "--kv-budgets") or BUDGETS, tuple(seeds), haystack, text_tokens, seed=seed, chunk=chunk)


def _written(found: "Verification", out: Path) -> dict[str, Path]:
    """The table, the single tests, and the picture, as files."""
    from workbench import views

    return {
        "table": views.save_table(found.table, out),
        "tests": views.save_table(found.tests, out.with_suffix(f".tests{out.suffix}")),
        "picture": views.save_html(views.quality_figure(found.table, found.provenance), out.with_suffix(".html")),
    }


def _shown(found: "Verification", files: dict[str, Path], as_json: bool) -> None:
    if as_json:
        return show.as_json({"table": found.table.to_dict("records"), "provenance": found.provenance, "files": files})
    columns = ("policy", "full heads", "KV", "recall", "kept", "95%", "all words", "perplexity", "agreement")
    table = show.table(*columns, numbers=columns[1:])
    row: dict[str, Any]
    for row in found.table.to_dict("records"):
        name = row["policy"] if row["policy"] != "random" else f"random {row['seed']:.0f}"
        interval = f"{row['kept_low']:.0%} – {row['kept_high']:.0%}"
        measured = f"{row['recall']:.3f}", f"{row['kept']:.0%}", interval, f"{row['word_recall']:.3f}", f"{row['perplexity']:.2f}", f"{row['agreement']:.1%}"
        table.add_row(name, str(row["full_heads"]), f"{row['kv_share']:.0%}", *measured)
    return show.result(table, f"{found.provenance['model']}, {len(set(found.tests['test']))} needle tests; table {files['table']}, picture {files['picture']}")
