"""What does the site say of a probe? A section with its question, its definition, its null and its rules; and one line of a table."""

import re
from collections.abc import Iterable

from pages.ideal_heads import drawing
from pages.markdown import WIDE, after_first_line, code, language, link, source, table, written
from workbench.probes import PRESETS, PROBES, Probe
from workbench.rules import RULES, Rule, rule_text

NUMBER = r"−?\d+(?:[/.]\d+)?(?: \([^)]*\))?"
RANGE = re.compile(rf"{NUMBER}(?:–| to ){NUMBER}|0 or 1 for each sample|At most 1")
"""How a docstring says what a score can be."""

OTHERS = "explanation/scores/others.md"
"""The page of the probes that no page of a family explains."""

MARKER = re.compile(r"^<!-- probe: (\w+) -->$", re.MULTILINE)


def range_of(probe: Probe) -> str:
    """What a probe's score can be, as its docstring says. Raises `ValueError` for one that does not say it."""
    if (said := RANGE.search(after_first_line(probe.about))) is None:
        raise ValueError(f"the docstring of {probe.name} does not say what its score can be, such as 0–1")
    return said[0]


def rules_of(probe: Probe) -> list[Rule]:
    """The rules that label by a probe's score."""
    return [rule for rule in RULES.values() if rule.probe == probe.name]


def section(probe: Probe, level: int = 2) -> str:
    """All about a probe, under a heading of that level."""
    facts = [
        ("what is scored", "the weights, without any prompt" if probe.evidence == "weights" else "attention to prompts"),
        ("range", range_of(probe)),
        ("null", probe.null),
        *(fact for rule in rules_of(probe) for fact in _facts(rule)),
        *([] if rules_of(probe) else [("label", "none: no rule labels heads by this score")]),
        *((f"prompts, {preset}", _linked(probe.recipe(preset), defaults=True)) for preset in PRESETS if probe.recipes),
        *([("reads", ", ".join(_linked(read) for read in probe.reads))] if probe.reads else []),
        ("source", probe.citation),
        *([("its ideal head scores a half or more on", ", ".join(named(name) for name in probe.also))] if probe.also else []),
    ]
    parts = [
        f"{'#' * level} {code(probe.name)} {{ #probe-{probe.name} }}",
        f"**{probe.question}**",
        after_first_line(probe.about),
        drawing(probe),
        table(("", ""), facts),
        f'??? quote "The code of the score"\n\n{_indented(language("python", source(probe.score)))}',
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(rule: Rule) -> list[tuple[str, str]]:
    return [
        (f"label {code(rule.label)}", f"{rule_text(rule)}, and above the head's own null"),
        ("source of the rule", rule.source),
        ("what a random head gets", rule.chance),
    ]


def _linked(value: object, *, defaults: bool = False) -> str:
    """A read or a recipe as the call that makes it, with a link to what it is."""
    return link(type(value), written(value, defaults))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def named(name: str) -> str:
    """A link to the section of a probe, wherever it is."""
    return f"[{code(name)}][probe-{name}]"


def left_over(texts: Iterable[str]) -> list[str]:
    """The probes that no page explains. Raises `ValueError` for a page that explains one which is not there, and for one explained twice."""
    explained = [name for text in texts for name in MARKER.findall(text)]
    if wrong := [name for name in explained if name not in PROBES or explained.count(name) > 1]:
        raise ValueError(f"a page explains a probe that is not there, or one that another page explains: {', '.join(sorted(set(wrong)))}")
    return [name for name in PROBES if name not in explained]


def others(names: Iterable[str]) -> str:
    """The page of the probes that no page of a family explains."""
    return "\n\n".join(["# Other scores", "They belong to none of the families.", *(section(PROBES[name]) for name in names)])


def reference() -> str:
    """The table of all probes."""
    rows = [
        (
            named(one.name),
            one.question,
            range_of(one),
            one.evidence,
            one.null,
            one.citation,
            "; ".join(f"{code(rule.label)}: {rule_text(rule)}" for rule in rules_of(one)),
        )
        for one in PROBES.values()
    ]
    columns = ("probe", "question", "range", "evidence", "null", "source", "labels")
    intro = "The name leads to the explanation of the score, with its definition and its code. `workbench probes NAME` tells the same in the terminal."
    return f"{WIDE}# Probes\n\n{intro}\n\n{table(columns, rows)}\n"
