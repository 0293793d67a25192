"""What may a user change about the prompts? Their length, and depths, needles, text and template, for the recipes that have them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.documents import DocumentSearch
from workbench.errors import InputError
from workbench.needles import NeedleTests
from workbench.recipes import NaturalText, RandomTokens, Recipe, RepeatedTokens

SHORTEST = 128
"""The shortest --length: rows that see more than the streaming probe's sinks and window must be left."""


@dataclass(frozen=True)
class Options:
    """What a user may change about the prompts; None leaves the preset as it is.

    `lengths` (tokens), `depths` (0–1) and `template` concern the needle tests. `needles` is a file that replaces the shipped needles, but not the
    reasoning needles, which need a distractor each. `haystack` replaces the text of every recipe that uses one. `length` (tokens) is that of every
    prompt but those of the document search; the numbers of prompts shrink as they grow. It excludes `lengths`.
    """

    length: int | None = None

    lengths: tuple[int, ...] | None = None
    depths: tuple[float, ...] | None = None
    needles: Path | None = None
    haystack: Path | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        if self.length is not None and (self.length < SHORTEST or self.lengths is not None):
            raise InputError(
                f"--length is at least {SHORTEST} tokens, for prompts of every kind; --lengths are those of the needle tests alone. Give one of them"
            )

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these changes, as far as they concern it."""
        if self.length is not None and isinstance(recipe, (NeedleTests, NaturalText, RandomTokens, RepeatedTokens)):
            recipe = recipe.at_length(self.length)
        needles = self.needles if "needles" in concerned(recipe) else None
        if isinstance(recipe, NeedleTests):
            return replace(recipe, **_given(lengths_=self.lengths, depths=self.depths, template=self.template, haystack=self.haystack, needles=needles))
        if isinstance(recipe, DocumentSearch):
            return replace(recipe, **_given(haystack=self.haystack, needles=needles))
        return replace(recipe, **_given(text=self.haystack)) if isinstance(recipe, NaturalText) else recipe


def concerned(recipe: Recipe | None) -> tuple[str, ...]:
    """The options that a recipe listens to."""
    needles = ("needles",) if getattr(recipe, "needles", None) == "needles" else ()
    if isinstance(recipe, NeedleTests):
        return ("length", "lengths", "depths", "template", "haystack", *needles)
    if isinstance(recipe, DocumentSearch):
        return ("haystack", *needles)
    return ("length", "haystack") if isinstance(recipe, NaturalText) else ("length",) if isinstance(recipe, (RandomTokens, RepeatedTokens)) else ()


def _given(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}
