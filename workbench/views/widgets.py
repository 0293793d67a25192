"""How are maps clicked in a notebook? By the dashboard's own scripts, as an anywidget: Jupyter, VS Code, Colab and marimo show it."""

from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.views.canvas import head_canvas, script, token_canvas
from workbench.views.heads import panel
from workbench.views.inline import inline

if TYPE_CHECKING:
    from workbench.looking import Look

NO_ANYWIDGET = "a map to click in a notebook needs anywidget: pip install 'attention-head-workbench[notebook]'"


def head_widget(labels: HeadLabels, probe: str | None = None, chosen: Head | None = None) -> Any:
    """The layer × head map of a probe (see `views.panel`); its `head` is the name of the head that was clicked last, to `observe`, empty before.

    Raises `InputError` for an unknown probe, and where anywidget is not installed.
    """
    return _widget("head_map", "head")(data=head_canvas(labels, panel(labels, probe), chosen))


def token_widget(seen: "Look", pinned: int | None = None) -> Any:
    """A text shaded by the attention of one head (`looking.look`); its `row` is the token that was pinned last, −1 for none. Raises `InputError` as above."""
    made = _widget("token_map", "row")(data=token_canvas(seen.head, seen.tokens, seen.pattern_QK, seen.received_K, pinned))
    made.row = -1 if pinned is None else pinned
    return made


@cache
def module(name: str) -> str:
    """The script of a map as the module that anywidget loads."""
    return inline(name) + files("workbench").joinpath("data/widget.js").read_text(encoding="utf-8")


@cache
def _widget(name: str, told: str) -> Any:
    """The class of a map's widget, whose trait `told` is what its script tells."""
    if find_spec("anywidget") is None:
        raise InputError(NO_ANYWIDGET)
    import anywidget
    import traitlets

    kinds = {"head": traitlets.Unicode(""), "row": traitlets.Int(-1)}
    traits = {"data": traitlets.Bytes().tag(sync=True), told: kinds[told].tag(sync=True)}
    return type(name, (anywidget.AnyWidget,), {"_esm": module(name), "_css": script(name)[1], **traits})
