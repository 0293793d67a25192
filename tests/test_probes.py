"""Does every probe give what its definition says? Contracts over all of them, and for each an oracle written as loops over patterns."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench import probes
from workbench.captures import Capture
from workbench.conversations import Conversations
from workbench.documents import DocumentSearch
from workbench.errors import InputError
from workbench.given import from_patterns
from workbench.heads import ModelCard, Shape
from workbench.needles import NeedleTests
from workbench.probes import PROBES, Probe, _needle, _sinks, copying, pattern_of, probe, rest
from workbench.prompts import Prompts
from workbench.reads import Mass, NextToken, NextTokenValue
from workbench.recipes import NaturalText, RandomTokens, RepeatedTokens
from workbench.tiny import random_model
from workbench.weights import Weights

CARD = ModelCard("toy", "memory", "", Shape(2, 3, 1, 4, 12))
SEEN = [name for name, member in PROBES.items() if member.recipes]
WEIGHED = {"copying", "copy_suppression", "name_mover", "successor"}
each_seen = pytest.mark.parametrize("name", SEEN)
each_probe = pytest.mark.parametrize("name", PROBES)


# ---------------------------------------------------------------- prompts and patterns


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"In year {year} the river rose by {year * 7 % 91} feet." for year in range(300)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def built(tiny_llama, text):
    """The prompts of every probe's quick recipe, shrunk."""

    def shrunk(recipe):
        if isinstance(recipe, NeedleTests):
            return replace(recipe, lengths_=(450,), depths=(0.5,), per_cell=2, haystack=text)
        if isinstance(recipe, DocumentSearch):
            return replace(recipe, count=2, documents=2, haystack=text)
        if isinstance(recipe, Conversations):
            return replace(recipe, count=2)
        return replace(recipe, count=2, batch=2, **({"text": text} if isinstance(recipe, NaturalText) else {}))

    recipes = {name: shrunk(PROBES[name].recipe("quick")) for name in SEEN}
    talking = random_model("llama")
    talking.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    prompts = {recipe: recipe.build(talking if isinstance(recipe, Conversations) else tiny_llama, 0) for recipe in set(recipes.values())}
    return {name: prompts[recipe] for name, recipe in recipes.items()}


def natural(rng, length=80):
    return Prompts(rng.integers(3, 20, (3, length)))


def repeated(rng, block=6, repeats=4):
    match = np.stack([np.tile(rng.permutation(20)[:block] + 3, repeats) for _ in range(3)])
    match = np.concatenate([np.ones((3, 1), int), match], axis=1)
    rows = np.tile(np.arange(1 + block, match.shape[1]), (3, 1))
    return Prompts(rng.integers(3, 20, match.shape), {}, {"repeat": rows}, match)


def needles(rng, length=40, size=7, answer=9):
    """Tokens are few, so that some occur twice in the needle, some answers are not in it, and some come twice."""
    start = rng.integers(5, 20, 3)
    rows = np.tile(np.arange(length - answer - 1, length - 1), (3, 1))
    return Prompts(rng.integers(3, 9, (3, length)), {"needle": np.stack([start, start + size], axis=1)}, {"answer": rows}, prefilled=length - answer - 1)


def documents(rng, length=60):
    gold = np.repeat(rng.integers(5, 20, (2, 1)) + np.array([0, 13]), 2, axis=0)
    return Prompts(rng.integers(3, 20, (4, length)), {"gold": gold}, {"query": np.tile(np.arange(50, 60), (4, 1))})


def conversations(rng, length=50):
    begin = rng.integers(3, 10, 3)
    return Prompts(rng.integers(3, 20, (3, length)), {"user": np.stack([begin, begin + 9], axis=1)}, {"response": np.tile(np.arange(30, 45), (3, 1))})


MAKERS = {
    NaturalText: natural,
    RandomTokens: natural,
    RepeatedTokens: repeated,
    NeedleTests: needles,
    DocumentSearch: documents,
    Conversations: conversations,
}


def toy_prompts(name, seed=0, **sizes):
    return MAKERS[type(PROBES[name].recipe("quick"))](np.random.default_rng(seed), **sizes)


def random_patterns(prompts, seed=0, layers=2, heads=3, sharp=3.0):
    shape = (prompts.count, layers, heads, prompts.length, prompts.length)
    weight = np.tril(np.exp(sharp * np.random.default_rng(seed).standard_normal(shape)))
    return (weight / weight.sum(-1, keepdims=True)).astype(np.float32)


def uniform(length):
    return np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]


def seen(name, prompts, pattern_BLHQK):
    """A capture with just the reads that the probe declares and that patterns show."""
    reads = [read for read in PROBES[name].reads if not isinstance(read, NextToken)]
    return from_patterns(CARD, prompts, pattern_BLHQK, reads, values(prompts, pattern_BLHQK.shape[1]))


def values(prompts, layers):
    """Values [B, L, 1, K, 4] that all tokens have in common: 0 for those that say nothing, [1, 1, 1, 1] for the others."""
    value_BLGKE = np.ones((prompts.count, layers, 1, prompts.length, 4))
    for b in range(prompts.count):
        value_BLGKE[b, :, :, _sinks.quiet_keys(prompts, b)] = 0
    return value_BLGKE


def score(name, prompts, pattern_BLHQK):
    return PROBES[name].score(seen(name, prompts, pattern_BLHQK))


def of_one_head(name, prompts, pattern_BQK):
    """The scores [N] of a single head."""
    return score(name, prompts, np.asarray(pattern_BQK)[:, None, None])[:, 0, 0]


def ideal(name, prompts):
    return np.stack([PROBES[name].ideal(prompts, b) for b in range(prompts.count)])


def by_loops(prompts, pattern_BLHQK, one):
    """An oracle's scores [B, L, H]: `one(prompt index, pattern [Q, K])`."""
    return np.array([[[one(b, pattern_QK) for pattern_QK in layer] for layer in prompt] for b, prompt in enumerate(pattern_BLHQK)])


def held_to(name, one, **sizes):
    """Assert that a probe gives what an oracle gives on random patterns."""
    for seed in range(3):
        prompts = toy_prompts(name, seed, **sizes)
        pattern_BLHQK = random_patterns(prompts, seed)
        expected = by_loops(prompts, pattern_BLHQK, lambda b, pattern_QK, prompts=prompts: one(prompts, b, pattern_QK))
        np.testing.assert_allclose(score(name, prompts, pattern_BLHQK), expected, atol=1e-5)


# ---------------------------------------------------------------- contracts over the registry


@each_seen
def test_the_ideal_head_gets_1_on_the_probes_own_prompts(built, name):
    for prompts in built[name]:
        np.testing.assert_allclose(of_one_head(name, prompts, ideal(name, prompts)), 1, atol=1e-6)


@each_seen
def test_ideal_patterns_are_causal_and_their_rows_sum_to_1(built, name):
    pattern_BQK = ideal(name, built[name][0])
    np.testing.assert_allclose(pattern_BQK.sum(-1), 1)
    assert (np.triu(pattern_BQK, 1) == 0).all()
    assert (pattern_BQK >= 0).all()


@each_seen
def test_the_ideal_heads_of_other_probes_get_less_than_a_half_except_where_also_says_so(built, name):
    others = [other for other in SEEN if other != name and type(PROBES[other].recipe("quick")) is type(PROBES[name].recipe("quick"))]
    found = {other: float(np.mean([of_one_head(name, prompts, ideal(other, prompts)) for prompts in built[name]])) for other in others}
    assert {other for other, value in found.items() if value >= 0.5} == {other for other in others if name in PROBES[other].also}, found


def test_also_names_other_probes_with_prompts_of_the_same_kind():
    for name in SEEN:
        kinds = {type(PROBES[other].recipe("quick")) for other in PROBES[name].also}
        assert kinds <= {type(PROBES[name].recipe("quick"))}
        assert name not in PROBES[name].also


@each_seen
def test_a_batch_gives_the_scores_of_its_prompts_one_by_one(name):
    prompts, step = toy_prompts(name), 2 if name == "query_focused_retrieval" else 1
    pattern_BLHQK = random_patterns(prompts)

    def part(start):
        cut = slice(start, start + step)
        spans, rows = ({key: value[cut] for key, value in places.items()} for places in (prompts.spans, prompts.rows))
        return score(name, Prompts(prompts.ids_BT[cut], spans, rows, prompts.match_BT[cut], prompts.prefilled), pattern_BLHQK[cut])

    single = [part(start) for start in range(0, prompts.count, step)]
    np.testing.assert_allclose(score(name, prompts, pattern_BLHQK), np.concatenate(single), atol=1e-6)


@each_seen
def test_a_score_has_one_number_per_sample_layer_and_head_and_heads_do_not_mix(name):
    prompts = toy_prompts(name)
    pattern_BLHQK = random_patterns(prompts)
    whole = score(name, prompts, pattern_BLHQK)
    samples = prompts.count // 2 if name == "query_focused_retrieval" else prompts.count
    assert whole.shape == (samples, 2, 3)
    np.testing.assert_allclose(whole[:, 1, 2], of_one_head(name, prompts, pattern_BLHQK[:, 1, 2]), atol=1e-6)


class Spy(Capture):
    """A capture that remembers what was asked of it."""

    def __getitem__(self, read):
        self.asked.add(read)
        return super().__getitem__(read)


@each_seen
def test_score_and_validity_read_what_is_declared_and_nothing_else(name):
    prompts = toy_prompts(name)
    capture = seen(name, prompts, random_patterns(prompts))
    values = dict(capture.values)
    if _needle.PREDICTED in PROBES[name].reads:
        choice = np.zeros(prompts.rows["answer"].shape, np.int64)
        values[_needle.PREDICTED] = NextTokenValue(choice, choice.astype(float))
    spy = Spy(CARD, prompts, values)
    object.__setattr__(spy, "asked", set())
    PROBES[name].score(spy)
    if PROBES[name].valid is not None:
        PROBES[name].valid(spy)
    assert spy.asked == set(PROBES[name].reads)


@each_seen
def test_score_writes_to_nothing(name):
    prompts = toy_prompts(name)
    capture = seen(name, prompts, random_patterns(prompts))
    before = {read: [np.copy(part) for part in (value if isinstance(value, tuple) else (value,))] for read, value in capture.values.items()}
    first = PROBES[name].score(capture)
    np.testing.assert_array_equal(first, PROBES[name].score(capture))
    for read, value in capture.values.items():
        for former, part in zip(before[read], value if isinstance(value, tuple) else (value,), strict=True):
            np.testing.assert_array_equal(part, former)
            assert not part.flags.writeable


@each_probe
def test_a_probe_says_what_it_is(name):
    member = PROBES[name]
    assert member.name == name
    assert all((member.question, member.citation, member.null))
    assert len(member.question) <= 160
    assert member.about.splitlines()[0] == member.question
    assert len(member.about) > len(member.question)
    assert member.evidence == ("weights" if name in WEIGHED else "capture")


def test_the_registry_holds_one_probe_per_file():
    folder = Path(probes.__file__).parent
    assert sorted(PROBES) == sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


@each_seen
def test_both_presets_have_prompts_and_paper_never_has_fewer(name):
    member, model = PROBES[name], random_model("llama", max_position_embeddings=20_000)
    quick, paper = (member.recipe(preset) for preset in ("quick", "paper"))
    assert len(paper.lengths(model)) >= len(quick.lengths(model))
    assert max(paper.lengths(model)) >= max(quick.lengths(model))


def test_adding_a_probe_is_adding_one_file(tmp_path, monkeypatch):
    shutil.copy(Path(probes.__file__).parent / "previous_token.py", tmp_path / "zz_new.py")
    text = (tmp_path / "zz_new.py").read_text(encoding="utf-8").replace('name="previous_token"', 'name="zz_new"')
    (tmp_path / "zz_new.py").write_text(text, encoding="utf-8")
    (tmp_path / "_zz_shared.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.setattr(probes, "__path__", [*probes.__path__, str(tmp_path)])
    try:
        found = probes._discover()
        assert list(found) == [*PROBES, "zz_new"]
        assert found["zz_new"].name == "zz_new"
    finally:
        sys.modules.pop("workbench.probes.zz_new", None)


def test_an_unknown_probe_or_preset_lists_those_that_exist():
    assert probe("induction") is PROBES["induction"]
    with pytest.raises(InputError, match="unknown probe 'inductoin'; there are: attention_sink, attention_sink_random, "):
        probe("inductoin")
    with pytest.raises(InputError, match="unknown preset 'slow'; there are: paper, quick"):
        PROBES["induction"].recipe("slow")


def test_a_preset_that_a_probe_does_not_distinguish_is_the_quick_one():
    recipe = RepeatedTokens(length=3)
    member = replace(PROBES["induction"], recipes={"quick": recipe})
    assert member.recipe("paper") is recipe
    other = replace(member, recipes={"quick": recipe, "paper": replace(recipe, count=9)})
    assert (other.recipe("quick").count, other.recipe("paper").count) == (16, 9)


def test_a_probe_without_a_docstring_is_refused():
    def silent(capture):
        return capture

    with pytest.raises(ValueError, match="the score function of mute needs a docstring: its first line is what users see"):
        Probe(name="mute", score=silent, ideal=pattern_of, citation="", null="")


def test_resting_gives_a_quarter_each_to_keys_at_fifths():
    pattern_QK = np.zeros((21, 21))
    rest(pattern_QK, 20)
    assert {int(key): pattern_QK[20, key] for key in np.flatnonzero(pattern_QK[20])} == {4: 0.25, 8: 0.25, 12: 0.25, 16: 0.25}
    assert pattern_QK[:20].sum() == 0


def test_resting_rows_at_the_start_share_keys_and_still_sum_to_1():
    pattern_QK = pattern_of(Prompts(np.zeros((1, 4), np.int64)), lambda row: [])
    np.testing.assert_allclose(pattern_QK, [[1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.5, 0.25, 0]])


def test_chosen_keys_get_equal_parts_and_a_key_named_twice_gets_two():
    pattern_QK = pattern_of(Prompts(np.zeros((1, 3), np.int64)), lambda row: [0, 0, 1, 2] if row == 2 else [row])
    np.testing.assert_allclose(pattern_QK, [[1, 0, 0], [0, 1, 0], [0.5, 0.25, 0.25]])


# ---------------------------------------------------------------- heads of position


def test_previous_token_is_the_mean_over_all_rows_but_the_first():
    held_to("previous_token", lambda prompts, b, p: np.mean([p[row, row - 1] for row in range(1, prompts.length)]))


def test_local_is_the_mass_on_the_last_64_keys_over_rows_from_the_65th():
    def one(prompts, b, p):
        return np.mean([sum(p[row, key] for key in range(row - 63, row + 1)) for row in range(64, prompts.length)])

    held_to("local", one)


def test_streaming_is_the_mass_on_4_first_and_64_last_keys_over_rows_from_the_69th():
    def one(prompts, b, p):
        return np.mean([sum(p[row, key] for key in range(row + 1) if key < 4 or key > row - 64) for row in range(68, prompts.length)])

    held_to("streaming", one)


def test_attention_sink_is_the_mean_over_rows_of_the_first_key():
    held_to("attention_sink", lambda prompts, b, p: np.mean([p[row, 0] for row in range(prompts.length)]))


def test_sink_anywhere_is_the_best_key_of_the_first_three_quarters_over_the_rows_that_see_it():
    def one(prompts, b, p):
        return max(np.mean([p[row, key] for row in range(key, prompts.length)]) for key in range(60))

    held_to("sink_anywhere", one)


@pytest.mark.parametrize(("key", "counts"), [(47, True), (48, False)])
def test_sink_anywhere_leaves_out_the_last_quarter_of_64_tokens(key, counts):
    pattern_QK = np.zeros((64, 64))
    pattern_QK[key:, key] = 1
    value = of_one_head("sink_anywhere", Prompts(np.zeros((1, 64), np.int64)), pattern_QK[None])[0]
    assert value == (1 if counts else 0)


@pytest.mark.parametrize("name", ["attention_sink_random", "attention_sink_repeated"])
def test_sinks_of_other_inputs_are_those_of_text(name):
    held_to(name, lambda prompts, b, p: np.mean([p[row, 0] for row in range(prompts.length)]))


@pytest.mark.parametrize(
    ("name", "bar"),
    [
        ("later_sink_alpha_n", lambda key, length: 5 / length),
        ("later_sink_absolute", lambda key, length: 0.1),
        ("later_sink_uniform", lambda key, length: 5 * sum(1 / n for n in range(key + 1, length + 1)) / (length - key)),
    ],
)
@pytest.mark.parametrize("length", [12, 80])
def test_later_sinks_are_keys_above_the_bar_in_the_first_three_quarters_but_the_first(name, bar, length):
    def one(prompts, b, p):
        received = {key: np.mean([p[row, key] for row in range(key, length)]) for key in range(1, length * 3 // 4)}
        return float(any(value > bar(key, length) for key, value in received.items()))

    held_to(name, one, length=length)


def test_user_attention_is_the_mass_on_the_users_tokens_over_the_answers_rows():
    held_to("user_attention", lambda prompts, b, p: np.mean([sum(p[row, key] for key in range(*prompts.spans["user"][b])) for row in range(30, 45)]))


def test_entropy_is_that_of_a_row_over_the_log_of_its_length_without_the_first_row():
    def one(prompts, b, p):
        rows = [-sum(p[row, key] * np.log(p[row, key]) for key in range(row + 1)) / np.log(row + 1) for row in range(1, prompts.length)]
        return np.mean(rows)

    held_to("entropy", one, length=30)


def test_uniform_attention_over_64_tokens_gets_the_published_sink_score():
    prompts = Prompts(np.zeros((1, 64), np.int64))
    assert of_one_head("attention_sink", prompts, uniform(64)[None])[0] == pytest.approx(0.0741, abs=5e-5)
    assert of_one_head("sink_anywhere", prompts, uniform(64)[None])[0] == pytest.approx(0.0741, abs=5e-5)


def test_a_head_that_attends_to_itself_is_no_sink_no_previous_token_head_and_local():
    prompts = Prompts(np.zeros((1, 80), np.int64))
    value = {name: of_one_head(name, prompts, np.eye(80)[None])[0] for name in ("attention_sink", "previous_token", "local", "streaming", "entropy")}
    assert value == {"attention_sink": pytest.approx(1 / 80), "previous_token": 0, "local": 1, "streaming": 1, "entropy": 0}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("previous_token", 0, {0: 1}),
        ("previous_token", 1, {0: 1}),
        ("previous_token", 70, {69: 1}),
        ("attention_sink", 70, {0: 1}),
        ("sink_anywhere", 4, dict.fromkeys(range(4), 0.25)),
        ("sink_anywhere", 5, {5: 1}),
        ("sink_anywhere", 70, {5: 1}),
        ("streaming", 10, {0: 1}),
        ("streaming", 11, {1: 1}),
        ("streaming", 70, {1: 0.5, 60: 0.5}),
        ("entropy", 3, dict.fromkeys(range(4), 0.25)),
        ("local", 2, dict.fromkeys(range(3), 1 / 3)),
        ("local", 31, dict.fromkeys(range(32), 1 / 32)),
        ("local", 32, dict.fromkeys(range(1, 33), 1 / 32)),
    ],
)
def test_ideal_heads_of_position_attend_where_their_text_says(name, row, expected):
    pattern_QK = PROBES[name].ideal(natural(np.random.default_rng(0)), 0)
    found = {int(key): pattern_QK[row, key] for key in np.flatnonzero(pattern_QK[row])}
    assert found == {key: pytest.approx(value) for key, value in expected.items()}


# ---------------------------------------------------------------- heads of repetition


def copies(prompts, b, row):
    return [key for key in range(row) if prompts.match_BT[b, key] == prompts.match_BT[b, row]]


@pytest.mark.parametrize("name", ["duplicate_token", "razor_echo"])
def test_echo_is_the_mass_on_all_earlier_copies_over_the_rows_of_later_blocks(name):
    held_to(name, lambda prompts, b, p: np.mean([sum(p[row, key] for key in copies(prompts, b, row)) for row in range(7, 25)]))


@pytest.mark.parametrize("name", ["induction", "razor_induction"])
def test_induction_is_the_mass_on_the_tokens_after_all_earlier_copies(name):
    held_to(name, lambda prompts, b, p: np.mean([sum(p[row, key + 1] for key in copies(prompts, b, row)) for row in range(7, 25)]))


def test_uniform_attention_scores_as_many_copies_as_there_are():
    prompts = repeated(np.random.default_rng(0))
    expected = np.mean([((row - 1) // 6) / (row + 1) for row in range(7, 25)])
    pattern_BQK = np.repeat(uniform(25)[None], 3, axis=0)
    for name in ("razor_echo", "razor_induction"):
        np.testing.assert_allclose(of_one_head(name, prompts, pattern_BQK), expected, atol=1e-6)


@pytest.mark.parametrize(("offset", "induction", "echo"), [(5, 1, 0), (6, 0, 1), (4, 0, 0), (7, 0, 0), (11, 2 / 3, 0), (12, 0, 2 / 3)])
def test_only_the_distance_of_a_block_or_one_less_counts(offset, induction, echo):
    prompts = repeated(np.random.default_rng(0))
    pattern_QK = np.zeros((25, 25))
    for row in range(25):
        pattern_QK[row, max(0, row - offset)] = 1
    found = [of_one_head(name, prompts, [pattern_QK] * 3) for name in ("razor_induction", "razor_echo")]
    np.testing.assert_allclose(found, [[induction] * 3, [echo] * 3], atol=1e-6)


def test_the_ideal_echo_head_attends_to_earlier_copies_only():
    prompts = Prompts(np.array([[5, 6, 5, 7, 5]]))
    pattern_QK = PROBES["duplicate_token"].ideal(prompts, 0)
    np.testing.assert_allclose(pattern_QK[4], [0.5, 0, 0.5, 0, 0])
    np.testing.assert_allclose(pattern_QK[2], [1, 0, 0, 0, 0])
    np.testing.assert_allclose(pattern_QK[3], [0.25, 0.5, 0.25, 0, 0])  # 7 was not there before: the row rests


def test_the_ideal_induction_head_attends_behind_earlier_copies_only():
    prompts = Prompts(np.array([[5, 5, 6, 5, 5]]))
    pattern_QK = PROBES["induction"].ideal(prompts, 0)
    np.testing.assert_allclose(pattern_QK[1], [1, 0, 0, 0, 0])  # behind the first 5 stands the row itself, which is no earlier key: it rests
    np.testing.assert_allclose(pattern_QK[3], [0, 0.5, 0.5, 0, 0])
    np.testing.assert_allclose(pattern_QK[4], [0, 0.5, 0.5, 0, 0])


# ---------------------------------------------------------------- heads of retrieval


def wu(prompts, b, p):
    """Wu et al. 2024, with sets: the share of the needle's distinct tokens that are copied at least once."""
    ids, (start, end), copied = prompts.ids_BT[b], prompts.spans["needle"][b], set()
    for row in prompts.rows["answer"][b]:
        strongest = max(range(row + 1), key=lambda key: p[row, key])
        if start <= strongest < end and ids[strongest] == ids[row + 1]:
            copied.add(int(ids[row + 1]))
    wanted = set(ids[start:end].tolist())
    return len(copied & wanted) / len(wanted)


def test_retrieval_is_the_share_of_the_needles_tokens_copied_by_the_strongest_key():
    held_to("retrieval", wu)
    prompts = needles(np.random.default_rng(0))
    assert 0 < by_loops(prompts, random_patterns(prompts), lambda b, p: wu(prompts, b, p)).mean() < 1


def one_needle(tokens, answer, strongest):
    """A prompt [1, 4 + needle + 3 + answer] whose answer rows attend wholly to the given keys; and that pattern."""
    ids = [90, 91, 92, 93, *tokens, 94, 95, 96, *answer]
    start, first = 4, 4 + len(tokens) + 2
    rows = np.arange(first, first + len(answer))
    prompts = Prompts(np.array([ids]), {"needle": np.array([[start, start + len(tokens)]])}, {"answer": rows[None]}, prefilled=first)
    pattern_QK = np.eye(len(ids))
    for row, key in zip(rows, strongest, strict=True):
        pattern_QK[row] = np.eye(len(ids))[key]
    return prompts, pattern_QK[None]


@pytest.mark.parametrize(
    ("tokens", "answer", "strongest", "expected"),
    [
        ([10, 11, 12, 13], [10, 11, 12, 13], [4, 5, 6, 7], 1.0),
        ([10, 11, 12, 13], [10, 11, 12, 13], [4, 5, 6, 0], 0.75),
        ([10, 11, 12, 13], [10, 11, 12, 13], [5, 6, 7, 4], 0.0),  # in the needle, but not at the token produced
        ([10, 11, 12, 13], [10, 10, 10, 10], [4, 4, 4, 4], 0.25),  # four times the same token counts once
        ([10, 10, 10, 13], [10, 13, 10, 10], [4, 7, 5, 6], 1.0),  # a needle of two distinct tokens
        ([10, 10, 10, 13], [10, 20, 20, 20], [6, 7, 7, 7], 0.5),
        ([10, 11, 12, 94], [94, 11, 12, 10], [8, 5, 6, 4], 0.75),  # the same token just behind the needle is no part of it
        ([93, 11, 12, 13], [93, 11, 12, 13], [3, 5, 6, 7], 0.75),  # nor just before
    ],
)
def test_retrieval_by_hand(tokens, answer, strongest, expected):
    assert of_one_head("retrieval", *one_needle(tokens, answer, strongest))[0] == pytest.approx(expected)


def test_a_head_with_a_stronger_sink_retrieves_nothing_by_wu_but_by_mass():
    prompts, pattern_BQK = one_needle([10, 11], [10, 11], [4, 5])
    pattern_BQK = 0.49 * pattern_BQK + 0.51 * np.eye(len(pattern_BQK[0]))[0]
    assert of_one_head("retrieval", prompts, pattern_BQK)[0] == 0
    assert of_one_head("semantic_retrieval", prompts, pattern_BQK)[0] == pytest.approx(0.49)


def test_semantic_retrieval_is_the_mass_on_the_needle_weighted_by_how_often_it_holds_the_token():
    def one(prompts, b, p):
        ids, (start, end), total, weights = prompts.ids_BT[b], prompts.spans["needle"][b], 0.0, 0
        for row in prompts.rows["answer"][b]:
            for place in range(start, end):
                if ids[place] == ids[row + 1]:
                    total += sum(p[row, key] for key in range(start, end))
                    weights += 1
        return total / weights

    held_to("semantic_retrieval", one)


def test_semantic_retrieval_of_an_answer_that_the_needle_does_not_hold_is_0():
    assert of_one_head("semantic_retrieval", *one_needle([10, 11], [20, 21], [4, 5]))[0] == 0


def test_semantic_retrieval_of_a_single_matching_token_is_its_mass():
    assert of_one_head("semantic_retrieval", *one_needle([10, 11], [10, 21], [4, 5]))[0] == pytest.approx(1)
    assert of_one_head("semantic_retrieval", *one_needle([10, 10], [10, 21], [4, 0]))[0] == pytest.approx(1)


def test_reasoning_retrieval_counts_mass_in_the_span_among_as_many_strongest_keys_as_it_is_long():
    def one(prompts, b, p):
        (start, end), rows = prompts.spans["needle"][b], prompts.rows["answer"][b]
        values = []
        for row in rows:
            strongest = sorted(range(row + 1), key=lambda key: -p[row, key])[: end - start]
            values.append(sum(p[row, key] for key in strongest if start <= key < end))
        return np.mean(values)

    held_to("reasoning_retrieval", one)


def qrhead(prompts, pair, p):
    """QRHead: mean over query rows, less the empty query's, without tokens at or below the mean − 2 standard deviations."""
    start, end = prompts.spans["gold"][pair]
    rows = prompts.rows["query"][pair]
    gain = [np.mean([p[0][row, key] for row in rows]) - np.mean([p[1][row, key] for row in rows]) for key in range(start, end)]
    mean = sum(gain) / len(gain)
    std = (sum((value - mean) ** 2 for value in gain) / (len(gain) - 1)) ** 0.5
    return sum(value for value in gain if value > mean - 2 * std)


def test_query_focused_retrieval_is_the_calibrated_mass_on_the_gold_document():
    for seed in range(6):
        prompts = documents(np.random.default_rng(seed))
        pattern_BLHQK = random_patterns(prompts, seed)
        expected = [[[qrhead(prompts, pair, pattern_BLHQK[pair : pair + 2, layer, head]) for head in range(3)] for layer in range(2)] for pair in (0, 2)]
        np.testing.assert_allclose(score("query_focused_retrieval", prompts, pattern_BLHQK), expected, atol=1e-6)


def gains(values):
    """A pair of prompts whose head gains these values on the tokens of the gold document."""
    size = len(values)
    prompts = Prompts(np.zeros((2, size + 3), np.int64), {"gold": np.array([[1, 1 + size]] * 2)}, {"query": np.array([[size + 2]] * 2)})
    pattern_BQK = np.zeros((2, size + 3, size + 3))
    pattern_BQK[0, -1, 1 : 1 + size] = np.maximum(values, 0)
    pattern_BQK[1, -1, 1 : 1 + size] = np.maximum(np.negative(values), 0)
    return prompts, pattern_BQK


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.05] * 9 + [-0.2], 0.45),  # far below: left out
        ([0.05] * 3 + [-0.2], -0.05),  # of so few tokens none lies two deviations below the mean
        ([0.01] * 9 + [0.9], 0.99),  # far above: stays
        ([-0.02] * 10, -0.2),  # negative ones stay too
        ([0.0625] * 10, 0.625),  # equal parts: rounding drops nothing
        ([0.1] * 7, 0.7),
        ([1 / 13] * 13, 1.0),
    ],
)
def test_query_focused_retrieval_by_hand(values, expected):
    assert of_one_head("query_focused_retrieval", *gains(values))[0] == pytest.approx(expected, abs=1e-6)


def test_the_cut_is_at_two_deviations_of_the_sample():
    values = np.array([0.01, 0.02, 0.03, 0.02, 0.02, 0.01, 0.03, 0.02])
    for below, kept in ((1.99, True), (2.01, False)):
        # The last value is put so many deviations below the mean of all, found by bisection, so that the cut is met from both sides.
        low, high = -1.0, 0.0
        for _ in range(60):
            middle = (low + high) / 2
            every = np.append(values, middle)
            low, high = (middle, high) if every.mean() - below * every.std(ddof=1) > middle else (low, middle)
        assert of_one_head("query_focused_retrieval", *gains([*values, low]))[0] == pytest.approx(values.sum() + (low if kept else 0), abs=1e-6)


def test_the_ideal_query_head_attends_to_the_document_only_when_asked():
    prompts = documents(np.random.default_rng(0))
    asked, empty = (PROBES["query_focused_retrieval"].ideal(prompts, b) for b in (2, 3))
    start, end = prompts.spans["gold"][2]
    np.testing.assert_allclose(asked[55, start:end], 1 / 13)
    assert empty[55, 0] == 1
    np.testing.assert_allclose(asked[49, [9, 19, 29, 39]], 0.25)  # a row before the query rests


# ---------------------------------------------------------------- which needle tests count


def predicted(choice, prompts):
    choice = np.array(choice)
    return Capture(CARD, prompts, {_needle.PREDICTED: NextTokenValue(choice, np.zeros(choice.shape))})


def test_more_than_half_of_the_gold_tokens_must_be_the_models_own_choice():
    ids = np.array([[7, 8, 9, 20, 21, 22, 23]] * 5)
    prompts = Prompts(ids, {"needle": np.array([[0, 2]] * 5)}, {"answer": np.array([[2, 3, 4, 5]] * 5)})
    choices = [[20, 21, 22, 23], [20, 21, 22, 0], [20, 21, 0, 0], [0, 0, 0, 0], [0, 21, 22, 23]]
    assert _needle.answered(predicted(choices, prompts)).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize(("response", "passes"), [("red green blue", True), ("red green", False), ("", False), ("RED, green; Blue!", True)])
def test_more_than_half_of_the_words_must_be_in_the_response(response, passes):
    prompts = Prompts(np.array([[1, 2, 3]]), facts=({"answer": "Red green blue white.", "response": response},))
    assert _needle.answered(Capture(CARD, prompts, {})).tolist() == [passes]


def test_the_produced_token_is_the_one_behind_the_row():
    prompts = Prompts(np.array([[5, 6, 7, 8], [9, 10, 11, 12]]), rows={"answer": np.array([[0, 2], [1, 2]])})
    assert _needle.emitted(prompts).tolist() == [[6, 8], [11, 12]]


def test_the_copier_goes_through_the_places_of_a_token_one_by_one_and_starts_over():
    prompts, _ = one_needle([10, 11, 10], [10, 11, 10, 10, 30], [0] * 5)
    pattern_QK = _needle.copier(prompts, 0)
    strongest = [int(pattern_QK[row].argmax()) for row in prompts.rows["answer"][0][:4]]
    assert strongest == [4, 5, 6, 4]
    np.testing.assert_allclose(pattern_QK[9:13].max(-1), 1)
    np.testing.assert_allclose(pattern_QK[13, [2, 5, 7, 10]], 0.25)  # 30 is not in the needle: the row at 13 // 5 and so on rests


def test_the_copier_attends_within_the_needle_only():
    prompts, _ = one_needle([10, 11], [93, 94], [0, 0])
    assert _needle.copier(prompts, 0)[prompts.rows["answer"][0]].max() == 0.25


# ---------------------------------------------------------------- copying, from weights


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.eye(4), 1),
        (-np.eye(4), -1),
        ([[0, -1], [1, 0]], 0),  # a rotation by 90°: eigenvalues ±i
        (np.zeros((3, 3)), 0),
        (0.01 * np.eye(3), 1),
        (np.diag([3.0, -1.0]), 0.5),
        ([[1, 5], [0, 1]], 1),
        ([[1, -1], [1, 1]], 2**-0.5),  # 1 ± i
    ],
)
def test_the_eigenvalue_ratio_by_hand(matrix, expected):
    matrix_HEE = torch.tensor(np.array([matrix, np.asarray(matrix) * 7.0]), dtype=torch.float32)
    np.testing.assert_allclose(copying.eigenvalue_ratio(matrix_HEE), expected, atol=1e-6)


def test_the_ideal_pair_copies():
    value, output = PROBES["copying"].ideal(5)
    assert value.shape == output.shape == (5, 5)
    assert copying.eigenvalue_ratio((output @ value)[None]).tolist() == [1]


def full_circuits(model, order=None):
    """Every head's V × V matrix W_E·W_V·W_O·W_U from the module's own parameters, in float64, with all norms' linear parts."""
    state = {name: weight.double() for name, weight in model.hf.state_dict().items()}
    shape, kind = model.shape, model.config.model_type
    size, group = shape.d_head, shape.n_heads // shape.n_kv_heads
    gpt2 = kind == "gpt2"
    embedding = state["transformer.wte.weight" if gpt2 else "model.embed_tokens.weight"]
    unembedding = state["lm_head.weight"] - state["lm_head.weight"].mean(0, keepdim=True)
    embedding = embedding if order is None else embedding[order]

    def norm(row, name):
        if gpt2:
            return (row - row.mean(-1, keepdim=True)) * state[f"transformer.{name}.weight"]
        return row * (state[f"model.{name}.weight"] + (1 if kind == "gemma2" else 0))

    for layer in range(shape.n_layers):
        for head in range(shape.n_heads):
            at, kv = slice(head * size, (head + 1) * size), slice(head // group * size, (head // group + 1) * size)
            if gpt2:
                value = state[f"transformer.h.{layer}.attn.c_attn.weight"][:, 2 * shape.d_model :][:, at]
                output = state[f"transformer.h.{layer}.attn.c_proj.weight"][at]
            else:
                value = state[f"model.layers.{layer}.self_attn.v_proj.weight"][kv].T
                output = state[f"model.layers.{layer}.self_attn.o_proj.weight"][:, at].T
            written = norm(embedding, f"h.{layer}.ln_1" if gpt2 else f"layers.{layer}.input_layernorm") @ value @ output
            yield norm(written, "ln_f" if gpt2 else "norm") @ unembedding.T


def brute_copying(model, order=None):
    eigenvalues = [torch.linalg.eigvals(circuit) for circuit in full_circuits(model, order)]
    ratios = [float(each.sum().real / each.abs().sum()) for each in eigenvalues]
    return np.array(ratios).reshape(1, model.shape.n_layers, model.shape.n_heads)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_copying_equals_the_eigenvalues_of_the_whole_circuit_from_token_to_token(architecture):
    model = random_model(architecture, seed=1, vocab_size=70)
    score_NLH = PROBES["copying"].score(Weights(model.weights, model.shape))
    assert score_NLH.dtype == float
    np.testing.assert_allclose(score_NLH, brute_copying(model), atol=2e-4)


def test_the_control_of_copying_deals_embeddings_to_other_tokens():
    model = random_model("gpt2", seed=1, vocab_size=70)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(5))
    shuffled = PROBES["copying"].score(Weights(model.weights, model.shape, 5))
    np.testing.assert_allclose(shuffled, brute_copying(model, order), atol=2e-4)
    assert np.abs(shuffled - PROBES["copying"].score(Weights(model.weights, model.shape))).max() > 0.05


def test_what_is_added_to_all_logits_alike_does_not_change_copying():
    model, moved = (random_model("llama", seed=2, tie_word_embeddings=False) for _ in range(2))
    moved.hf.lm_head.weight.data += 3 * torch.randn(48, generator=torch.Generator().manual_seed(0))
    scores = [PROBES["copying"].score(Weights(each.weights, each.shape)) for each in (model, moved)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


def test_reads_that_probes_share_are_equal():
    assert PROBES["duplicate_token"].reads == PROBES["razor_echo"].reads == (Mass(at="duplicate", rows="repeat"),)
