"""Do the pages on successor heads, circuits, efficient attention and runs show what a file calls its model and scores as it is, and fetch nothing for it?"""

import numpy as np
import pytest
from dashboard import opened

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.rules import RULES

pytestmark = pytest.mark.usefixtures("nothing_is_remembered", "root")
PICTURE = "![x](http://example.invalid/a.png)"
CIRCUITS, EFFICIENT = "app_pages/circuits.py", "app_pages/efficient.py"
ADDRESSES = [
    ("app_pages/successor.py", {}),
    (CIRCUITS, {}),
    *((CIRCUITS, {"panel": panel}) for panel in ("Patching", "Codes", "Methods", "Memory or context")),
    *((EFFICIENT, {"by": "budget", "ranking": PICTURE, "part": part}) for part in ("KV memory", "Quality", "Export")),
    ("app_pages/runs.py", {}),
]


@pytest.mark.parametrize(("page", "query"), ADDRESSES)
def test_what_a_labels_file_holds_is_repeated_as_it_is_and_fetches_nothing(tmp_path, monkeypatch, page, query):
    card, shown = ModelCard(PICTURE, PICTURE, "", Shape(2, 3, 1, 8, 24)), np.eye(2, 3)
    HeadLabels(card, {Head(0, 0): ("retrieval",)}, {"successor": shown, PICTURE: shown}, {"retrieval": RULES["retrieval"]}).save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    app = opened(page, **query)
    said = [element.value for element in (*app.markdown, *app.caption, *app.warning, *app.error, *app.info, *app.success, *app.subheader)]
    assert any("example.invalid" in text for text in said)
    assert not [text for text in (*said, *(button.label for button in app.download_button)) if "![" in text]
