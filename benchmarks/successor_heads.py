"""Which heads increment? Successor, copy-suppression and name-mover scores of all heads, mod-10 features, steering, and cases that heads win on text.

    python benchmarks/successor_heads.py --model smollm2-135m --out reports/smollm2-135m/successor_heads

Writes OUT.md (tables and what they say), OUT.csv (every head, from weights) and OUT_steering.csv. `--contexts` counts passages of 512 tokens,
`--seeds` autoencoders.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from report import write_report

from workbench.files import write_text
from workbench.heads import Head
from workbench.models import HFModel, load
from workbench.probes import PROBES, copy_suppression, name_mover, successor
from workbench.recipes import NaturalText
from workbench.rules import RULES
from workbench.sequences import SCORED, tokens_of
from workbench.successor import (
    AutoencoderSettings,
    Dictionary,
    Modal,
    Representations,
    at_random,
    autoencoder,
    compared,
    greater_than,
    head_table,
    held_out_pairs,
    in_class,
    kinds_by_head,
    left_out,
    linear_probe,
    modal,
    nmf,
    numbered_listings,
    of_features,
    of_means,
    of_probe,
    represent,
    success_table,
    transfer,
    winning_cases,
)
from workbench.token_circuits import RAW, Norms
from workbench.weights import Weights

NAMES = ("successor", "copy_suppression", "name_mover")
STEERED = ("numbers", "number words", "ordinals", "months", "days", "letters")
SEED = 1
RECONSTRUCTED = (
    "Norms and the path through MLP0 are reconstructions, as are the autoencoder's width and sparsity, the reading of modal features, the scale of "
    "steering and the rules that class winning cases: the papers do not say. Each docstring names them."
)


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table in Markdown."""
    cells = [[f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(map(str, table.columns)), ["---"] * len(table.columns), *cells])


def named(place: int, model: HFModel) -> Head:
    return Head(*divmod(int(place), model.shape.n_heads))


def scores(model: HFModel, weights: Weights) -> tuple[pd.DataFrame, dict[str, float]]:
    """One row per head with the three scores, their nulls and the variants of the successor score; and the seconds that each probe took."""
    control = Weights(model.weights, model.shape, SEED, model.tokenizer)
    heads = list(model.shape.heads())
    table, seconds = pd.DataFrame({"head": [str(head) for head in heads], "layer": [h.layer for h in heads], "index": [h.index for h in heads]}), {}
    for name in NAMES:
        begin = time.perf_counter()
        table[name] = PROBES[name].score(weights).mean(0).ravel()
        seconds[name] = time.perf_counter() - begin
        table[f"{name}_null"] = PROBES[name].score(control).mean(0).ravel()
    variants = {
        "raw": {"norms": RAW},
        "no_final_norm": {"norms": Norms(final=False)},
        "raw_into_mlp0": {"norms": Norms(mlp=False)},
        "without_mlp0": {"source": "embedding"},
        "with_embedding": {"source": "effective"},
    }
    for name, options in variants.items():
        table[f"successor_{name}"] = successor.successes(weights, successor.scored(weights), **options).mean(0).ravel()
    table["negative_name_mover"] = name_mover.written_first(weights, -1).mean(0).ravel()
    table["copying"] = PROBES["copying"].score(weights).mean(0).ravel()
    return table, seconds


def residues(found: Representations, seeds: int) -> tuple[pd.DataFrame, Dictionary, Modal]:
    """What autoencoders and NMF say about residues, one row each; and the first autoencoder with its modal features."""
    probe = linear_probe(found)
    made = [*(autoencoder(found, AutoencoderSettings(seed=seed)) for seed in range(seeds)), nmf(found)]
    modes = [modal(one, found) for one in made]
    return pd.DataFrame([compared(one, modal_of, probe) for one, modal_of in zip(made, modes, strict=True)]), made[0], modes[0]


def suppressors(weights: Weights, table: pd.DataFrame, count: int = 4) -> pd.DataFrame:
    """The tests of the copy-suppression paper for the strongest heads."""
    rows = []
    for _, row in table.nlargest(count, "copy_suppression").iterrows():
        head = Head(int(row["layer"]), int(row["index"]))
        tests = copy_suppression.bottom_ten(weights, head), copy_suppression.qk_match(weights, head), copy_suppression.qk_match(weights, head, "effective")
        rows.append((str(head), row["copy_suppression"], *tests, row["negative_name_mover"], row["successor"]))
    names = [
        "head",
        "copy_suppression",
        "own token in bottom 10",
        "W_U asks for own embedding",
        "embedding asks for itself",
        "negative name mover",
        "successor",
    ]
    return pd.DataFrame(rows, columns=names)


def bias(weights: Weights, model: HFModel, head: Head) -> pd.DataFrame:
    """The greater-than bias of the strongest head and of all heads, by class."""
    rows = []
    for name in SCORED:
        words = tokens_of(model.tokenizer, name)
        if not words.words.cyclic and len(words.present) >= 3:
            value_LH = greater_than(weights, words)
            rows.append((name, float(value_LH[head.layer, head.index]), float(value_LH.mean()), float(value_LH.std()), str(named(value_LH.argmax(), model))))
    return pd.DataFrame(rows, columns=["class", str(head), "mean of heads", "sd of heads", "largest"])


def picture(weights: Weights, head: Head, name: str) -> str:
    """For each token of a class the one that the head raises most within it."""
    seen = in_class(weights, head, name)
    marks = {True: "✓", False: "✗", None: ""}
    rows = [(repr(text), repr(best), marks[right]) for text, best, right in zip(seen.texts, seen.best, seen.right, strict=True)]
    return markdown(pd.DataFrame(rows, columns=["looked at", "written most", "successor"]))


def summary(weights: Weights, table: pd.DataFrame, seconds: dict[str, float], best: Head) -> list[str]:
    """What the scores say, in words."""
    facts, rules = successor.told(weights), {name: RULES[name].value for name in NAMES}
    above = {name: table.loc[table[name] >= rules[name], "head"].tolist() for name in NAMES}
    row = table.set_index("head").loc[str(best)]
    controls = f"{row['successor_null']:.3f} with successors shuffled, {row['successor_without_mlp0']:.3f} without MLP0"
    plain = f"the strongest is {best} with {row['successor']:.3f} ({controls})"
    known = ", ".join(name for name in NAMES[1:] if str(best) in above[name])
    found = "No head is a successor head" if not above["successor"] else f"{len(above['successor'])} heads are successor heads"
    counts = ", ".join(f"{name} {count}" for name, count in facts["classes"].items())
    return [
        f"{found} by the rule (≥ {rules['successor']:g}): {plain}{f'; it is labelled {known} as well' if known else ''}.",
        "Heads that a rule labels: " + "; ".join(f"{name} (≥ {rules[name]:g}) {', '.join(heads) or 'none'}" for name, heads in above.items()) + ".",
        f"Tokens that count, by class: {counts}. Restricted: {facts['restricted'] or 'none'}. Norms: {facts['norms']}; `raw` has none.",
        f"Seconds for all {len(table)} heads: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()) + ".",
        RECONSTRUCTED,
    ]


def on_text(cases: pd.DataFrame, contexts: int) -> list[str]:
    """What heads win on passages, and which win successor cases."""
    wins, shares = kinds_by_head(cases), cases["kind"].value_counts(normalize=True)
    title = f"## Cases won on {contexts} passages of 512 tokens, {len(cases)} rows ({cases['head'].nunique()} heads win one); direct effects, mean-ablated"
    return [
        f"{title}\n\n{markdown(wins.head(10))}",
        f"Heads with the most successor cases:\n\n{markdown(most(wins, 'successor'))}",
        "All heads together: " + ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()) + ".",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("reports/smollm2-135m/successor_heads"))
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    model = load(chosen.model, device="cpu", dtype="float32")
    weights = Weights(model.weights, model.shape, None, model.tokenizer)
    table, seconds = scores(model, weights)
    best = named(table["successor"].argmax(), model)
    found = represent(weights)
    dictionaries, first, modes = residues(found, chosen.seeds)
    means = of_means(found)
    directions = {"features": of_features(first, modes, means), "probe": of_probe(linear_probe(found), means), "means": means, "random": at_random(means)}
    steered = success_table(weights, best, STEERED, directions)
    cases = winning_cases(model, NaturalText(length=512, count=chosen.contexts, batch=2).build(model, 0))
    listed = kinds_by_head(winning_cases(model, [numbered_listings(model)], rows="before", ablation="zero"))
    sections = [
        *summary(weights, table, seconds, best),
        f"## {best}, the strongest by successor, class by class\n\n{markdown(head_table(weights, best).drop(columns='held_out'))}",
        f"## What {best} writes most within ordinals\n\n{picture(weights, best, 'ordinals')}",
        f"## Copy suppression, from weights\n\n{markdown(suppressors(weights, table))}",
        f"## Number mod 10 in MLP0 representations ({len(found.number)} tokens; {found.restricted})\n\n{markdown(dictionaries)}",
        f"A linear probe trained on numbers alone, and (below) on all classes but one:\n\n{markdown(transfer(found))}\n\n{markdown(left_out(found))}",
        f"## A place and a class, put together from other tokens and read by {best}\n\n{markdown(held_out_pairs(weights, best, found))}",
        f"## Steering {best} by vector arithmetic, at the best scale of each kind of direction, random ones too\n\n{markdown(at_best_scale(steered))}",
        f"## Greater-than bias, standard deviations of the logits within a class\n\n{markdown(bias(weights, model, best))}",
        *on_text(cases, chosen.contexts),
        f"## Cases won on 64 numbered listings\n\n{markdown(listed.head(6))}",
        "## The strongest heads by each score",
    ]
    strongest = pd.concat([table.nlargest(5, name) for name in NAMES]).drop_duplicates("head").drop(columns=["layer", "index"])
    write_report(chosen.out, f"Successor heads, copy suppression and name movers in {model.name}", sections, strongest, table)
    write_text(chosen.out.with_name(chosen.out.name + "_steering.csv"), steered.to_csv(index=False))


def at_best_scale(steered: pd.DataFrame) -> pd.DataFrame:
    """For each class and kind of direction the scale with the most success."""
    return steered.loc[steered.groupby(["class", "direction"], sort=False)["success"].idxmax()] if np.isfinite(steered["success"]).all() else steered


def most(wins: pd.DataFrame, kind: str, count: int = 5) -> pd.DataFrame:
    """The heads with the largest number of cases of a kind."""
    number = (wins[kind] * wins["wins"]).round().astype(int)
    return wins.assign(cases=number).nlargest(count, "cases")[["head", "wins", "cases", kind]]


if __name__ == "__main__":
    main()
