"""What do the tests of the dashboard's pages share? The dashboard as Streamlit's AppTest runs it, on the bundled labels or on a random model."""

from pathlib import Path

import numpy as np
import pytest

APP = Path(__file__).resolve().parent.parent / "app"


@pytest.fixture
def nothing_is_remembered(monkeypatch):
    """No page has been opened before, and nothing is set in the environment."""
    import streamlit as st

    st.cache_resource.clear()
    st.cache_data.clear()
    for name in ("WORKBENCH_APP_LABELS", "WORKBENCH_APP_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The dashboard of a random model, which is loaded in place of any other."""
    # imported here: what conftest imports escapes the checks of shapes
    from workbench.heads import Head
    from workbench.labels import HeadLabels
    from workbench.rules import RULES
    from workbench.tiny import random_model

    model = random_model("llama")
    scores = {name: np.random.default_rng(seed).random((2, 6)) for seed, name in enumerate(("retrieval", "induction"))}
    kinds = {Head(1, 4): ("induction", "retrieval"), Head(0, 2): ("induction",)}
    HeadLabels(model.card, kinds, scores, {name: RULES[name] for name in scores}).save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    monkeypatch.setenv("WORKBENCH_APP_MODEL", "tiny")
    monkeypatch.setattr("workbench.models.load", lambda name: {"tiny": model}[name])
    return model


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A runs folder, without jobs that go on in the end."""
    from workbench import jobs

    folder = tmp_path / "runs"
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder))
    yield folder
    for left in jobs.find(folder):
        left.cancel()


def opened(page=None, **query):
    """The dashboard at an address: a page's file in `app/` (Heads by default) and its query; it must not raise."""
    import streamlit.testing.v1

    app = streamlit.testing.v1.AppTest.from_file(str(APP / "main.py"), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    if page:
        app.switch_page(page)
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
    assert not app.exception
    return app


def words(app):
    """All that the page says in plain text."""
    return " ".join(element.value for element in (*app.title, *app.markdown, *app.caption, *app.error, *app.info, *app.warning))
