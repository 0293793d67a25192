"""Are prompts rectangular, unchangeable, told apart by what a read depends on, and refused where they make no sense?"""

from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import numpy as np
import pytest
from eager import tiny

from workbench.errors import InputError
from workbench.prompts import Prompts, bos, special_ids

IDS = np.array([[5, 6, 7, 8], [9, 9, 3, 4]])
PROMPTS = Prompts(
    IDS,
    spans={"needle": np.array([[1, 3], [0, 4]])},
    rows={"answer": np.array([[3], [2]])},
    match=IDS % 3,
    prefilled=2,
    facts=({"depth": 0.0}, {"depth": 1.0}),
)


def test_sizes():
    assert (PROMPTS.count, PROMPTS.length, PROMPTS.decode_from) == (2, 4, 2)
    assert Prompts(IDS).decode_from == 4
    assert Prompts(IDS, prefilled=0).decode_from == 0


def test_tokens_match_by_their_ids_unless_told_otherwise():
    np.testing.assert_array_equal(Prompts(IDS).match_BT, IDS)
    np.testing.assert_array_equal(PROMPTS.match_BT, IDS % 3)


def test_prompts_cannot_be_changed():
    for array in (PROMPTS.ids_BT, PROMPTS.match_BT, PROMPTS.spans["needle"], PROMPTS.rows["answer"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
    with pytest.raises(TypeError):
        PROMPTS.spans["other"] = np.array([[0, 1]])
    with pytest.raises(FrozenInstanceError):
        PROMPTS.prefilled = 1


def test_prompts_keep_a_copy():
    ids, span = IDS.copy(), np.array([[1, 3], [0, 4]])
    prompts = Prompts(ids, {"needle": span})
    ids[0, 0], span[0, 0] = 99, 0
    assert (prompts.ids_BT[0, 0], prompts.spans["needle"][0, 0]) == (5, 1)


def test_ids_of_any_integer_type_are_the_same_prompts():
    prompts = Prompts(IDS.astype(np.int32))
    assert prompts.ids_BT.dtype == np.int64
    assert prompts.fingerprint == Prompts(IDS).fingerprint


# -------------------------------------------------------------------------------------------------------------------------- places


def test_rows_by_name_and_all_rows():
    np.testing.assert_array_equal(PROMPTS.row_positions("answer"), [[3], [2]])
    np.testing.assert_array_equal(PROMPTS.row_positions(None), [[0, 1, 2, 3]] * 2)


def test_unknown_places_are_refused_with_those_that_exist():
    with pytest.raises(InputError, match="unknown rows 'needle'; there are: answer"):
        PROMPTS.row_positions("needle")
    with pytest.raises(InputError, match="unknown span 'answer'; there are: needle"):
        PROMPTS.span("answer")


@pytest.mark.parametrize("span", [[-1, 2], [2, 5], [2, 2], [3, 2]])
def test_a_span_that_is_empty_or_outside_is_refused(span):
    with pytest.raises(InputError, match=r"span 'x' is empty or leaves the 4 tokens of the prompt: \[\[0, 4\], "):
        Prompts(IDS, {"x": np.array([[0, 4], span])})


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_outside_are_refused(row):
    with pytest.raises(InputError, match="rows 'x' leave the 4 tokens of the prompt"):
        Prompts(IDS, rows={"x": np.array([[0], [row]])})


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_prompts_of_nothing_are_refused(shape):
    with pytest.raises(InputError, match=r"prompts need at least one token each, got ids of shape") as caught:
        Prompts(np.zeros(shape, np.int64))
    assert str(shape) in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- the fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"ids_BT": IDS + 1},
        {"ids_BT": IDS.reshape(1, 8), "spans": {}, "rows": {}, "match": None},
        {"spans": {}},
        {"spans": {"other": PROMPTS.spans["needle"]}},
        {"spans": {"needle": np.array([[1, 3], [1, 4]])}},
        {"rows": {}},
        {"rows": {"other": PROMPTS.rows["answer"]}},
        {"rows": {"answer": np.array([[3], [1]])}},
        {"match": None},
        {"prefilled": 3},
        {"prefilled": None},
    ],
    ids=str,
)
def test_whatever_a_read_depends_on_changes_the_fingerprint(change):
    assert replace(PROMPTS, **change).fingerprint != PROMPTS.fingerprint


def test_the_fingerprint_is_that_of_the_places_in_any_order_and_of_no_facts():
    both = {"a": np.array([[0, 1], [0, 1]]), "b": np.array([[1, 2], [1, 2]])}
    assert Prompts(IDS, both).fingerprint == Prompts(IDS, dict(reversed(both.items())), match=IDS, facts=({}, {})).fingerprint
    assert len(PROMPTS.fingerprint) == 16


def test_one_prompt_of_a_batch_keeps_its_places():
    one = PROMPTS.only(1)
    np.testing.assert_array_equal(one.ids_BT, IDS[1:])
    np.testing.assert_array_equal(one.match_BT, IDS[1:] % 3)
    np.testing.assert_array_equal(one.span("needle"), [[0, 4]])
    np.testing.assert_array_equal(one.row_positions("answer"), [[2]])
    assert (one.prefilled, one.facts) == (2, ({"depth": 1.0},))


# --------------------------------------------------------------------------------------------------------------------------- texts


def test_texts_become_ids_with_what_the_tokenizer_adds():
    model = tiny("llama")
    prompts = Prompts.from_text(model, ["ab", "ba"])
    assert prompts.ids_BT[:, 0].tolist() == [1, 1]
    assert prompts.ids_BT[0, 1:].tolist() == prompts.ids_BT[1, :0:-1].tolist()
    assert prompts.facts == ({"text": "ab"}, {"text": "ba"})
    np.testing.assert_array_equal(Prompts.from_text(model, "ab").ids_BT, prompts.ids_BT[:1])


def test_texts_of_different_lengths_are_padded_on_the_left():
    prompts = Prompts.from_text(tiny("llama"), iter(["ab", "abc", "x"]))
    np.testing.assert_array_equal(prompts.padding, [1, 0, 2])
    np.testing.assert_array_equal(prompts.start_B, [1, 0, 2])
    for text, ids_T, start in zip(["ab", "abc", "x"], prompts.ids_BT, prompts.start_B, strict=True):
        np.testing.assert_array_equal(ids_T[start:], tiny("llama").tokenizer(text)["input_ids"])
    assert prompts.facts == ({"text": "ab"}, {"text": "abc"}, {"text": "x"})
    assert Prompts.from_text(tiny("llama"), ["ab", "xy"]).padding is None


@pytest.mark.parametrize("padding", [[-1, 0], [0, 4]])
def test_padding_that_leaves_nothing_is_refused(padding):
    with pytest.raises(InputError, match=r"padding of .* tokens leaves nothing of a prompt of 4"):
        Prompts(IDS, padding=np.array(padding))


def test_padding_is_frozen_follows_its_prompt_and_counts_in_the_fingerprint():
    padded = replace(PROMPTS, padding=np.array([0, 1]))
    with pytest.raises(ValueError, match="read-only"):
        padded.padding[0] = 1
    np.testing.assert_array_equal(padded.only(1).padding, [1])
    assert len({PROMPTS.fingerprint, padded.fingerprint, replace(PROMPTS, padding=np.array([1, 0])).fingerprint}) == 3


def test_no_texts_and_texts_without_tokens_are_refused():
    with pytest.raises(InputError, match="prompts need at least one token each"):
        Prompts.from_text(tiny("llama"), [])
    silent = SimpleNamespace(
        tokenizer=lambda text: {"input_ids": []}, card=None, shape=None, max_length=1, positions=1, vocabulary=1, weights=None, device=None, dtype=None
    )
    with pytest.raises(InputError, match="a prompt needs at least one token; one of the texts has none"):
        Prompts.from_text(silent, "")


def test_special_ids_and_the_beginning():
    model = tiny("llama")
    assert special_ids(model) == {0, 1, 2}
    assert bos(model) == [1]


@pytest.mark.parametrize("tokenizer", [None, SimpleNamespace(bos_token_id=None, all_special_ids=[])])
def test_a_model_may_have_no_beginning(tokenizer):
    model = SimpleNamespace(**dict.fromkeys(("card", "shape", "max_length", "positions", "vocabulary", "weights", "device", "dtype")), tokenizer=tokenizer)
    assert bos(model) == []
    assert special_ids(model) == set()
