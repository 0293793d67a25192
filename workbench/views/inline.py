"""How does a map's script become part of another one? Its function is called `draw` there, and nothing is exported."""

from functools import cache

from workbench.views.canvas import script

EXPORTED = "export default function ("


@cache
def inline(name: str) -> str:
    """The script of a map of `data/`, such as `head_map`, as text that defines `draw`; what stands behind it calls that."""
    before, after = script(name)[0].split(EXPORTED)
    return f"{before}function draw({after}"
