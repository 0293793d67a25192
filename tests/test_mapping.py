"""Does the map of one head show its probabilities, pooled and exact, as numbers, as a figure and on the command line?"""

import json

import numpy as np
import pytest
from eager import eager, random_prompts, tiny
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import InputError
from workbench.heads import Head
from workbench.mapping import attention_map
from workbench.views import attention_figure

PROMPT = random_prompts(1, 70)


def pattern(architecture, head):
    return eager(tiny(architecture), PROMPT.ids_BT).pattern[0, head.layer, head.index]


def pooled(pattern_QK, block, reducer):
    """Block by block, the last ones partial."""
    places = range(0, 70, block)
    reduce = {"max": np.max, "sum": np.sum}[reducer]
    return np.array([[reduce(pattern_QK[q : q + block, k : k + block]) for k in places] for q in places])


@pytest.mark.parametrize(("cells", "block"), [(70, 1), (1024, 1), (35, 2), (24, 3), (4, 32), (1, 80)])
@pytest.mark.parametrize("reducer", ["max", "sum"])
@pytest.mark.parametrize("options", [{}, {"chunk": 33}, {"implementation": "reference"}], ids=["torch", "chunked", "reference"])
def test_a_map_is_the_pattern_in_the_smallest_blocks_that_fit(cells, block, reducer, options):
    """From 16 tokens on, blocks are multiples of 16, which the kernels make."""
    head = Head(1, 3)
    shown = attention_map(tiny("llama"), PROMPT, head, cells=cells, reducer=reducer, **options)
    np.testing.assert_allclose(shown.value_UV, pooled(pattern("llama", head), block, reducer), atol=2e-5)
    assert (shown.block, shown.exact, shown.queries, shown.keys, shown.tokens) == (block, block == 1, (0, 70), (0, 70), 70)
    assert shown.provenance["layers"] == [1]


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "gemma2"])
@pytest.mark.parametrize("chunk", [None, 19])
def test_a_part_of_a_map_is_exact_down_to_single_tokens(architecture, chunk):
    shown = attention_map(tiny(architecture), PROMPT, "L0H1", queries=(33, 61), keys=(20, 49), cells=29, chunk=chunk)
    assert shown.exact
    np.testing.assert_allclose(shown.value_UV, pattern(architecture, Head(0, 1))[33:61, 20:49], atol=2e-5)
    halved = attention_map(tiny(architecture), PROMPT, "L0H1", queries=(33, 61), keys=(20, 49), cells=15, chunk=chunk)
    assert (halved.block, halved.value_UV.shape) == (2, (14, 15))
    assert halved.value_UV[0, 0] == shown.value_UV[:2, :2].max()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queries": (0, 71)}, "the tokens 0 to 71 leave the prompt of 70"),
        ({"keys": (5, 5)}, r"keys are a range \[begin, end\) of tokens, got \(5, 5\)"),
        ({"head": "L9H0"}, "L9H0"),
        ({"cells": 0}, "in at least one cell"),
        ({"reducer": "mean"}, "max, sum"),
    ],
)
def test_what_is_not_there_is_not_shown(given, said):
    with pytest.raises(InputError, match=said):
        attention_map(tiny("llama"), PROMPT, **{"head": "L0H0", **given})
    with pytest.raises(InputError, match="a map shows one prompt"):
        attention_map(tiny("llama"), random_prompts(2, 70), "L0H0")


def test_the_figure_shows_the_numbers_and_says_what_they_are():
    shown = attention_map(tiny("llama"), PROMPT, "L1H3", cells=35)
    (heat,) = attention_figure(shown, "tiny").data
    future = np.arange(0, 70, 2)[None, :] > np.arange(1, 71, 2)[:, None]
    np.testing.assert_array_equal(np.isnan(heat.customdata), future)
    np.testing.assert_allclose(heat.customdata[~future], shown.value_UV[~future], rtol=1e-6)
    np.testing.assert_allclose(heat.z[~future], np.clip(np.log10(shown.value_UV[~future]), -6, None), atol=1e-5)
    assert heat.x.tolist() == heat.y.tolist() == list(range(0, 70, 2))
    figure = attention_figure(shown, "tiny")
    assert figure.layout.title.text == "tiny L1H3: attention of queries 0–69 to keys 0–69, largest in blocks of 2 × 2 tokens"
    assert "blocks" not in attention_figure(attention_map(tiny("llama"), PROMPT, "L1H3"), "tiny").layout.title.text
    assert figure.layout.meta["facts"]["cells"] == "max over blocks of 2 × 2 tokens"


def test_the_command_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.models.load", lambda name, **_: tiny("llama"))
    (tmp_path / "text.txt").write_text("abc def " * 12, encoding="utf-8")
    common = ["map", "--text", str(tmp_path / "text.txt"), "--head", "L1H3", "--out", str(tmp_path / "map.html")]
    result = CliRunner().invoke(app, [*common, "--queries", "10:30", "--keys", "0:20", "--tokens", "60", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert {name: said[name] for name in ("head", "tokens", "block", "exact", "cells", "implementation")} == {
        "head": "L1H3",
        "tokens": 60,
        "block": 1,
        "exact": True,
        "cells": [20, 20],
        "implementation": "torch",
    }
    assert "exact probabilities" in (tmp_path / "map.html").read_text(encoding="utf-8")
    for wrong, why in ((["--queries", "30:10"], "--queries takes a range"), (["--tokens", "1000"], "--tokens takes 1 to 97")):
        result = CliRunner().invoke(app, [*common, *wrong])
        assert result.exit_code == 2
        assert why in result.output
