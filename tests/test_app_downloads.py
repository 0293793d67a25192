"""Can what a page shows be taken home, as picture, page and table, with nothing lost and nothing made before it is asked for?"""

import io
import json

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

import chosen
from dashboard import opened, words

from workbench import views
from workbench.heads import ModelCard, Shape
from workbench.labels import HeadLabels

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")


def saved(app):
    """The names of the files that a page offers."""
    return {button.label for button in app.download_button}


def page_of_a_chart(ending):
    """A page with one figure and its numbers, and what its downloads give when they are asked for."""
    import downloads
    import pandas as pd
    import plotly.graph_objects as go
    import streamlit as st

    asked = {}
    real = st.download_button
    st.download_button = lambda label, content, *rest, **how: asked.update({label: content}) or real(label, content, *rest, **how)
    try:
        figure = go.Figure(go.Bar(x=[1, 2], y=[3, 4]))
        downloads.chart(figure, "bars", "Two bars", pd.DataFrame({"x": [1, 2], "y": [3.5, 4.5]}))
    finally:
        st.download_button = real
    st.session_state["given"] = {label: content() for label, content in asked.items() if label.endswith(ending)}


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".html"])
def test_a_figure_and_its_numbers_come_as_files(ending):
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_function(page_of_a_chart, kwargs={"ending": ending}, default_timeout=60).run()
    assert not app.exception
    assert saved(app) == {"bars.html", "bars.csv", "bars.parquet"}
    ((label, content),) = app.session_state["given"].items()
    assert label == f"bars{ending}"
    if ending == ".html":
        assert content.startswith(b"<!DOCTYPE html>")
        return
    read = pd.read_csv if ending == ".csv" else pd.read_parquet
    pd.testing.assert_frame_equal(read(io.BytesIO(content)), pd.DataFrame({"x": [1, 2], "y": [3.5, 4.5]}))


def test_the_camera_saves_what_is_chosen():
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_function(page_of_a_chart, kwargs={"ending": "none"}, default_timeout=60).run()
    assert '"format": "png"' in app.get("plotly_chart")[0].proto.config
    app.segmented_control(key="save-bars").set_value("SVG").run()
    assert '"format": "svg"' in app.get("plotly_chart")[0].proto.config
    assert '"filename": "bars"' in app.get("plotly_chart")[0].proto.config


@pytest.mark.parametrize(
    ("view", "names"),
    [
        ("Distribution", {"induction-distribution.html"}),
        ("Agreement", {"agreement.html", "agreement.csv", "agreement.parquet"}),
        ("Table", {"smollm2-135m-heads.csv", "smollm2-135m-heads.parquet"}),
    ],
)
def test_every_view_of_the_heads_can_be_taken_home(view, names):
    assert saved(opened(probe="induction", view=view)) == {"smollm2-135m-induction.svg", "smollm2-135m-induction.html", *names}


def test_nothing_is_made_before_it_is_asked_for(monkeypatch):
    for name in ("figure_bytes", "table_bytes", "panel_picture"):
        monkeypatch.setattr(views, name, lambda *_: pytest.fail("a file was made"))
    for view in ("Distribution", "Table", "Agreement"):
        assert not opened(view=view).error


def test_the_map_is_drawn_with_the_labelled_heads():
    labels = HeadLabels.load(chosen.BUNDLED)
    shown = views.panel(labels, "induction")
    svg = views.panel_picture(labels, shown)
    assert svg.count("<title>") == len(labels.heads("induction"))
    assert all(f"<title>{head}: {labels.scores['induction'][head.layer, head.index]:.3f}; " in svg for head in labels.heads("induction"))


def files(stem, *endings):
    return {f"{stem}{ending}" for ending in endings}


def test_all_of_one_head_can_be_taken_home(tiny):
    app = opened("app_pages/one_head.py", head="L1H4", text="abcabc", ablate="true", match="true", examples="true")
    tables = {name for what in ("scores", "attention", "writes", "matches", "examples") for name in files(f"L1H4-{what}", ".csv", ".parquet")}
    charts = {name for what in ("next", "lost", "adds") for name in files(f"L1H4-{what}", ".html", ".csv", ".parquet")}
    assert saved(app) == tables | charts


def test_the_maps_of_a_needle_test_can_be_taken_home(root):
    report = files("report-totals", ".html", ".csv", ".parquet") | files("report-answers", ".csv", ".parquet")
    assert saved(opened("app_pages/needle_test.py")) == report | {f"report-{variant}.html" for variant in ("full", "without", "control")}


def test_sinks_and_what_calibration_does_can_be_taken_home(tiny):
    app = opened("app_pages/sinks.py", text="abcabcabc")
    assert saved(app) == files("sinks-by-token", ".html", ".csv", ".parquet") | {"sinks-by-head-alpha_n.svg"}
    app = opened("app_pages/sinks.py", part="Calibration on and off", prompt="abcabcabc", calibrate="all heads", look="L1H4")
    assert files("L1H4-attention", ".csv", ".parquet") | {"sinks-found.svg"} <= saved(app)


@pytest.mark.parametrize(("layers", "name"), [(30, "induction-difference.svg"), (3, "induction-second.svg")])
def test_the_map_of_a_second_file_can_be_taken_home(layers, name):
    """That of the difference head by head, or, for a model of another size, its own."""
    shape = Shape(n_layers=layers, n_heads=9, n_kv_heads=3, d_model=576, d_head=64)
    heads = dict.fromkeys(shape.heads(), ())
    second = HeadLabels(ModelCard("second", "here", "", shape), heads, {"induction": np.eye(layers, 9)}, {})
    app = opened(probe="induction", view="Side by side")
    app.file_uploader(key="second_file").upload("second.json", json.dumps(second.to_json()).encode()).run()
    assert not app.exception
    assert {name, "induction-versus.html"} & saved(app) == ({name, "induction-versus.html"} if layers == 30 else {name})


@pytest.mark.parametrize(("trouble", "endings"), [("", (".html", ".png", ".svg")), ("pictures need a browser", (".html",))])
def test_a_long_map_is_drawn_where_this_machine_can(root, monkeypatch, trouble, endings):
    monkeypatch.setattr(views, "no_pictures", lambda: trouble)
    app = opened("app_pages/long_context.py")
    assert {name for name in saved(app) if "-map" in name} == files("smollm2-135m-L17H3-map", *endings)
    assert ("Here pictures need a browser." in words(app)) == bool(trouble)
