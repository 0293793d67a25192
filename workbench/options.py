"""What may a user change about the prompts? Their own lengths, depths, needles, text and template, for the recipes that have them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.documents import DocumentSearch
from workbench.needles import NeedleTests
from workbench.recipes import NaturalText, Recipe


@dataclass(frozen=True)
class Options:
    """What a user may change about the prompts; None leaves the preset as it is.

    `lengths` (tokens), `depths` (0–1) and `template` concern the needle tests. `needles` is a file that replaces the shipped needles, but not the
    reasoning needles, which need a distractor each. `haystack` replaces the text of every recipe that uses one.
    """

    lengths: tuple[int, ...] | None = None
    depths: tuple[float, ...] | None = None
    needles: Path | None = None
    haystack: Path | None = None
    template: str | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these changes, as far as they concern it."""
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
        return ("lengths", "depths", "template", "haystack", *needles)
    if isinstance(recipe, DocumentSearch):
        return ("haystack", *needles)
    return ("haystack",) if isinstance(recipe, NaturalText) else ()


def _given(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}
