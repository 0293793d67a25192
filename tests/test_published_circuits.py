"""Are the published lists those of their sources, and is another model refused?"""

from dataclasses import replace

import numpy as np
import pytest

from workbench.circuits.published import STATUS, compare, listing, published
from workbench.errors import InputError
from workbench.heads import Head, ModelCard, Shape

GPT2 = ModelCard("openai-community/gpt2", "openai-community/gpt2", "0" * 16, Shape(12, 12, 12, 64, 768), None)


@pytest.mark.parametrize("known", listing(), ids=lambda known: known.name)
def test_every_list_is_well_formed(known):
    assert known.status in STATUS
    assert known.source
    assert len(set(known.members)) == len(known.members) == known.truth_LH.sum() > 0
    assert not set(known.members) & set(known.unclear)
    assert known.truth_LH.shape == (known.layers, known.heads)
    assert published(known.name) is known
    assert all(known.class_of(head) in known.classes for head in known.members)


def test_sizes_are_those_of_the_papers():
    sizes = {name: len(published(name).members) for name in ("ioi", "ioi naive", "greater-than", "docstring", "docstring codes", "acronyms")}
    assert sizes == {"ioi": 26, "ioi naive": 13, "greater-than": 9, "docstring": 6, "docstring codes": 6, "acronyms": 8}
    assert set(published("ioi naive").members) < set(published("ioi").members)
    assert published("ioi").class_of(Head(10, 7)) == "negative name mover"
    assert published("ioi").class_of(Head(7, 1)) is None


def test_conflicting_lists_differ_where_their_caveats_say():
    ours, authors = (set(published(name).members) for name in ("greater-than", "greater-than authors"))
    assert (ours - authors, authors - ours) == ({Head(6, 1)}, {Head(8, 8), Head(5, 1)})
    assert "6.1" in published("greater-than authors").caveats
    ours, codes = (set(published(name).members) for name in ("docstring", "docstring codes"))
    assert (ours - codes, codes - ours) == ({Head(1, 2)}, {Head(1, 0)})


def test_only_the_model_of_the_list_is_compared():
    known = published("ioi")
    known.check(GPT2)
    known.check(replace(GPT2, name="gpt2", origin="/models/gpt2/"))
    for other in (replace(GPT2, name="distilgpt2", origin="distilgpt2"), replace(GPT2, shape=Shape(24, 16, 16, 64, 1024))):
        with pytest.raises(InputError, match="'ioi' is one of openai-community/gpt2"):
            known.check(other)


def test_a_ranking_is_judged_with_and_without_unclear_heads():
    known = published("ioi")
    score_LH = -known.truth_LH.astype(float)  # that a head hurts counts as well
    assert compare(known, GPT2, score_LH).whole.auroc == 1
    score_LH[known.unclear_LH] = 2
    found = compare(known, GPT2, score_LH)
    assert found.clear.auroc == found.clear.average_precision == 1
    assert found.whole.average_precision < 0.9
    assert found.whole.chance == pytest.approx(26 / 144)
    assert found.clear.chance == pytest.approx(26 / 136)
    np.testing.assert_array_equal(known.unclear_LH.sum(), 8)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"unknown published circuit 'iou'; there are: .*docstring.*ioi"):
        published("iou")
