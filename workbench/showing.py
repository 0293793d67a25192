"""How does a result show itself in a notebook? By the views, which stand above it and are loaded when a notebook first asks."""

from importlib import import_module

VIEWS = "workbench.views.notebook"
"""The module whose `small_page` draws; named and not imported, as results are below views, and most who make them never draw."""


class Shown:
    """A result that a notebook shows as a small page."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return import_module(VIEWS).small_page(self)
