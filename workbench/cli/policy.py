"""Labels at work: the commands that choose a policy, run a model under it, and prove what it costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Device, Dtype, Haystack, Json, ModelName, Revision, app, numbers
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from workbench.policies import HeadPolicy

SIZES = (8192, 32768, 131072)
"""Contexts that KV memory is told for."""

Labels = Annotated[Path, typer.Argument(help="A labels file, as `workbench label` writes it.")]
By = Annotated[list[str] | None, typer.Option("--by", help="A probe whose scores rank the KV heads; ranks of several are added.")]
Sinks = Annotated[int | None, typer.Option(help="First tokens that a streaming head sees; 64 by default.")]
Window = Annotated[int | None, typer.Option(help="Last tokens that a streaming head sees, its own among them; 256 by default.")]
Semantics = Annotated[str | None, typer.Option(help="exact, decode (the prompt is read in full) or chunk (DuoAttention's chunked prefill); exact by default.")]
Compensation = Annotated[bool | None, typer.Option("--compensation", help="Add RazorAttention's token for what was dropped.")]
How = Annotated[str, typer.Option("--implementation", help="Streaming heads by reference, torch, merged, flex, triton, or auto (triton on CUDA, else torch).")]


@app.command()
def policy(
    labels: Labels,
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write the labels with the policy; the same file by default.")] = None,
    kv_budget: Annotated[
        float | None, typer.Option("--kv-budget", help="The best KV heads full, up to this share, 0–1: of heads, or of bytes at --at-length.")
    ] = None,
    at_length: Annotated[int | None, typer.Option("--at-length", help="The context for which --kv-budget counts bytes.")] = None,
    quantile: Annotated[float | None, typer.Option(help="DuoAttention's way: the share of streaming heads, 0–1; ties stay full.")] = None,
    random: Annotated[int | None, typer.Option(help="With --kv-budget: heads drawn at random from this seed, as a control.")] = None,
    uniform: Annotated[bool, typer.Option("--uniform", help="Every head streaming.")] = False,
    by: By = None,
    keep: Annotated[list[str] | None, typer.Option("--keep", help="A label whose heads stay full, where no budget is given.")] = None,
    sinks: Sinks = None,
    window: Window = None,
    semantics: Semantics = None,
    compensation: Compensation = None,
    as_json: Json = False,
) -> None:
    """Decide which KV heads keep the whole context, and write it into the labels file.

    By labels (those whose papers say that they need it), by a budget, or by a quantile of the scores.

    Example: `workbench policy heads.json --kv-budget 0.5 --by retrieval --by razor_induction --sinks 16 --window 128`
    """
    from dataclasses import replace

    from workbench import choosing
    from workbench.labels import HeadLabels

    given = HeadLabels.load(labels)
    how = {name: value for name, value in _sizes(sinks, window, semantics, compensation).items() if value is not None}
    _refuse(kv_budget, quantile, uniform, random, at_length, by, keep)
    if uniform:
        made = choosing.uniform(given.card, **how)
    elif random is not None and kv_budget is not None:
        made = choosing.at_random(given.card, kv_budget, random, length=at_length, **how)
    elif kv_budget is not None or quantile is not None:
        ranking = choosing.ranking(given, by)
        score_LG = choosing.kv_scores(given, ranking)
        if kv_budget is not None:
            made = choosing.by_budget(given.card, score_LG, kv_budget, length=at_length, origin=ranking, **how)
        else:
            made = choosing.by_quantile(given.card, score_LG, quantile or 0.0, origin=ranking, **how)
    else:
        made = choosing.by_labels(given, *([keep] if keep else []), **how)
    path = replace(given, policy=made.to_json()).save(out or labels)
    if as_json:
        show.as_json({"policy": made.to_json(), "full_share": made.full_share, "kv_bytes": {size: made.kv_bytes(size) for size in SIZES}, "labels": path})
    else:
        show.result(_told(made), f"written into {path}")


def _refuse(
    kv_budget: float | None, quantile: float | None, uniform: bool, random: int | None, at_length: int | None, by: list[str] | None, keep: list[str] | None
) -> None:
    """Raises `InputError` for options that contradict each other, or would be dropped."""
    if sum(chosen is not None and chosen is not False for chosen in (kv_budget, quantile, uniform)) > 1:
        raise InputError("choose one of --kv-budget, --quantile and --uniform")
    for name, value in {"--random": random, "--at-length": at_length}.items():
        if value is not None and kv_budget is None:
            raise InputError(f"{name} needs --kv-budget")
    if by and ((kv_budget is None and quantile is None) or random is not None):
        raise InputError("--by ranks the heads for --kv-budget or --quantile, and not for --random")
    if keep and (kv_budget is not None or quantile is not None or uniform):
        raise InputError("--keep is for a policy by labels, without --kv-budget, --quantile or --uniform")


def _sizes(sinks: int | None, window: int | None, semantics: str | None, compensation: bool | None) -> dict[str, int | str | bool | None]:
    return {"sinks": sinks, "window": window, "semantics": semantics, "compensation": compensation}


def _told(made: "HeadPolicy") -> str:
    """The policy in three lines."""
    full, every = int(made.full_LG[made.layers].sum()), made.full_LG[made.layers].size
    memory = ", ".join(f"{made.kv_bytes(size) / 2**20:.0f} MiB at {size:,} ({made.share(size):.0%})" for size in SIZES)
    extra = " and a compensation token" if made.compensation else ""
    return (
        f"{made.card.name}: {full} of {every} KV heads full; the others see {made.sinks} sinks and a window of {made.window}{extra} ({made.semantics})\n"
        f"KV memory in 16 bits: {memory} tokens"
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read it from stdin.")],
    *,
    labels: Annotated[Path, typer.Option("--labels", help="A labels file; its policy, or that of its labels, is used.")],
    model: ModelName = DEFAULT_MODEL,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="The most tokens to make.")] = 100,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    chunk: Annotated[int | None, typer.Option(help="Read the prompt in pieces of so many tokens.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    implementation: How = "auto",
    as_json: Json = False,
) -> None:
    """Let a model answer with the attention that its labels ask for, greedily.

    Example: `workbench generate "What is the capital of France?" --chat --labels heads.json`
    """
    import sys

    from workbench import models
    from workbench.hybrid import cache as caches
    from workbench.hybrid.applied import apply
    from workbench.labels import HeadLabels

    found = HeadLabels.load(labels)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise InputError("the prompt is empty")
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    if chat:
        if not getattr(loaded.tokenizer, "chat_template", None):
            raise InputError(f"{loaded.name} has no chat template; leave --chat out")
        text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=not chat)["input_ids"].to(loaded.device)
    if loaded.device.type == "cpu":
        show.remark("on the CPU plain torch runs; it saves memory, the kernels that save time need CUDA")
    with apply(loaded, found, implementation=implementation) as applied:
        cache = applied.cache()
        how = {"max_new_tokens": max_new_tokens, "do_sample": False, "prefill_chunk_size": chunk, "past_key_values": cache}
        made = applied.generate(ids, attention_mask=ids.new_ones(ids.shape), **how)
        answer = loaded.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        tokens, used = made.shape[1], caches.nbytes(cache)
        every = applied.policy.kv_bytes(tokens - 1, loaded.dtype.itemsize) / applied.policy.share(tokens - 1)
        facts = {**applied.facts, "prompt_tokens": ids.shape[1], "tokens": tokens, "kv_bytes": used, "kv_bytes_full": round(every)}
    if as_json:
        show.as_json({"response": answer, **facts})
    else:
        show.result(answer)
        show.remark(
            f"{tokens} tokens; KV memory {used / 2**20:.1f} MiB, {every / 2**20:.1f} with every head full; {facts['implementation']} attention", style="dim"
        )


@app.command()
def verify(
    labels: Labels,
    *,
    model: ModelName = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="The table, .csv; the picture goes beside it as .html, the single tests as .tests.csv.")] = Path(
        "verify.csv"
    ),
    by: By = None,
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
    as_json: Json = False,
) -> None:
    """Prove what a policy costs: needle recall, perplexity and agreement with the full model along a sweep of KV budgets.

    The heads that the labels' scores choose stand beside random ones, a uniform window and the full model. Minutes on a GPU; on a CPU, take short lengths.

    Example: `workbench verify heads.json --lengths 600 --kv-budgets 0.33,0.5 --seeds 2 --out verify.csv`
    """
    from dataclasses import replace

    from workbench import choosing, models, views
    from workbench.files import write_text
    from workbench.labels import HeadLabels
    from workbench.verification import BUDGETS, TESTS, Setting
    from workbench.verification import verify as measure

    if out.suffix != ".csv":
        raise InputError(f"--out is a .csv file, not {out}")
    given = HeadLabels.load(labels)
    how = {name: value for name, value in _sizes(sinks, window, semantics, compensation).items() if value is not None}
    ranking = choosing.ranking(given, by)
    score_LG = choosing.kv_scores(given, ranking)
    saved = given.policy is not None
    base = choosing.policy_of(given) if saved else choosing.uniform(given.card)
    tests = replace(
        TESTS,
        lengths_=numbers(lengths, int, "--lengths") or TESTS.lengths_,
        depths=numbers(depths, float, "--depths") or TESTS.depths,
        per_cell=per_cell,
        needles=needles or TESTS.needles,
        haystack=haystack,
    )
    setting = Setting(tests, numbers(budgets, float, "--kv-budgets") or BUDGETS, tuple(range(seeds)), haystack, text_tokens, seed=seed, chunk=chunk)
    show.hush_libraries()
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, say=show.remark)
    with show.progress() as progress:
        found = measure(loaded, replace(base, **how), score_LG, setting, saved=saved, implementation=implementation, progress=progress)
    files = {
        "table": write_text(out, found.table.to_csv(index=False)),
        "tests": write_text(out.with_suffix(".tests.csv"), found.tests.to_csv(index=False)),
        "picture": views.save_html(views.quality_figure(found.table, {**found.provenance, "scores": " + ".join(ranking)}), out.with_suffix(".html")),
    }
    if as_json:
        show.as_json({"table": found.table.to_dict("records"), "provenance": found.provenance, "files": files})
        return
    columns = ("policy", "full heads", "KV", "recall", "kept", "95%", "perplexity", "agreement")
    table = show.table(*columns, numbers=columns[1:])
    for row in found.table.to_dict("records"):
        name = row["policy"] if row["policy"] != "random" else f"random {row['seed']:.0f}"
        interval = f"{row['kept_low']:.0%} – {row['kept_high']:.0%}"
        measured = f"{row['recall']:.3f}", f"{row['kept']:.0%}", interval, f"{row['perplexity']:.2f}", f"{row['agreement']:.1%}"
        table.add_row(name, str(row["full_heads"]), f"{row['kv_share']:.0%}", *measured)
    show.result(table, f"{found.provenance['model']}, {len(set(found.tests['test']))} needle tests; table {files['table']}, picture {files['picture']}")
