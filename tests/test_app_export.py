"""Do the options of an export stand in the address, and is what is written what they say?"""

import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

from dashboard import opened

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")


def test_the_options_of_an_export_are_an_address():
    usual = opened(view="Export", format="duo")
    assert not usual.warning
    options = {box.key: box.value for box in (*usual.selectbox, *usual.number_input)}
    assert {"reduction": "max", "sink": None, "recent": None}.items() <= options.items()
    app = opened(view="Export", format="duo", reduction="mean", sink="4", recent="128")
    assert not app.error
    assert not app.warning
    options = {box.key: box.value for box in (*app.selectbox, *app.number_input)}
    assert {"reduction": "mean", "sink": 4, "recent": 128}.items() <= options.items()


def test_the_label_of_an_export_is_an_address():
    app = opened(view="Export", format="qrhead", label="induction")
    assert [box.value for box in app.selectbox if box.key == "label"] == ["induction"]
    assert not app.warning
