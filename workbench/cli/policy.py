"""Labels at work: the commands that choose a policy, and run a model under it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import show
from workbench.cli.app import Device, Dtype, Json, ModelName, Revision, app
from workbench.cli.spreading import DeviceMap, GpuMemory, TensorParallel, is_first, others_end
from workbench.errors import InputError
from workbench.sources import DEFAULT_MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.labels import HeadLabels
    from workbench.models import HFModel
    from workbench.policies import HeadPolicy

SIZES = (8192, 32768, 131072)
"""Contexts that KV memory is told for."""

Labels = Annotated[Path, typer.Argument(help="A labels file, as `workbench label` writes it.")]
By = Annotated[str | None, typer.Option("--by", help="The scores that rank KV heads: a probe, or several joined by +; razor_echo+razor_induction by default.")]
Combine = Annotated[str, typer.Option(help="Where several probes are joined: add their scores (sum) or their ranks (ranks).")]
Scores = Annotated[list[Path] | None, typer.Option("--scores", help="Another labels file, whose scores can be named by --by too; may be given several times.")]
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
    combine: Combine = "sum",
    scores: Scores = None,
    keep: Annotated[list[str] | None, typer.Option("--keep", help="A label whose heads stay full, where no budget is given.")] = None,
    sinks: Sinks = None,
    window: Window = None,
    semantics: Semantics = None,
    compensation: Compensation = None,
    as_json: Json = False,
) -> None:
    """Decide which KV heads keep the whole context, and write it into the labels file.

    By labels (those whose papers say that they need it), by a budget, or by a quantile of the scores.

    Example: `workbench policy heads.json --kv-budget 0.5 --by razor_echo+razor_induction --sinks 16 --window 128`
    """
    from dataclasses import replace

    from workbench import choosing
    from workbench.labels import HeadLabels

    given = HeadLabels.load(labels)
    how = given_sizes(sinks, window, semantics, compensation)
    _refuse(kv_budget, quantile, uniform, random, at_length, by, keep)
    if uniform:
        made = choosing.uniform(given.card, **how)
    elif random is not None and kv_budget is not None:
        made = choosing.at_random(given.card, kv_budget, random, length=at_length, **how)
    elif kv_budget is not None or quantile is not None:
        score_LG = choosing.kv_scores(with_scores(given, scores), by, combine=combine)
        origin = {"by": by or choosing.RANKING, "combine": combine}
        if kv_budget is not None:
            made = choosing.by_budget(given.card, score_LG, kv_budget, length=at_length, origin=origin, **how)
        else:
            made = choosing.by_quantile(given.card, score_LG, quantile or 0.0, origin=origin, **how)
    else:
        made = choosing.by_labels(given, *([keep] if keep else []), **how)
    path = replace(given, policy=made.to_json()).save(out or labels)
    if as_json:
        show.as_json({"policy": made.to_json(), "full_share": made.full_share, "kv_bytes": {size: made.kv_bytes(size) for size in SIZES}, "labels": path})
    else:
        show.result(_told(made), f"written into {path}")


def _refuse(
    kv_budget: float | None, quantile: float | None, uniform: bool, random: int | None, at_length: int | None, by: str | None, keep: list[str] | None
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


def with_scores(labels: "HeadLabels", files: list[Path] | None) -> "HeadLabels":
    """Labels with the scores of other labels files beside their own. Raises `InputError` for files of another model, and for a score that is there already."""
    from workbench import choosing
    from workbench.labels import HeadLabels

    return choosing.with_scores(labels, {str(file): HeadLabels.load(file) for file in files or ()})


def given_sizes(sinks: int | None, window: int | None, semantics: str | None, compensation: bool | None) -> dict[str, Any]:
    """Those fields of a policy that were given."""
    all_of_them = {"sinks": sinks, "window": window, "semantics": semantics, "compensation": compensation}
    return {name: value for name, value in all_of_them.items() if value is not None}


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
    prune: Annotated[
        str | None, typer.Option("--prune", help="Instead of a policy: run without the heads of this label, such as memory of `workbench ph3`.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    implementation: How = "auto",
    device_map: DeviceMap = None,
    gpu_memory: GpuMemory = None,
    tensor_parallel: TensorParallel = False,
    as_json: Json = False,
) -> None:
    """Let a model answer with the attention that its labels ask for, greedily; or without the heads of a label.

    Example: `workbench generate "What is the capital of France?" --chat --labels heads.json`
    """
    from workbench import models
    from workbench.kernels import cache as caches
    from workbench.kernels.applied import apply
    from workbench.labels import HeadLabels

    found = HeadLabels.load(labels)
    text = _text(prompt, tensor_parallel)
    if prune is not None and (chunk is not None or implementation != "auto" or tensor_parallel):
        raise InputError("--prune runs the model as it is, less some heads: without --chunk, --implementation and --tensor-parallel")
    show.hush_libraries()
    spread: dict[str, Any] = {"device_map": device_map, "gpu_memory": gpu_memory, "tensor_parallel": tensor_parallel}
    loaded = models.load(model, device=device, dtype=dtype, revision=revision, **spread, say=show.remark)
    ids = _asked(loaded, text, chat)
    if prune is not None:
        return _without(loaded, found, prune, ids, max_new_tokens, as_json)
    if loaded.device.type == "cpu" and is_first(loaded):
        show.remark("on the CPU plain torch runs; it saves memory, the kernels that save time need CUDA")
    with apply(loaded, found, implementation=implementation) as applied:
        cache = applied.cache()
        how = {"max_new_tokens": max_new_tokens, "do_sample": False, "prefill_chunk_size": chunk, "past_key_values": cache}
        made = applied.generate(ids, attention_mask=ids.new_ones(ids.shape), **how)
        others_end(loaded)
        answer = loaded.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        tokens, used = made.shape[1], caches.nbytes(cache)
        every = (mine := applied.running.policy).kv_bytes(tokens - 1, loaded.dtype.itemsize) / mine.share(tokens - 1)
        facts = {**applied.facts, "prompt_tokens": ids.shape[1], "tokens": tokens, "kv_bytes": used, "kv_bytes_full": round(every)}
    if as_json:
        return show.as_json({"response": answer, **facts})
    show.result(answer)
    where = "" if loaded.shards is None else f" in the first of {loaded.shards.ranks} processes"
    told = f"{tokens} tokens; KV memory{where} {used / 2**20:.1f} MiB, {every / 2**20:.1f} with every head full; {facts['implementation']} attention"
    return show.remark(told, style="dim")


def _text(prompt: str, tensor_parallel: bool) -> str:
    """The prompt itself, or what stdin holds."""
    if prompt == "-" and tensor_parallel:
        raise InputError("with --tensor-parallel every process would read a part of stdin; give the prompt itself")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise InputError("the prompt is empty")
    return text


def _asked(model: "HFModel", text: str, chat: bool) -> "Tensor":
    """The tokens [1, T] of a prompt, in the chat template if it is to be."""
    if chat:
        if not getattr(model.tokenizer, "chat_template", None):
            raise InputError(f"{model.name} has no chat template; leave --chat out")
        text = model.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    return model.tokenizer(text, return_tensors="pt", add_special_tokens=not chat)["input_ids"].to(model.device)


def _without(model: "HFModel", labels: "HeadLabels", label: str, ids: "Tensor", max_new_tokens: int, as_json: bool) -> None:
    """Answer without the heads of a label."""
    from workbench.pruning import pruned

    labels.check_model(model.card)
    heads = labels.heads(label)
    with pruned(model, heads) as hf:
        made = hf.generate(ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=max_new_tokens, do_sample=False)
    answer = model.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    if as_json:
        return show.as_json({"response": answer, "pruned": [str(head) for head in heads], "prompt_tokens": ids.shape[1], "tokens": made.shape[1]})
    show.result(answer)
    return show.remark(f"{made.shape[1]} tokens, without {', '.join(map(str, heads)) or 'no head'}", style="dim")
