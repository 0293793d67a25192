"""Where are a text's sinks, and what makes them? Positions and tokens rule by rule, massive activations, no-op heads, norms; and who looks at the user."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from workbench.captures import Capture, capture
from workbench.conversations import RESPONSE, USER, Message, conversation
from workbench.errors import InputError
from workbench.heads import ModelCard
from workbench.models import HFModel
from workbench.probes import no_op
from workbench.prompts import Prompts
from workbench.reads import Activations, FirstKeyCosine, KeyNorm, Mass, Read, Received, ValueNorm, Written
from workbench.recipes import DELIMITERS
from workbench.rules import RULES
from workbench.sink_rules import FIRST_TOKEN, MASSIVE, MASSIVE_RATIO, SINK_RULES, TAIL, SinkRule, says_little

FIRST = "first"
"""What sinks on the first token are called among the rules: α₁ > ε."""

PAPER_LAYER, PAPER_LAYERS = 15, 22
"""The layer that 2411.02688 look at, of those of their probe model; other models take the one at the same depth."""


@dataclass(frozen=True, eq=False)
class Sinks:
    """What one text shows. Positions count from 0; `provenance` has the rules with their sources, and how the pass was made.

    `sinks`: one row per rule, head and position that is a sink: rule, layer, head, position, token, received (α_k, 0–1), threshold.
    `layers`: one row per layer: the share of heads with a sink by each rule; of the block's output inf-norm, kurtosis, median |h|, how many of the
    largest entries are massive, ‖h‖ of the first token and the mean of the others; means over heads of the numbers of `heads`.
    `heads`: one row per head: α₁, mass and update of `no_op`, whether it is one; ‖v‖ and ‖k‖ (of its KV head) of the first token and the mean of the
    others; the mean over rows of cos(q_t, k₁), the first row left out.
    `massive`: the largest entries of every block output: layer, position, token, dim, value, median, ratio, and whether the criterion calls it massive.
    """

    card: ModelCard
    tokens: tuple[str, ...]
    received_LHK: np.ndarray
    sinks: pd.DataFrame
    layers: pd.DataFrame
    heads: pd.DataFrame
    massive: pd.DataFrame
    provenance: Mapping[str, Any]

    def positions(self) -> pd.DataFrame:
        """Which tokens sinks sit on: for each rule and position how many heads have one there, in which layers, and the most that a head gives it."""
        if self.sinks.empty:
            return pd.DataFrame(columns=["rule", "position", "token", "heads", "layers", "received"])
        grouped = self.sinks.groupby(["rule", "position", "token"], sort=False)
        found = grouped.agg(heads=("head", "size"), first=("layer", "min"), last=("layer", "max"), received=("received", "max")).reset_index()
        found["layers"] = [f"{first}–{last}" if first < last else str(first) for first, last in zip(found["first"], found["last"], strict=True)]
        ordered = found.sort_values(["rule", "heads", "position"], ascending=[True, False, True], kind="stable", ignore_index=True)
        return ordered[["rule", "position", "token", "heads", "layers", "received"]]

    def by_head(self, rule: str) -> Int[np.ndarray, "L H"]:
        """How many sinks each head has by a rule."""
        return self._counted(rule, "head", self.card.shape.n_heads)

    def by_layer(self, rule: str) -> Int[np.ndarray, "L K"]:
        """How many heads of each layer have a sink at each position by a rule."""
        return self._counted(rule, "position", len(self.tokens))

    def _counted(self, rule: str, column: str, size: int) -> np.ndarray:
        chosen = self.sinks[self.sinks["rule"] == rule]
        count = np.zeros((self.card.shape.n_layers, size), np.int64)
        np.add.at(count, (chosen["layer"].to_numpy(np.int64), chosen[column].to_numpy(np.int64)), 1)
        return count

    def dimensions(self) -> pd.DataFrame:
        """Where activations are massive: dimension and position, in which layers, and the largest value of all of them."""
        found = self.massive[self.massive["massive"]]
        rows = []
        for (dim, position), part in found.groupby(["dim", "position"]):
            largest = part.loc[part["value"].abs().idxmax()]
            layers = f"{part['layer'].min()}–{part['layer'].max()}"
            rows.append(
                {"dim": dim, "position": position, "token": largest["token"], "layers": layers, "value": largest["value"], "ratio": part["ratio"].max()}
            )
        columns = ["dim", "position", "token", "layers", "value", "ratio"]
        return pd.DataFrame(rows, columns=columns).sort_values("value", key=lambda value: -value.abs(), ignore_index=True)


def find_sinks(
    model: HFModel,
    prompts: Prompts | str,
    *,
    rules: Mapping[str, SinkRule] = SINK_RULES,
    tail: float = TAIL,
    top: int = 3,
    criterion: tuple[float, float] = (MASSIVE, MASSIVE_RATIO),
    **options: Any,
) -> Sinks:
    """Everything about the sinks of one text, from one pass that keeps neither attention maps nor the residual stream.

    The last `tail` of the positions (0–1) has no later sinks, being seen by few rows; 0 counts all, as the papers do. `criterion` says when an
    activation is massive: |a| above the first number, and at least the second times the median of its layer. `options` are those of `captures.capture`, such as
    `implementation` and `chunk`. Raises `InputError` for more than one prompt, and for one of fewer than two tokens.
    """
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_text(model, prompts)
    if prompts.count != 1 or prompts.length - int(prompts.start_B[0]) < 2:
        raise InputError("sinks are looked for in one prompt of at least two tokens")
    quiet = np.zeros(prompts.length, bool) if model.tokenizer is None else says_little(model.tokenizer, prompts.ids_BT[0])
    prompts = replace(prompts, facts=({DELIMITERS: tuple(np.flatnonzero(quiet & (np.arange(prompts.length) >= prompts.start_B[0])).tolist())},))
    reads: list[Read] = [Received(), Written(), ValueNorm(), KeyNorm(), FirstKeyCosine(), Activations(top)]
    seen = capture(model, prompts, reads, **options)
    tokens = tuple(_words(model, prompts))
    heads, massive, sinks = _heads(seen), _massive(seen, Activations(top), tokens, criterion), _sinks(seen, rules, tail, tokens)
    facts = {
        "tokens": prompts.length,
        "first_token": {"above": FIRST_TOKEN, "source": "Gu et al. 2024 (2410.10781)"},
        "rules": {name: {"kind": rule.kind, "value": rule.value, "source": rule.source} for name, rule in rules.items()},
        "tail": tail,
        "massive": {"above": criterion[0], "times_the_median": criterion[1], "source": "Sun et al. 2024 (2402.17762); both numbers from memory"},
        "no_op": {"at_least": RULES["no_op"].value, "source": RULES["no_op"].source},
        **seen.provenance,
    }
    return Sinks(model.card, tokens, seen[Received()][0], sinks, _layers(seen, Activations(top), sinks, heads, massive, [FIRST, *rules]), heads, massive, facts)


def _words(model: HFModel, prompts: Prompts) -> Iterable[str]:
    for place, token in enumerate(prompts.ids_BT[0].tolist()):
        yield "" if place < prompts.start_B[0] else str(token) if model.tokenizer is None else model.tokenizer.decode([token])


def _sinks(seen: Capture, rules: Mapping[str, SinkRule], tail: float, tokens: Sequence[str]) -> pd.DataFrame:
    received_BLHK, start_B = seen[Received()], seen.prompts.start_B
    start = int(start_B[0])
    first_LHK = np.zeros(received_BLHK.shape[1:], bool)
    first_LHK[..., start] = received_BLHK[0, ..., start] > FIRST_TOKEN
    found = {FIRST: (first_LHK, np.full(seen.prompts.length, FIRST_TOKEN))}
    for name, rule in rules.items():
        found[name] = rule.later(received_BLHK, start_B, tail)[0], np.concatenate([np.zeros(start), rule.threshold(seen.prompts.length - start)])
    rows = [
        {
            "rule": name,
            "layer": int(layer),
            "head": int(head),
            "position": int(key),
            "token": tokens[key],
            "received": float(received_BLHK[0, layer, head, key]),
            "threshold": float(threshold_K[key]),
        }
        for name, (mask_LHK, threshold_K) in found.items()
        for layer, head, key in np.argwhere(mask_LHK)
    ]
    return pd.DataFrame(rows, columns=["rule", "layer", "head", "position", "token", "received", "threshold"])


def _heads(seen: Capture) -> pd.DataFrame:
    shape, start = seen.card.shape, int(seen.prompts.start_B[0])
    mass_LH, update_LH = no_op.mass(seen)[0], no_op.update(seen)[0]
    columns = {"first": seen[Received()][0, ..., start], "mass": mass_LH, "update": update_LH}
    columns["no_op"] = np.minimum(mass_LH, np.clip(1 - update_LH, 0, 1)) >= RULES["no_op"].value
    for name, read in (("value", ValueNorm()), ("key", KeyNorm())):
        norm_LHK = np.stack([shape.to_query(norm_GK) for norm_GK in np.moveaxis(seen[read][0], -1, 0)], axis=-1)
        columns |= {f"{name}_first": norm_LHK[..., start], f"{name}_rest": norm_LHK[..., start + 1 :].mean(-1)}
    columns["cosine"] = seen[FirstKeyCosine()][0, ..., start + 1 :].mean(-1)
    layer_N, head_N = np.indices(mass_LH.shape).reshape(2, -1)
    return pd.DataFrame({"layer": layer_N, "head": head_N, **{name: array.reshape(-1) for name, array in columns.items()}})


def _massive(seen: Capture, read: Activations, tokens: Sequence[str], criterion: tuple[float, float]) -> pd.DataFrame:
    found, rows = seen[read], []
    for layer in range(found.value.shape[1]):
        median = float(found.median[0, layer])
        for value, position, dim in zip(found.value[0, layer], found.token[0, layer], found.dim[0, layer], strict=True):
            ratio = abs(float(value)) / median if median > 0 else np.inf
            row = {"layer": layer, "position": int(position), "token": tokens[position], "dim": int(dim), "value": float(value), "median": median}
            rows.append({**row, "ratio": ratio, "massive": bool(abs(value) > criterion[0] and ratio >= criterion[1])})
    return pd.DataFrame(rows)


def _layers(seen: Capture, read: Activations, sinks: pd.DataFrame, heads: pd.DataFrame, massive: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    found, start, shape = seen[read], int(seen.prompts.start_B[0]), seen.card.shape
    table = pd.DataFrame({"layer": range(shape.n_layers)})
    for name in names:
        with_one = sinks[sinks["rule"] == name].groupby("layer")["head"].nunique()
        table[f"sinks {name}"] = with_one.reindex(table["layer"], fill_value=0).to_numpy() / shape.n_heads
    table["inf_norm"], table["kurtosis"], table["median"] = found.largest[0], found.kurtosis[0], found.median[0]
    table["massive"] = massive.groupby("layer")["massive"].sum().to_numpy()
    table["norm_first"], table["norm_rest"] = found.norm[0, :, start], found.norm[0, :, start + 1 :].mean(-1)
    means = heads.groupby("layer").mean().drop(columns="head").add_prefix("mean ")
    return table.join(means, on="layer")


def turns(model: HFModel, messages: Sequence[Message], *, layer: int | None = None, **options: Any) -> pd.DataFrame:
    """How far each answer of a conversation looks at its user (2411.02688): the mean over its tokens of the largest head's attention to the user's.

    One row per answer and layer, or of one `layer` alone: turn, layer, score (0–1), head (the one with the largest mean), head_score, context_dependent
    (score above 0.6, as in `RULES["user_attention"]`), and `paper` at the layer of the paper's depth. Raises `InputError` as `conversations.conversation` does.
    """
    prompts = conversation(model, messages)
    spans = [name for name in prompts.spans if name.startswith(USER)]
    layers = range(model.shape.n_layers) if layer is None else [layer]
    rows = []
    reads = {name: [Mass(span=span, rows=name) for span in spans] for name in prompts.rows if name.startswith(RESPONSE)}
    seen = capture(model, prompts, [read for some in reads.values() for read in some], layers=layers, **options)
    paper = round(PAPER_LAYER / PAPER_LAYERS * model.shape.n_layers)
    for turn, some in enumerate(reads.values()):
        mass_LHR = np.sum([seen[read][0] for read in some], axis=0)
        for place, number in enumerate(layers):
            mean_H, score = mass_LHR[place].mean(-1), float(mass_LHR[place].max(0).mean())
            row = {"turn": turn, "layer": number, "score": score, "head": int(mean_H.argmax()), "head_score": float(mean_H.max())}
            rows.append({**row, "context_dependent": score > RULES["user_attention"].value, "paper": number == paper})
    return pd.DataFrame(rows)
