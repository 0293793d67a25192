"""Where are a model's sinks, and what makes them? Rates over many passages, later sinks by three rules, massive activations, no-op heads, norms.

python benchmarks/sinks.py --model smollm2-135m --out reports/smollm2-135m/sinks
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from report import write_report

from workbench.captures import capture
from workbench.measure import score
from workbench.models import HFModel, load
from workbench.prompts import Prompts
from workbench.reads import Received
from workbench.recipes import NaturalText, RandomTokens, Recipe, haystack_text
from workbench.rules import RULES
from workbench.sink_rules import FIRST_TOKEN, SINK_RULES, uniform_received
from workbench.sinks import Sinks, find_sinks

FIRST = ("attention_sink", "attention_sink_random", "attention_sink_repeated")
OTHERS = ("sink_anywhere", *(f"later_sink_{name}" for name in SINK_RULES), "no_op", "no_op_mass", "no_op_update", "user_attention")
TOKENS_SHOWN = 6
LATER = (
    "On the same natural text, the first token and the last quarter of the positions left out. `alpha_n` (from secondary sources) and "
    "`absolute` (released code) are ACT's, `uniform` is the house's."
)
BY_LAYER = (
    "Shares of heads with sinks by each rule; of the block's output inf-norm, kurtosis (3 for a Gaussian), median |h|, massive entries; "
    "‖h‖ first and elsewhere."
)
NO_OP = RULES["no_op"].value


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table for the remarks; tokens are quoted."""
    table = table.assign(token=[repr(token) for token in table["token"]]) if "token" in table else table
    rows = ([f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in row] for row in table.itertuples(index=False))
    return "\n".join("| " + " | ".join(row) + " |" for row in [[*map(str, table.columns)], ["---"] * len(table.columns), *rows])


Seen = list[tuple[Prompts, np.ndarray]]
"""Batches of prompts with what every key of every head receives [B, L, H, K]."""


def received(model: HFModel, recipe: Recipe, seed: int) -> Seen:
    """What keys receive on the prompts of a recipe."""
    return [(prompts, capture(model, prompts, [Received()])[Received()]) for prompts in recipe.build(model, seed)]


def rates(kinds: dict[str, Seen]) -> pd.DataFrame:
    """The share of sequences and heads with α₁ above ε, on each kind of input, with ε around that of the paper."""
    rows = []
    for name, seen in kinds.items():
        first_NLH = np.concatenate([received_BLHK[..., 0] for _, received_BLHK in seen])
        shares = {f"ε = {epsilon:g}": float((first_NLH > epsilon).mean()) for epsilon in (0.2, FIRST_TOKEN, 0.4)}
        rows.append({"input": name, "sequences": len(first_NLH), **shares, "mean α₁": float(first_NLH.mean())})
    return pd.DataFrame(rows)


def later(model: HFModel, seen: Seen) -> pd.DataFrame:
    """Of each rule: how many heads and passages have a later sink, how many there are, where, and on which tokens."""
    rows = []
    for name, rule in SINK_RULES.items():
        masks = [rule.later(received_BLHK, prompts.start_B) for prompts, received_BLHK in seen]
        mask_NLHK, ids_NT = np.concatenate(masks), np.concatenate([prompts.ids_BT for prompts, _ in seen])
        places_P4 = np.argwhere(mask_NLHK)
        tokens = Counter(model.tokenizer.decode([int(ids_NT[number, key])]) for number, _, _, key in places_P4)
        positions, total = Counter(places_P4[:, 3].tolist()), max(len(places_P4), 1)
        shares = {"heads × passages with one": float(mask_NLHK.any(-1).mean()), "per head and passage": float(mask_NLHK.sum(-1).mean())}
        often = ", ".join(f"{place} ({times / total:.0%})" for place, times in positions.most_common(3))
        rows.append({"rule": name, **shares, "most often at": often, "tokens": ", ".join(_token(*one, total) for one in tokens.most_common(TOKENS_SHOWN))})
    return pd.DataFrame(rows)


def _token(token: str, times: int, total: int) -> str:
    return f"`{token!r}` {times / total:.0%}"


def bias() -> pd.DataFrame:
    """Positions of a head that attends equally to all it sees that each rule calls later sinks, by length."""
    rows = []
    for length in (16, 64, 256, 1024, 4096):
        alpha = uniform_received(length)[None, None, None]
        rows.append({"tokens": length, **{name: int(rule.later(alpha, np.zeros(1, int), 0.0).sum()) for name, rule in SINK_RULES.items()}})
    return pd.DataFrame(rows)


def no_op_groups(table: pd.DataFrame) -> pd.DataFrame:
    """How heads spread over the two numbers of the reconstruction."""
    high, low = table["no_op_mass"] > NO_OP, table["no_op_update"] > NO_OP
    wide = table["no_op_update"] > 0.5
    groups = {
        "mass > 0.9 and update < 0.1 (no-op)": high & low,
        "mass > 0.9 and update 0.1–0.5": high & wide & ~low,
        "mass > 0.9 and update ≥ 0.5": high & ~wide,
        "mass ≤ 0.9 and update < 0.1": ~high & low,
        "the others": ~high & ~low,
    }
    return pd.DataFrame([{"heads": int(mask.sum()), "which": name} for name, mask in groups.items()])


def norms(found: Sinks) -> pd.DataFrame:
    """The first token beside the others, in thirds of the layers."""
    heads = found.heads.assign(third=found.heads["layer"] * 3 // found.card.shape.n_layers)
    rows = []
    for third, part in heads.groupby("third"):
        layers = f"{part['layer'].min()}–{part['layer'].max()}"
        ratios = {name: float((part[f"{name}_first"] / part[f"{name}_rest"]).median()) for name in ("value", "key")}
        row = {"layers": layers, "‖v₁‖ / ‖v‖ elsewhere": ratios["value"], "‖k₁‖ / ‖k‖ elsewhere": ratios["key"], "cos(q_t, k₁)": float(part["cosine"].median())}
        block = found.layers[found.layers["layer"] * 3 // found.card.shape.n_layers == third]
        rows.append({**row, "‖h₁‖ / ‖h‖ elsewhere": float((block["norm_first"] / block["norm_rest"]).median())})
    return pd.DataFrame(rows)


def per_head(model: HFModel, preset: str, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The scores of every head on the probes of sinks, and their evidence."""
    result = score(model, [*FIRST, *OTHERS], preset=preset, seed=seed)
    layer_N, head_N = np.indices((model.shape.n_layers, model.shape.n_heads)).reshape(2, -1)
    return pd.DataFrame({"layer": layer_N, "head": head_N, **{name: result.matrix(name).reshape(-1) for name in result.probes}}), dict(result.evidence)


def over_passages(model: HFModel, given: argparse.Namespace, table: pd.DataFrame) -> list[str]:
    """What many passages show: first-token sinks, later sinks."""
    natural = received(model, NaturalText(length=64, count=given.count), given.seed)
    kinds = {
        "natural text": natural,
        "random tokens": received(model, RandomTokens(count=given.count), given.seed),
        "random tokens behind BOS": received(model, RandomTokens(count=given.count, bos=True), given.seed),
        "one token repeated": received(model, RandomTokens(count=given.count, repeated=True), given.seed),
    }
    front = "BOS first" if natural[0][0].facts[0]["bos"] else "without BOS, which the tokenizer does not put in front"
    counts = ", ".join(f"{name.removeprefix('later_sink_')} {int((table[name] >= RULES[name].value).sum())}" for name in table if name.startswith("later"))
    return [
        "## First-token sinks",
        f"The share of sequences × heads with α₁ > ε, decided in each sequence of 64 tokens (Gu et al. 2024, whose ε is 0.3); natural text {front}.",
        markdown(rates(kinds)),
        "## Later sinks",
        f"{LATER} Heads with one in at least half of the passages: {counts}.",
        markdown(later(model, natural)),
        "How many positions each rule flags in a head that attends equally to all it sees, which has no sink:",
        markdown(bias()),
    ]


def on_one_text(found: Sinks, table: pd.DataFrame, evidence: dict[str, Any]) -> list[str]:
    """What one text shows: positions, massive activations, no-op heads, norms, and by layer."""
    positions = [markdown(part.head(TOKENS_SHOWN)) for _, part in found.positions().groupby("rule", sort=False)]
    name = "user_attention"
    user = f"{name} was {evidence[name]['status']}."
    if name in table:
        over, spread = int((table[name] >= RULES[name].value).sum()), f"largest {table[name].max():.3f}, median {table[name].median():.3f}"
        user = f"{over} heads give the user's tokens ≥ {RULES[name].value:g} of the answer's attention; {spread}."
    return [
        f"## One text of {len(found.tokens)} tokens: where sinks sit",
        *positions,
        "## Massive activations",
        "|h| > 100 and at least 1,000 times the median of the layer (both numbers from memory of 2402.17762), among the three largest of each block's output:",
        markdown(found.dimensions(), 1),
        "The five largest ratios among those that the criterion leaves out:",
        markdown(found.massive[~found.massive["massive"]].nlargest(5, "ratio"), 1),
        "## No-op heads",
        "A reconstruction: attention to the first token and delimiters, and how long the update is beside the values; means over passages of 64 tokens.",
        markdown(no_op_groups(table)),
        "## Norms at the first token",
        "Medians over heads (‖h‖: over layers) on the text; keys and queries as they are multiplied.",
        markdown(norms(found)),
        "## Attention to the user under the chat template",
        user,
        "## By layer, on the text",
        BY_LAYER,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = load(given.model, device=given.device)
    text, digest = haystack_text(given.text)
    found = find_sinks(model, Prompts(Prompts.from_text(model, text[: 20 * given.tokens]).ids_BT[:, : given.tokens]))
    table, evidence = per_head(model, given.preset, given.seed)
    what = f"{model.name}, {str(model.dtype).removeprefix('torch.')}, seed {given.seed}, text {digest}; scores of heads: {given.preset} preset."
    said = [what, *over_passages(model, given, table), *on_one_text(found, table, evidence)]
    layers = found.layers[[name for name in found.layers if not name.startswith("mean ")]]
    heads = table.merge(found.heads.add_prefix("text_").rename(columns={"text_layer": "layer", "text_head": "head"}), on=["layer", "head"])
    write_report(given.out, f"Attention sinks of {model.name}", said, layers, heads, digits=2)


if __name__ == "__main__":
    main()
