"""When does a score make a label? `RULES`: every threshold of the project, each with its source and what a random head gets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float

from workbench.errors import InputError, unknown
from workbench.heads import Shape

KINDS = ("at_least", "top_share", "top_per_layer")


@dataclass(frozen=True)
class Rule:
    """When a head gets a label: by its score on one probe.

    `kind` is `at_least` (score ≥ value), `top_share` (the best `value` of all heads, 0–1; of all KV heads if `per_kv_head`,
    whose query heads then all get the label) or `top_per_layer` (the best `value` heads of each layer). By any rule the
    score must also be above the head's own null (for KV heads: the best score of the group above
    its best null). `source` says where the value comes from; `chance` what a random head gets.
    """

    label: str
    probe: str
    value: float
    source: str
    chance: str
    kind: str = "at_least"
    per_kv_head: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of rule", self.kind, KINDS)
        if not np.isfinite(self.value):
            raise InputError(f"the rule for {self.label} needs a finite value, got {self.value}")
        if self.kind == "top_share" and not 0 <= self.value <= 1:
            raise InputError(f"the rule for {self.label} takes a share of the heads, 0 to 1, got {self.value:g}")
        if self.kind == "top_per_layer" and (self.value < 0 or self.value != int(self.value)):
            raise InputError(f"the rule for {self.label} takes a whole number of heads, got {self.value:g}")

    def select(self, score_LH: Float[np.ndarray, "L H"], null_LH: Float[np.ndarray, "L H"], shape: Shape) -> Bool[np.ndarray, "L H"]:
        """Which heads the rule labels. Ties go to the earlier head; a null of NaN is no hurdle."""
        null_LH = np.nan_to_num(null_LH, nan=-np.inf)
        if self.per_kv_head:
            return shape.to_query(self._choose(shape.to_kv(score_LH), shape.to_kv(null_LH)))
        return self._choose(score_LH, null_LH)

    def _choose(self, score: np.ndarray, null: np.ndarray) -> np.ndarray:
        if self.kind == "at_least":
            chosen = score >= self.value
        elif self.kind == "top_per_layer":
            chosen = _best(score, int(self.value))
        else:
            chosen = _best(score.reshape(1, -1), round(self.value * score.size)).reshape(score.shape)
        return chosen & (score > null)


def rule_text(rule: Rule) -> str:
    """A rule in a few words, such as `score ≥ 0.1` or `best 2% of heads`."""
    if rule.kind == "at_least":
        return f"{'score' if rule.probe == rule.label else rule.probe} ≥ {rule.value:g}"
    pool = "KV heads" if rule.per_kv_head else "heads"
    return f"best {rule.value:g} of each layer" if rule.kind == "top_per_layer" else f"best {100 * rule.value:.3g}% of {pool}"


def _best(score_RC: np.ndarray, count: int) -> np.ndarray:
    """True at the `count` largest entries of each row."""
    order = np.argsort(-score_RC, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(score_RC.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


_HOUSE = "house default, not from a paper"
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.label: rule
        for rule in (
            Rule("retrieval", "retrieval", 0.1, "Wu et al. 2024 (2404.15574): copies ≥ 10% of the needle's tokens", "control: another needle in its place"),
            Rule(
                "semantic_retrieval",
                "semantic_retrieval",
                4,
                "CompressKV (2508.02401): best four of each layer",
                "control: another needle in its place",
                "top_per_layer",
            ),
            Rule(
                "reasoning_retrieval",
                "reasoning_retrieval",
                0.1,
                "house default; HeadKV-R2 (2410.19258) has no cut, 6–7% of its heads reach 0.1",
                "control: another needle in its place",
            ),
            Rule(
                "query_focused_retrieval", "query_focused_retrieval", 0.02, "QRHead (2506.09944): 1–2% of heads", "control: gold document absent", "top_share"
            ),
            Rule("razor_echo", "razor_echo", 0.01, "RazorAttention (2407.15891): best 1% of KV heads", "control: no repeats", "top_share", True),
            Rule("razor_induction", "razor_induction", 0.14, "RazorAttention (2407.15891): best 14% of KV heads", "control: no repeats", "top_share", True),
            Rule("induction", "induction", 0.4, "Olsson et al. 2022; customary cut", "control: no repeats"),
            Rule("previous_token", "previous_token", 0.5, _HOUSE, "uniform attention"),
            Rule("duplicate_token", "duplicate_token", 0.3, _HOUSE, "control: no repeats"),
            Rule("copying", "copying", 0.5, _HOUSE, "control: embeddings shuffled among tokens"),
            Rule(
                "successor",
                "successor",
                0.5,
                "Gould et al. 2023 (2312.09230): about half; a re-implementation takes 0.4",
                "control: successors shuffled within each class",
            ),
            Rule(
                "copy_suppression",
                "copy_suppression",
                0.8,
                "house default after McDougall et al. 2023 (2310.04625): their heads reach 0.85–0.99",
                "0.05: as many as lie in the bottom 5%",
            ),
            Rule("name_mover", "name_mover", 0.95, "Wang et al. 2022 (2211.00593): name movers > 0.95", "control: embeddings shuffled among names"),
            Rule("attention_sink", "attention_sink", 0.3, "Gu et al. 2024 (2410.10781): ε = 0.3 at 64 tokens", "0.074: uniform attention over 64 tokens"),
            Rule("sink_anywhere", "sink_anywhere", 0.3, "Gu et al. 2024 (2410.10781): ε = 0.3, any position", "0.074: uniform attention over 64 tokens"),
            *(
                Rule(name, name, 0.3, f"Gu et al. 2024 (2410.10781): ε = 0.3, {tokens}", "0.074: uniform attention over 64 tokens")
                for name, tokens in (("attention_sink_random", "random tokens"), ("attention_sink_repeated", "one token repeated"))
            ),
            *(
                Rule(name, name, 0.5, "house default: in half of the passages", "0: uniform attention over 64 tokens")
                for name in ("later_sink_alpha_n", "later_sink_absolute", "later_sink_uniform")
            ),
            Rule(
                "no_op",
                "no_op",
                0.9,
                "reconstruction after Bondarenko et al. 2023 (2306.12929): > 90% of the mass on delimiters; an update below 10% is a house default",
                "0: uniform attention, equal values",
            ),
            Rule(
                "user_attention",
                "user_attention",
                0.6,
                "Wang et al. 2024 (2411.02688): 0.6 for the largest head of a layer at each token; here for a head's mean",
                "uniform attention",
            ),
            Rule("local", "local", 0.9, "house default", "uniform attention"),
            Rule("streaming", "streaming", 0.95, "house default: at most 5% of the mass is lost", "uniform attention"),
            Rule("diffuse", "entropy", 0.8, "house default: 80% of a uniform head's entropy", "0: attention to one token"),
        )
    }
)
"""Every threshold of the project, each with its source and with what a random head gets."""


def rules_with(changes: Iterable[str]) -> dict[str, Rule]:
    """`RULES` with some values changed, from texts such as `retrieval=0.2`. Raises `InputError` for an unknown rule or no number."""
    rules = dict(RULES)
    for change in changes:
        name, _, value = change.partition("=")
        if name not in rules:
            raise unknown("rule", name, rules)
        try:
            number = float(value)
        except ValueError as error:
            raise InputError(f"a rule is changed as in {name}=0.2, not {change!r}") from error
        rules[name] = replace(rules[name], value=number, source=f"set by the user (default {rules[name].value:g})")
    return rules
