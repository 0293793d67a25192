"""Is it said what an address asks for and cannot have, and nothing said of an address that is heeded?"""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

from chosen import literal
from dashboard import opened

from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.rules import RULES

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
LONG = "app_pages/long_context.py"


def warned(app):
    return [warning.value for warning in app.warning]


@pytest.mark.parametrize(
    ("page", "query", "said"),
    [
        (None, {"probe": "nonsense"}, "The address asks for `probe=nonsense`, which cannot be had here; `retrieval` stands there."),
        (None, {"view": "Nope"}, "The address asks for `view=Nope`, which cannot be had here; `Distribution` stands there."),
        ("app_pages/one_head.py", {"head": "L99H9"}, "The address asks for `head=L99H9`, which cannot be had here; `L1H4` stands there."),
        (LONG, {"length": "9999999"}, "The address asks for `length=9999999`, which cannot be had here; `8192` stands there."),
        (LONG, {"depth": "7"}, "The address asks for `depth=7`, which cannot be had here; `0.5` stands there."),
        (LONG, {"source": "`![x](http://a.b)"}, "The address asks for `source='![x](http://a.b)`, which cannot be had here; `Needle test` stands there."),
    ],
)
def test_what_is_put_aside_is_said(request, root, page, query, said):
    if page:
        request.getfixturevalue("tiny")
    app = opened(page, **query)
    assert said in warned(app)
    app.run()
    assert said not in warned(app)  # once, when it is opened


@pytest.mark.parametrize(
    ("page", "query"),
    [
        (None, {"probe": "induction", "view": "Table"}),
        (None, {"probe": "retrieval", "view": "Distribution"}),  # the usual ones, which the address need not hold
        (None, {"unknown": "1"}),
        (LONG, {"length": "8192.0", "depth": "0.50", "place": "0"}),
        ("app_pages/sinks.py", {"part": "Calibrated heads", "score": "no_op"}),
    ],
)
def test_what_is_heeded_needs_no_word(root, page, query):
    assert not warned(opened(page, **query))


def test_a_choice_on_the_page_is_no_loss(root):
    app = opened(probe="induction")
    app.selectbox(key="probe").set_value("copying").run()
    assert not warned(app)
    app.selectbox(key="probe").set_value("retrieval").run()
    assert not warned(app)


def test_a_zoom_that_is_no_part_of_the_map_is_said(root):
    (warning,) = warned(opened(LONG, zoom="5:9000,0:4"))
    assert warning == "The zoom of the address, `5:9000,0:4`, is no part of this map of 8,188 tokens: all of it is shown."
    assert not warned(opened(LONG, zoom="5:90,0:4"))


PICTURE = "![x](http://example.invalid/a.png)"


@pytest.mark.parametrize(
    ("page", "query"),
    [
        ("app_pages/needle_test.py", {"job": PICTURE}),
        ("app_pages/needle_test.py", {"ablate": PICTURE}),
        ("app_pages/runs.py", {"job": PICTURE}),
        (LONG, {"source": "Own text", "file": "![](//a.b/c.png)"}),
    ],
)
def test_what_an_address_holds_is_repeated_as_it_is_and_fetches_nothing(root, page, query):
    app = opened(page, **query)
    said = [element.value for element in (*app.warning, *app.error, *app.info, *app.caption)]
    assert any(r"!\[" in text for text in said)
    assert not any("![" in text for text in said)


def test_what_is_shown_as_it_is_keeps_what_stands_in_backticks():
    assert literal("say `a[0]` or [b](c) for $1 *now*") == r"say `a[0]` or \[b\](c) for \$1 \*now\*"
    assert literal(f"`\n\n{PICTURE}`") == "`\n\n" + r"!\[x\](http://example.invalid/a.png)`"  # no code reaches over a paragraph


def test_what_a_page_says_itself_is_not_said_twice(root):
    app = opened("app_pages/runs.py", run="nothing")
    assert len([text for text in warned(app) if "nothing" in text]) == 1


@pytest.mark.parametrize("page", [None, "app_pages/one_head.py", "app_pages/needle_test.py", "app_pages/sinks.py", LONG])
def test_what_a_labels_file_holds_is_repeated_as_it_is_and_fetches_nothing(root, tmp_path, monkeypatch, page):
    rule = replace(RULES["attention_sink"], label=PICTURE, source=PICTURE, chance=PICTURE)
    card = ModelCard(PICTURE, PICTURE, "", Shape(2, 3, 1, 8, 24))
    HeadLabels(card, {Head(0, 0): (PICTURE,)}, {"attention_sink": np.eye(2, 3)}, {PICTURE: rule}).save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    app = opened(page)
    said = [element.value for element in (*app.markdown, *app.caption, *app.warning, *app.error, *app.info)]
    assert any("example.invalid" in text for text in said)
    assert not [text for text in (*said, *(button.label for button in app.download_button)) if "![" in text]
