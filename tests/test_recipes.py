"""Are prompts of random tokens and of natural text what their settings say, again and again?"""

from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from workbench.errors import InputError
from workbench.models import HFModel
from workbench.prompts import special_ids
from workbench.recipes import NaturalText, Recipe, RepeatedTokens, haystack_text, offsets
from workbench.tiny import byte_tokenizer, random_model

SENTENCES = [f"In year {year} the river rose by {year * 7 % 91} feet." for year in range(120)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(SENTENCES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def with_tokenizer(model, tokenizer):
    return HFModel(model.name, model.origin, model.hf, tokenizer)


@pytest.fixture(scope="module")
def without_bos(model):
    core = byte_tokenizer().backend_tokenizer
    return with_tokenizer(model, PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>"))


def ids(batches):
    return np.concatenate([batch.ids_BT for batch in batches])


REPEATED = RepeatedTokens(length=10, repeats=3, count=5, batch=2)


@pytest.mark.parametrize("recipe", [REPEATED, replace(REPEATED, repeated=False), NaturalText(length=20, count=5)])
def test_the_same_seed_makes_the_same_prompts_and_another_others(model, recipe, text):
    recipe = replace(recipe, text=text) if isinstance(recipe, NaturalText) else recipe
    first, again, other = (recipe.build(model, seed) for seed in (1, 1, 2))
    assert [batch.fingerprint for batch in first] == [batch.fingerprint for batch in again]
    assert (ids(first) != ids(other)).any(axis=1).all()


def test_prompts_of_one_seed_differ_from_each_other(model, text):
    for recipe in (REPEATED, NaturalText(length=20, count=5, text=text)):
        assert len(np.unique(ids(recipe.build(model, 0)), axis=0)) == 5


@pytest.mark.parametrize(("count", "batch", "sizes"), [(5, 2, [2, 2, 1]), (4, 2, [2, 2]), (3, 8, [3]), (1, 1, [1])])
def test_batches_have_the_asked_size_and_the_last_what_is_left(model, text, count, batch, sizes):
    for recipe in (replace(REPEATED, count=count, batch=batch), NaturalText(length=20, count=count, batch=batch, text=text)):
        built = recipe.build(model, 0)
        assert [prompts.count for prompts in built] == sizes
        assert [prompts.length for prompts in built for _ in range(prompts.count)] == recipe.lengths(model)
        assert all(len(prompts.facts) == prompts.count for prompts in built)


# ---------------------------------------------------------------- repeated tokens


def test_a_block_of_distinct_tokens_is_repeated_exactly_behind_bos(model):
    for prompt in ids(REPEATED.build(model, 0)):
        assert prompt[0] == 1
        blocks = prompt[1:].reshape(3, 10)
        assert (blocks == blocks[0]).all()
        assert len(set(blocks[0])) == 10


def test_rows_are_those_of_the_second_and_later_blocks(model):
    (prompts,) = replace(REPEATED, count=2).build(model, 0)
    assert prompts.rows["repeat"].tolist() == [list(range(11, 31))] * 2


def test_tokens_come_from_the_middle_of_the_vocabulary(model):
    pool = np.unique(ids(RepeatedTokens(length=50, repeats=2, count=200).build(model, 0))[:, 1:])
    assert pool.tolist() == list(range(26, 234))  # of 260, without the first and the last tenth


def test_special_tokens_never_come_up(model):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(100), tokenizer.convert_ids_to_tokens(150)]})
    marked = with_tokenizer(model, tokenizer)
    assert {100, 150} <= special_ids(marked)
    pool = set(np.unique(ids(RepeatedTokens(length=50, count=200).build(marked, 0))[:, 1:]).tolist())
    assert pool == set(range(26, 234)) - {100, 150}


def test_the_control_repeats_nothing_and_still_looks_where_the_repeats_would_be(model):
    control = REPEATED.control()
    assert control == replace(REPEATED, repeated=False)
    for prompts, real in zip(control.build(model, 0), REPEATED.build(model, 0), strict=True):
        for b in range(prompts.count):
            assert len(set(prompts.ids_BT[b].tolist())) == 31
            assert (prompts.match_BT[b, 1:].reshape(3, 10) == prompts.ids_BT[b, 1:11]).all()
        assert prompts.rows["repeat"].tolist() == real.rows["repeat"].tolist()
        np.testing.assert_array_equal(real.match_BT, real.ids_BT)


def test_facts_tell_the_block_the_repeats_and_whether_bos_stands_first(model, without_bos):
    assert REPEATED.build(model, 0)[0].facts[0] == {"bos": True, "block": 10, "repeats": 3, "repeated": True}
    assert REPEATED.control().build(without_bos, 0)[0].facts[0] == {"bos": False, "block": 10, "repeats": 3, "repeated": False}


def test_without_bos_the_block_stands_first(without_bos):
    (prompts,) = replace(REPEATED, count=1).build(without_bos, 0)
    assert prompts.length == 30
    assert prompts.rows["repeat"][0].tolist() == list(range(10, 30))
    assert (prompts.ids_BT[0, :10] == prompts.ids_BT[0, 10:20]).all()


def test_blocks_are_cut_to_what_the_context_holds():
    model = random_model("llama", max_position_embeddings=32)
    recipe = RepeatedTokens(length=2500, repeats=4, count=1)
    (prompts,) = recipe.build(model, 0)
    assert prompts.length == 29 == recipe.lengths(model)[0]  # BOS and four blocks of seven
    assert prompts.facts[0]["block"] == 7


@pytest.mark.parametrize(("context", "fits"), [(9, True), (8, False)])
def test_a_context_that_holds_no_blocks_of_two_is_refused(context, fits):
    model = random_model("llama", max_position_embeddings=context)
    recipe = RepeatedTokens(length=10, repeats=4, count=1)
    if fits:
        assert recipe.build(model, 0)[0].length == 9
    else:
        with pytest.raises(InputError, match="4 blocks do not fit the context of tiny-llama, 8 tokens"):
            recipe.build(model, 0)


@pytest.mark.parametrize(("length", "repeated", "fits"), [(208, True, True), (209, True, False), (104, False, True), (105, False, True), (209, False, False)])
def test_a_vocabulary_with_too_few_ordinary_tokens_is_refused(model, length, repeated, fits):
    recipe = RepeatedTokens(length=length, repeats=2, count=1, repeated=repeated)
    if fits:
        assert recipe.build(model, 0)[0].length == 2 * length + 1
    else:
        with pytest.raises(InputError, match=r"209 distinct tokens are needed, tiny-llama has 208 ordinary ones; give a shorter --length"):
            recipe.build(model, 0)


# ---------------------------------------------------------------- natural text


def test_passages_start_at_sentences_and_go_on_as_the_text_does(model, text):
    whole = " ".join(SENTENCES)
    for prompt in ids(NaturalText(length=60, count=20, text=text).build(model, 0)):
        assert prompt[0] == 1
        assert len(prompt) == 60
        passage = model.tokenizer.decode(prompt[1:])
        assert passage in whole
        assert passage.lstrip().startswith("In year ")


def test_passages_come_from_all_over_the_text(model, text):
    passages = model.tokenizer.batch_decode(ids(NaturalText(length=30, count=100, text=text).build(model, 0))[:, 1:])
    years = sorted(int(passage.split()[2]) for passage in passages)
    assert len(set(years)) == 100
    assert years[0] < 10
    assert years[-1] > 110


def test_a_text_without_bos_is_recorded_as_such(without_bos, model, text):
    recipe = NaturalText(length=30, count=3, text=text)
    (bare,), (full,) = recipe.build(without_bos, 0), recipe.build(model, 0)
    assert [fact["bos"] for fact in bare.facts] == [False] * 3
    assert [fact["bos"] for fact in full.facts] == [True] * 3
    assert bare.length == full.length == 30
    assert (bare.ids_BT != 1).all()


@pytest.mark.parametrize(("count", "fits"), [(3, True), (4, False)])
def test_a_text_too_short_for_the_passages_is_refused(model, tmp_path, count, fits):
    (tmp_path / "short.txt").write_text("Aa bb. Cc dd. Ee ff.", encoding="utf-8")  # sentences begin at 0, 6 and 13; 20 tokens
    recipe = NaturalText(length=8, count=count, text=tmp_path / "short.txt")
    if fits:
        assert sorted(model.tokenizer.batch_decode(ids(recipe.build(model, 0))[:, 1:])) == [" Cc dd.", " Ee ff.", "Aa bb. "]
    else:
        with pytest.raises(InputError, match="the text has 20 tokens; 4 passages of 8 tokens need a longer one"):
            recipe.build(model, 0)


def test_natural_text_has_no_control_as_its_null_is_uniform_attention():
    assert NaturalText().control() is None


def test_recipes_keep_to_their_protocol():
    assert isinstance(NaturalText(), Recipe)
    assert isinstance(REPEATED, Recipe)


# ---------------------------------------------------------------- the text itself


def test_the_built_in_text_is_the_language_reference_with_its_hash():
    import hashlib

    text, digest = haystack_text(None)
    assert len(text) > 300_000
    assert "The `for` statement" in text or 'The "for" statement' in text
    assert digest == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_users_text_is_read_as_it_is(text):
    assert haystack_text(text)[0] == " ".join(SENTENCES)
    assert haystack_text(text)[1] != haystack_text(None)[1]


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read the text"), (b"\xff\xfe\xff", "cannot read the text"), (b" \n ", "is empty")])
def test_a_text_that_is_missing_not_utf8_or_empty_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        haystack_text(path)
    assert str(path) in str(error.value)


def test_sentences_begin_at_0_and_behind_every_full_stop_before_a_space(model, tmp_path):
    (tmp_path / "text.txt").write_text("A b. C 3.5 d.\nE", encoding="utf-8")
    found, _, starts = offsets(model, haystack_text(tmp_path / "text.txt")[0])
    assert model.tokenizer.decode(found) == "A b. C 3.5 d.\nE"
    assert starts.tolist() == [0, 4, 13]


def test_token_ranges_are_those_of_the_characters(model, tmp_path):
    (tmp_path / "text.txt").write_text("aé.", encoding="utf-8")  # é takes two bytes, so two tokens with one range
    found, ranges, _ = offsets(model, haystack_text(tmp_path / "text.txt")[0])
    assert len(found) == 4
    assert ranges.tolist() == [[0, 1], [1, 2], [1, 2], [2, 3]]


@pytest.mark.parametrize("tokenizer", [None, object()])
def test_a_model_without_a_fast_tokenizer_is_refused(model, text, tokenizer):
    with pytest.raises(InputError, match="tiny-llama has no fast tokenizer"):
        NaturalText(text=text).build(with_tokenizer(model, tokenizer), 0)


# ---------------------------------------------------------------- longer prompts


@pytest.mark.parametrize(
    ("recipe", "tokens", "expected"),
    [
        (NaturalText(length=64, count=32, batch=16), 256, NaturalText(length=256, count=8, batch=4)),
        (NaturalText(length=64, count=32, batch=16), 512, NaturalText(length=512, count=4, batch=2)),
        (NaturalText(length=64, count=32, batch=16), 32768, NaturalText(length=32768, count=2, batch=1)),
        (NaturalText(length=512, count=4, batch=2), 128, NaturalText(length=128, count=4, batch=2)),
        (RepeatedTokens(length=50, repeats=2, count=8), 200, RepeatedTokens(length=50, repeats=2, count=4, batch=4, total=200)),
        (RepeatedTokens(length=50, repeats=4, count=16), 4001, RepeatedTokens(length=50, repeats=4, count=2, batch=1, total=4001)),
    ],
)
def test_longer_prompts_are_fewer_in_smaller_batches(recipe, tokens, expected):
    """No more tokens in all, and at once, than before; but two prompts at least, and no more than before."""
    assert recipe.at_length(tokens) == expected


def test_blocks_go_beyond_the_context_only_if_they_are_to():
    model = random_model("llama", max_position_embeddings=41)
    short, long = RepeatedTokens(length=100, count=1), RepeatedTokens(length=5, count=1).at_length(120)
    assert short.build(model, 0)[0].length == short.lengths(model)[0] == 41
    assert long.build(model, 0)[0].length == long.lengths(model)[0] == 119


@pytest.mark.parametrize(("length", "repeats"), [(60, 2), (100, 4)])
def test_the_later_blocks_of_the_control_are_other_tokens_or_else_in_another_order(model, length, repeats):
    (prompts,) = RepeatedTokens(length=length, repeats=repeats, count=1).control().build(model, 0)
    blocks = prompts.ids_BT[0, 1:].reshape(repeats, length)
    assert all(len(set(block)) == length for block in blocks.tolist())
    distinct = len(set(prompts.ids_BT[0, 1:].tolist()))
    assert distinct == length * repeats if length * repeats <= 208 else (blocks[0] == blocks[1]).mean() < 0.1
