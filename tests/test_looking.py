"""Is what the dashboard tells of one head what the model does? Against plain captures, edits and products of weights."""

import numpy as np
import pytest
import torch

from workbench.captures import capture
from workbench.edits import Ablate
from workbench.edits.ablate import KINDS, Reference
from workbench.errors import InputError
from workbench.heads import Head
from workbench.looking import MOST_TOKENS, PIECES, look, pairs, without, writes
from workbench.prompts import Prompts
from workbench.reads import HeadOutput, NextToken, Pattern
from workbench.recipes import text_pieces
from workbench.tiny import random_model

TEXT = "abcab cab"
HEAD = Head(1, 4)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request):
    return random_model(request.param)


def in_range(model, head=HEAD):
    return Head(head.layer, min(head.index, model.shape.n_heads - 1))


def test_a_look_is_the_pattern_of_that_head(model):
    head = in_range(model)
    seen = look(model, TEXT, head)
    assert seen.tokens == ("<s>", *TEXT)
    whole = capture(model, TEXT, [Pattern()])[Pattern()][0, head.layer, head.index]
    np.testing.assert_allclose(seen.pattern_QK, whole, atol=1e-6)
    seeing = np.array([(whole[key:, key]).sum() for key in range(len(whole))])
    if model.windows[head.layer] is None:
        np.testing.assert_allclose(seen.received_K, seeing / np.arange(len(whole), 0, -1), atol=1e-6)


@pytest.mark.parametrize("heads", [(HEAD,), (Head(0, 1), Head(1, 0), Head(1, 2))])
@pytest.mark.parametrize("kind", KINDS)
def test_without_heads_is_their_ablation(model, heads, kind):
    heads = tuple(in_range(model, head) for head in heads)
    result = without(model, TEXT, heads, seed=2, kind=kind)
    prompts = Prompts.from_text(model, TEXT)
    elsewhere, _ = text_pieces(model, PIECES, prompts.length, seed=2)
    reference = Reference(capture(model, elsewhere, [HeadOutput()])[HeadOutput()]) if kind in ("mean", "resample") else None
    for column, off in (("whole", ()), ("without", heads), ("control", result.controls)):
        seen = capture(model, prompts, [NextToken()], [Ablate(off, kind, reference=reference, seed=2)] if off else [])[NextToken()]
        np.testing.assert_allclose(result.lost[column], seen.logprob[0, :-1], atol=1e-4)
        best = result.following.loc[result.following[column].idxmax(), "token"]
        assert best == model.tokenizer.decode([int(seen.choice[0, -1])])
    assert list(result.lost["token"]) == list(TEXT)
    assert result.following["whole"].is_monotonic_decreasing
    assert (result.following[["whole", "without", "control"]].sum() <= 1 + 1e-5).all()


def test_controls_are_other_heads_of_the_same_layers():
    model = random_model("llama")
    heads = (Head(0, 0), Head(0, 1), Head(1, 3))
    controls = without(model, TEXT, heads, seed=3).controls
    assert not set(controls) & set(heads)
    assert [head.layer for head in controls] == [0, 0, 1]
    assert without(model, TEXT, heads, seed=3).controls == controls
    assert len({without(model, "a", heads, seed=seed).controls for seed in range(8)}) > 1
    most = tuple(Head(0, index) for index in range(5))
    assert without(model, "a", most).controls == (Head(0, 5),)
    assert without(model, "a", [Head(1, index) for index in range(6)]).controls == ()


def test_what_a_head_writes_is_its_ov_circuit():
    model = random_model("llama")
    rows = writes(model, TEXT, HEAD, count=3)
    assert list(rows["token"]) == ["<s>", "a", "b", "c", " "]
    weights, ids = model.weights, torch.tensor(model.tokenizer("a")["input_ids"][1:])
    with torch.inference_mode():
        x_TD = weights.embedded(ids) + weights.mlp0(weights.embedded(ids))
        logits_V = (x_TD @ weights.input_norm(1) @ weights.v(HEAD) @ weights.o(HEAD) @ weights.final_norm() @ weights.unembedding())[0]
    row = rows.iloc[1]
    assert row["raises"] == [model.tokenizer.decode([int(token)]) for token in logits_V.topk(3).indices]
    assert row["lowers"] == [model.tokenizer.decode([int(token)]) for token in (-logits_V).topk(3).indices]
    assert row["itself"] == 1 + int((logits_V > logits_V[ids[0]]).sum())


def test_what_cannot_be_looked_at_is_said():
    model = random_model("llama")
    for function in (look, writes):
        with pytest.raises(InputError, match="no head L9H0"):
            function(model, TEXT, Head(9, 0))
        with pytest.raises(InputError, match=f"the text has {MOST_TOKENS + 2} tokens; token by token at most {MOST_TOKENS}"):
            function(model, "a" * (MOST_TOKENS + 1), HEAD)
    with pytest.raises(InputError, match="no head L0H6"):
        without(model, TEXT, [Head(0, 6)])
    model.tokenizer = None
    with pytest.raises(InputError, match="has no tokenizer"):
        look(model, TEXT, HEAD)


@pytest.mark.model
def test_induction_heads_carry_the_repeated_name(smollm2):
    """The dashboard's own example: without the induction heads the model no longer knows how the name went on; without others it does."""
    heads = [Head(17, 3), Head(17, 4), Head(17, 5), Head(18, 6), Head(18, 7), Head(20, 6), Head(23, 2), Head(23, 7)]
    text = "Alice Petrov met Bruno Quist in Lisbon. Later that year, Alice Petrov wrote a long letter to Bruno"
    first = without(smollm2, text, heads).following.iloc[0]
    assert first["token"] == " Qu"
    assert first["without"] < first["whole"] / 4
    assert first["control"] > first["whole"] / 2


def test_pairs_are_the_cells_of_the_patterns_that_rows_see():
    first_QK, second_QK = np.tril(np.arange(9.0).reshape(3, 3)), np.eye(3)
    table = pairs(("a", "b", "c"), first=first_QK, second=second_QK)
    assert list(table.columns) == ["row", "row_token", "key", "key_token", "first", "second"]
    assert table[["row_token", "key_token"]].agg("".join, axis=1).tolist() == ["aa", "ba", "bb", "ca", "cb", "cc"]
    assert table["first"].tolist() == [0, 3, 4, 6, 7, 8]
    assert table["second"].tolist() == [1, 0, 1, 0, 0, 1]


def test_an_empty_text_is_no_text(model):
    with pytest.raises(InputError, match="there is no text; write one"):
        look(model, "", in_range(model))
