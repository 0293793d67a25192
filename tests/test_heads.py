"""Does every name of a head mean the head it should, and every query head read the right KV head?"""

import numpy as np
import pytest

from workbench.errors import InputError, unknown
from workbench.heads import REDUCTIONS, Head, ModelCard, Shape

SHAPE = Shape(n_layers=2, n_heads=6, n_kv_heads=2, d_head=8, d_model=48)


@pytest.mark.parametrize(
    "text",
    [
        *("L10H7", "10-7", "10.7", "A10.7", "a10.h7", "a10.h7<q>", "a10.h7<k>", "a10.h7<v>", "[10, 7]", "(10, 7)", "[10,7]", "( 10 , 7 )"),
        *("blocks.10.attn.hook_result[:, :, 7]", "blocks.10.attn.hook_z[:, :, 7]", " L10H7\n", Head(10, 7), (10, 7), [10, 7]),
    ],
)
def test_every_name_of_a_head_is_read(text):
    assert Head.parse(text) == Head(10, 7)


@pytest.mark.parametrize(
    "text", ["", "L10", "H7", "10", "L10H7x", "xL10H7", "l10h7", "A10-7", "a10.h7<o>", "-1-7", "10-7-3", "1e1-7", "blocks.10.attn[:, :, 7]", None, 7]
)
def test_what_names_no_head_is_refused_with_the_accepted_forms(text):
    with pytest.raises(InputError, match=r"names no head; write L10H7, 10-7, 10\.7, A10\.7, a10\.h7 or \[10, 7\]") as caught:
        Head.parse(text)
    assert repr(text) in str(caught.value)


def test_a_head_prints_sorts_and_is_a_key():
    assert str(Head(18, 7)) == "L18H7"
    assert sorted([Head(1, 0), Head(0, 5), Head(0, 10), Head(0, 2)]) == [Head(0, 2), Head(0, 5), Head(0, 10), Head(1, 0)]
    assert {Head(1, 2): "here"}[Head.parse("1-2")] == "here"
    assert Head(0, 0) == Head.parse("L0H0")


@pytest.mark.parametrize(("layer", "index"), [(-1, 0), (0, -1)])
def test_heads_start_at_zero(layer, index):
    with pytest.raises(InputError, match=f"start at 0, got layer {layer}, index {index}"):
        Head(layer, index)


def test_heads_come_layer_by_layer():
    heads = list(SHAPE.heads())
    assert len(heads) == 12
    assert heads == sorted(heads)
    assert heads[5:7] == [Head(0, 5), Head(1, 0)]


def test_query_head_h_reads_kv_head_h_over_group():
    assert SHAPE.group == 3
    assert [SHAPE.kv_head(Head(1, index)) for index in range(6)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("head", [Head(2, 0), Head(0, 6)])
def test_a_head_that_the_model_lacks_is_refused(head):
    for refuse in (SHAPE.check, SHAPE.kv_head):
        with pytest.raises(InputError, match=f"no head {head} in a model of 2 layers × 6 query heads"):
            refuse(head)
    SHAPE.check(Head(1, 5))


@pytest.mark.parametrize("sizes", [(0, 4, 2, 8, 32), (2, 4, 3, 8, 32), (2, 0, 1, 8, 32), (2, 4, 0, 8, 32), (2, 4, 2, 0, 32), (2, 4, 2, 8, 0), (2, 2, 4, 8, 32)])
def test_impossible_shapes_are_refused(sizes):
    with pytest.raises(InputError, match="not the shape of an attention model"):
        Shape(*sizes)


def test_the_smallest_shape_is_possible():
    assert Shape(1, 1, 1, 1, 1).group == 1


SCORE_LH = np.array([[1.0, 5.0, 3.0, 0.0, 0.0, 6.0], [-1.0, -2.0, -3.0, 2.0, 2.0, 2.0]])


@pytest.mark.parametrize(
    ("reduction", "score_LG"),
    [("max", [[5, 6], [-1, 2]]), ("mean", [[3, 2], [-2, 2]]), ("min", [[1, 0], [-3, 2]])],
)
def test_a_kv_head_gets_its_groups_number(reduction, score_LG):
    np.testing.assert_array_equal(SHAPE.to_kv(SCORE_LH, reduction), score_LG)


def test_max_is_the_default_and_others_are_listed():
    assert set(REDUCTIONS) == {"max", "mean", "min"}
    np.testing.assert_array_equal(SHAPE.to_kv(SCORE_LH), SHAPE.to_kv(SCORE_LH, "max"))
    with pytest.raises(InputError, match=r"unknown reduction 'sum'; .*max, mean, min"):
        SHAPE.to_kv(SCORE_LH, "sum")


def test_query_heads_get_their_kv_heads_number_and_it_comes_back():
    score_LG = np.array([[0.5, 1.5], [2.5, 3.5]])
    score_LH = SHAPE.to_query(score_LG)
    np.testing.assert_array_equal(score_LH, [[0.5, 0.5, 0.5, 1.5, 1.5, 1.5], [2.5, 2.5, 2.5, 3.5, 3.5, 3.5]])
    for reduction in REDUCTIONS:
        np.testing.assert_allclose(SHAPE.to_kv(score_LH, reduction), score_LG)
    assert SHAPE.to_query(score_LG > 1).tolist()[0] == [False] * 3 + [True] * 3


def test_a_card_comes_back_from_plain_data_even_with_sizes_such_as_4_0():
    shape = {"n_layers": 2.0, "n_heads": 6.0, "n_kv_heads": 2, "d_head": 8, "d_model": 48}
    card = ModelCard.from_json({"name": "m", "origin": "o", "fingerprint": "f", "shape": shape, "revision": "r"})
    assert card == ModelCard("m", "o", "f", SHAPE, "r")
    assert [type(size) for size in (card.shape.n_layers, card.shape.n_heads)] == [int, int]
    assert ModelCard("m", "o", "", SHAPE).revision is None


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    error = unknown("probe", "x", ["b", "a", 3])
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert str(error) == "unknown probe 'x'; there are: 3, a, b"
