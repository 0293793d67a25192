"""Do tasks use the same heads of a real model? Overlap of circuits against chance and their own ceiling, transfer, specificity, roles of shared heads.

    python benchmarks/circuit_reuse.py --model smollm2-135m --labels reports/smollm2-135m/heads.json --out reports/smollm2-135m/circuit_reuse

Circuits are the heads of the largest effect by exact activation patching, as many for every task. Writes OUT.md, OUT.csv (overlaps),
OUT.transfer.csv (every circuit on every task) and OUT.heads.csv (effects of all heads on all tasks).
"""

import argparse
from itertools import combinations
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
from circuit_reuse_prompts import Prepared, Refused, text_effects, try_task
from circuit_shared import markdown
from jaxtyping import Bool
from report import write_report

from workbench.circuits.faithfulness import faithfulness
from workbench.circuits.patching import replace_sets
from workbench.circuits.reuse import agreement, overlaps, resampled_jaccard, split_half, top
from workbench.circuits.transfer import matrix, measured, specificity
from workbench.files import write_text
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.models import HFModel, load

TASKS = (
    *("ioi", "greater_than_digit", "gendered_pronoun", "subject_verb_agreement", "induction", "successor", "docstring"),
    *("knowledge_conflict:relation=language", "colored_objects", "multiple_choice"),
)
BUDGETS = (0.02, 0.05, 0.1)
"""Shares of all heads that every circuit has."""

SHOWN = 0.05
"""The budget at which the report shows all of a pair, and roles."""

COMPARED = ("ioi", "colored_objects")
"""Told head by head, as Merullo et al. 2024 do, if the model does both."""

MIN_TASKS = 2
PROBES = ("previous_token", "induction", "duplicate_token", "name_mover", "copying", "successor", "retrieval", "attention_sink")


def size_of(model: HFModel, share: float) -> int:
    """How many heads a budget is: at least one."""
    return max(1, round(share * model.shape.n_layers * model.shape.n_heads))


def overlap_rows(done: dict[str, Prepared], sizes: dict[float, int], generic_LH: Bool[np.ndarray, "L H"], draws: int) -> pd.DataFrame:
    """All pairs of tasks at every budget: overlap, nulls, ceiling, interval, and the same without heads that matter on plain text."""
    tables = []
    for share, size in sizes.items():
        circuits = {name: top(one.mean_LH, size) for name, one in done.items()}
        ceilings = {name: split_half(one.effect_NLH, size) for name, one in done.items()}
        table = overlaps(circuits, ceilings=ceilings)
        bare = overlaps(circuits, without_LH=generic_LH)
        pairs = list(combinations(done.values(), 2))
        ends = [resampled_jaccard(a.effect_NLH, b.effect_NLH, size, draws) for a, b in pairs]
        same = [agreement(a.mean_LH, b.mean_LH) for a, b in pairs]
        extra = {"low": [low for low, _ in ends], "high": [high for _, high in ends], "spearman": [one.spearman for one in same]}
        extra |= {"weighted": [one.weighted for one in same], "jaccard_without_generic": bare["jaccard"], "q_layer_without_generic": bare["q_layer"]}
        tables.append(table.assign(budget=share, size=size, **extra))
    return pd.concat(tables, ignore_index=True)


def crossed(model: HFModel, done: dict[str, Prepared], sizes: dict[float, int], randoms: int) -> pd.DataFrame:
    """Every circuit on every task's held-out prompts, with random rivals: `kept`, its faithfulness alone, and `drop`, the share lost without it."""
    tables, asked = [], {name: {} for name in done}
    chosen = {share: {name: top(one.mean_LH, size) for name, one in done.items()} for share, size in sizes.items()}

    def collect(circuit_LH: Bool[np.ndarray, "L H"], task: str) -> float:
        asked[task].setdefault(circuit_LH.tobytes(), circuit_LH)
        return 0.0

    for circuits in chosen.values():
        measured(circuits, collect, randoms)
    values = {name: _values(model, done[name], list(asked[name].values())) for name in done}
    for share, circuits in chosen.items():
        for kind in ("kept", "drop"):
            table = measured(circuits, lambda circuit_LH, task, kind=kind: values[task][kind, circuit_LH.tobytes()], randoms)
            tables.append(table.assign(budget=share, kind=kind))
    return pd.concat(tables, ignore_index=True)


def _values(model: HFModel, one: Prepared, circuits: list[Bool[np.ndarray, "L H"]]) -> dict[tuple[str, bytes], float]:
    """Faithfulness of circuits alone, and what is lost without them, all in one sweep."""
    empty_LH = np.ones_like(circuits[0])
    value_SN, full_N, _ = replace_sets(model, one.held_out, np.stack([empty_LH, *(~circuit for circuit in circuits), *circuits]))
    empty_N, alone, without = value_SN[0], value_SN[1 : 1 + len(circuits)], value_SN[1 + len(circuits) :]
    found = {}
    for circuit, alone_N, without_N in zip(circuits, alone, without, strict=True):
        found["kept", circuit.tobytes()] = faithfulness(alone_N, empty_N, full_N)[0]
        found["drop", circuit.tobytes()] = 1 - faithfulness(without_N, empty_N, full_N)[0]
    return found


def head_rows(model: HFModel, done: dict[str, Prepared], size: int, labels: HeadLabels | None) -> pd.DataFrame:
    """One row per head: the effect on each task as a share of the task's difference, in which circuits it is, its labels and its scores on probes."""
    circuits = {name: top(one.mean_LH, size) for name, one in done.items()}
    rows = []
    for head in model.shape.heads():
        member = [name for name in done if circuits[name][head.layer, head.index]]
        row = {"head": str(head), "circuits": len(member), "tasks": ", ".join(member)}
        if labels is not None:
            row |= {"labels": ", ".join(labels.labels[head])}
            row |= {name: float(labels.scores[name][head.layer, head.index]) for name in PROBES if name in labels.scores}
        rows.append(row | {f"effect on {name}": float(one.normalised_LH[head.layer, head.index]) for name, one in done.items()})
    return pd.DataFrame(rows)


def head_by_head(done: dict[str, Prepared], size: int, heads: pd.DataFrame) -> str:
    """The two tasks of `COMPARED`, head by head, or why not."""
    missing = [name for name in COMPARED if name not in done]
    if missing:
        return f"Not done: {' and '.join(missing)}, refused above or not asked for."
    first, second = (top(done[name].mean_LH, size) for name in COMPARED)
    said = {(True, True): "both", (True, False): COMPARED[0], (False, True): COMPARED[1]}
    rows = []
    for layer, index in np.argwhere(first | second):
        told = heads[heads["head"] == str(Head(int(layer), int(index)))].iloc[0]
        row = {"head": told["head"], "in": said[bool(first[layer, index]), bool(second[layer, index])]}
        rows.append(row | {name: float(told[f"effect on {name}"]) for name in COMPARED} | ({"labels": told["labels"]} if "labels" in told else {}))
    return markdown(pd.DataFrame(rows))


def task_table(done: dict[str, Prepared], refused: list[Refused]) -> pd.DataFrame:
    """What the model does, and what it does not."""
    rows = [one.row() for one in (*done.values(), *refused)]
    table = pd.DataFrame(rows).astype(object)
    return table.where(table.notna(), "")


def crossing(cross: pd.DataFrame, share: float) -> list[str]:
    """Transfer and specificity at one budget, as text."""
    part = cross[cross["budget"] == share]
    kept, drop = (part[part["kind"] == kind] for kind in ("kept", "drop"))
    own = specificity(matrix(drop))
    lost = matrix(drop).assign(specificity=own).reset_index()
    return [
        f"### {share:.0%} of heads: faithfulness of the circuit (row) alone on the task (column)", markdown(matrix(kept).reset_index(), 2),
        "Random circuits with as many heads in each layer, means:", markdown(matrix(kept, "random_mean").reset_index(), 2),
        f"### {share:.0%} of heads: what is lost without the circuit (row) on the task (column)", markdown(lost, 2),
        "Random circuits with as many heads in each layer, means:", markdown(matrix(drop, "random_mean").reset_index(), 2),
    ]  # fmt: skip


HOW = (
    "Effects are those of replacing a head's output by that on the corrupted prompt, at all positions; half of the prompts, templates and all where there are "
    "several, are held out for transfer and specificity. A task counts as done if its accuracy is above chance (one-sided binomial test, 5%). In a knowledge "
    "conflict neither answer is wrong: the one that the model prefers counts as right, and the table says which."
)
OVERLAP = (
    "`expected`, `p`: random sets of heads (hypergeometric). `p_layer`: random sets with as many heads in every layer; `q_layer` over all pairs "
    "(Benjamini–Yekutieli). `low`, `high`: 95% over samples of prompts. `ceiling`: the Jaccard index of circuits found from two halves of one task's prompts, "
    "mean of the two tasks. `without generic`: without the heads that matter most for the next token of plain text."
)
LOSS = (
    "Faithfulness is (circuit − nothing) / (full − nothing) of the metric; what is lost is 1 − that of the complement, below 0 where the task became better. "
    "Specificity: own / (own + mean of others); 0.5 hurts all alike."
)


def remarks(model: HFModel, given: argparse.Namespace, done: dict[str, Prepared], refused: list[Refused], parts: dict[str, pd.DataFrame]) -> list[str]:
    """The report but the overlaps at one budget."""
    heads, pairs, size = parts["heads"], parts["pairs"], size_of(model, SHOWN)
    shared = heads[heads["circuits"] >= 2].sort_values("circuits", ascending=False, kind="stable")
    shared = shared[[name for name in shared if not str(name).startswith("effect on ")]]
    wide = pairs.pivot_table(index=["first_task", "second_task"], columns="budget", values=["jaccard", "q_layer", "of_ceiling"], sort=False)
    wide.columns = [f"{name}, {share:.0%}" for name, share in wide.columns]
    roles = "The labels file was not given, or is not there: no roles." if "labels" not in heads else f"Labels and scores: {given.labels.name}."
    crosses = [text for share in BUDGETS for text in crossing(parts["cross"], share)]
    return [
        f"{model.name}, {str(model.dtype).removeprefix('torch.')}, seed {given.seed}, at most {given.lengths} lengths of prompts a task. {HOW}",
        "## Tasks", markdown(task_table(done, refused), 2),
        "## Transfer and specificity", LOSS, *crosses,
        f"## Heads in two circuits or more, at {SHOWN:.0%} ({size} heads a circuit)", roles, markdown(shared, 2),
        f"## {COMPARED[0]} and {COMPARED[1]}, head by head", head_by_head(done, size, heads),
        "## Overlap at all budgets", markdown(wide.reset_index(), 2),
        f"## Overlap at {SHOWN:.0%}", OVERLAP,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--items", type=int, default=64, help="half of them held out")
    parser.add_argument("--lengths", type=int, default=3)
    parser.add_argument("--randoms", type=int, default=5)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--labels", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model, begin = load(given.model, device=given.device, dtype=given.dtype), perf_counter()
    labels = HeadLabels.load(given.labels) if given.labels else None
    if labels is not None:
        labels.check_model(model.card)
    tried = [try_task(model, task, given.items, given.lengths, given.seed) for task in given.tasks]
    done, refused = {one.name: one for one in tried if isinstance(one, Prepared)}, [one for one in tried if isinstance(one, Refused)]
    print(f"effects of {len(done)} tasks: {perf_counter() - begin:.1f} s", flush=True)
    if len(done) < MIN_TASKS:
        raise SystemExit("\n".join([f"reuse is a matter of two tasks or more; {model.name} does {len(done)}:", *(f"{one.name}: {one.why}" for one in refused)]))
    sizes = {share: size_of(model, share) for share in BUDGETS}
    generic_LH = top(text_effects(model), sizes[SHOWN])
    parts = {"pairs": overlap_rows(done, sizes, generic_LH, given.draws), "cross": crossed(model, done, sizes, given.randoms)}
    parts["heads"] = head_rows(model, done, sizes[SHOWN], labels)
    print(f"all: {perf_counter() - begin:.1f} s", flush=True)
    shown = parts["pairs"][parts["pairs"]["budget"] == SHOWN]
    names = ("first_task", "second_task", "shared", "expected", "p", "p_layer", "q_layer", "jaccard", "low", "high", "ceiling", "of_ceiling", "spearman")
    table = shown[[*names, "jaccard_without_generic", "q_layer_without_generic"]]
    write_report(given.out, f"Heads that tasks share: {model.name}", remarks(model, given, done, refused, parts), table, parts["pairs"])
    write_text(given.out.with_suffix(".transfer.csv"), parts["cross"].to_csv(index=False))
    write_text(given.out.with_suffix(".heads.csv"), parts["heads"].to_csv(index=False))
    print(given.out.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
