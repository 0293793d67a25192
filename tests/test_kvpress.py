"""Does kvpress read what we write for it? Its own loader, given our files in place of those that it would fetch."""

import importlib
import json
import sys
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from workbench import choosing, tiny
from workbench.formats import Export, write
from workbench.labels import HeadLabels

NAME = "meta-llama/Meta-Llama-3.1-8B-Instruct"
"""A name that the loader knows; it has no way to be given a folder."""


@pytest.fixture
def duo_attention_press(monkeypatch):
    """kvpress's module, imported without the rest of the package, which asks for an older transformers."""
    try:
        place = distribution("kvpress").locate_file("kvpress")
    except PackageNotFoundError:
        pytest.skip("its loader is what is tested, and it is not installed: pip install --no-deps kvpress, as the Makefile does")
    for name, path in {"kvpress": place, "kvpress.presses": place / "presses"}.items():
        package = ModuleType(name)
        package.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, package)
    yield importlib.import_module("kvpress.presses.duo_attention_press")
    for name in [name for name in sys.modules if name.startswith("kvpress")]:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_kvpress_prunes_the_heads_that_our_policy_streams(tmp_path, monkeypatch, duo_attention_press):
    model = tiny.random_model("llama")
    score = np.random.default_rng(0).random((model.shape.n_layers, model.shape.n_heads))
    labels = HeadLabels(model.card, {}, {"retrieval": score})
    write(labels, tmp_path, "duo", Export(probe="retrieval", sink=16, recent=64))
    asked = []

    def get(url):
        asked.append(url)
        text = (tmp_path / url.rpartition("/")[2]).read_text()
        return SimpleNamespace(text=text, json=lambda: json.loads(text))

    monkeypatch.setattr(duo_attention_press.requests, "get", get)
    duo_attention_press.cache.clear()
    press = duo_attention_press.DuoAttentionPress(head_compression_ratio=0.5)
    press.post_init_from_model(SimpleNamespace(config=SimpleNamespace(name_or_path=NAME), device="cpu"))
    assert len(asked) == 2
    assert (press.sink_size, press.recent_size) == (16, 64)
    policy = choosing.by_budget(model.card, model.shape.to_kv(score), 0.5)
    assert (press.streaming_mask.numpy() == ~policy.full_LG).all()
