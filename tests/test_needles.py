"""Do needles, questions, gold answers and documents lie where the prompts say they lie?"""

import json
from dataclasses import replace

import numpy as np
import pytest
from eager import tiny

from workbench.captures import Capture
from workbench.documents import INSTRUCTION, DocumentSearch
from workbench.errors import InputError
from workbench.matching import word_recall
from workbench.models import HFModel
from workbench.needle_files import Needle, load_needles
from workbench.needles import NeedleTests
from workbench.probes import _needle
from workbench.prompts import Prompts
from workbench.reads import NextTokenValue
from workbench.tiny import byte_tokenizer, random_model

SENTENCES = [f"In year {year} the river rose by {year * 7 % 91} feet." for year in range(200)]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture(scope="module")
def hay(tmp_path_factory):
    path = tmp_path_factory.mktemp("hay") / "hay.txt"
    path.write_text(" ".join(SENTENCES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def with_tokenizer(model, change):
    tokenizer = byte_tokenizer()
    change(tokenizer)
    return HFModel(model.name, model.origin, model.hf, tokenizer)


@pytest.fixture(scope="module")
def chat(model):
    return with_tokenizer(model, lambda tokenizer: setattr(tokenizer, "chat_template", TEMPLATE))


@pytest.fixture
def tests(hay):
    return NeedleTests(lengths_=(450, 700), depths=(0.0, 0.5, 1.0), per_cell=2, haystack=hay)


def decoded(model, prompts, start=0, end=None, row=0):
    return model.tokenizer.decode(prompts.ids_BT[row, start:end], skip_special_tokens=True)


def gold(prompts):
    """The tokens behind the answer rows."""
    return prompts.ids_BT[0, prompts.rows["answer"][0] + 1]


# ---------------------------------------------------------------- tests on needles


@pytest.mark.parametrize("source", ["needles", "reasoning"])
def test_the_span_is_the_answer_to_the_letter(model, tests, source):
    known = {needle.id: needle for needle in load_needles(source)}
    for prompts in replace(tests, needles=source).build(model, 0):
        needle = known[prompts.facts[0]["needle"]]
        start, end = prompts.span("needle")[0]
        assert decoded(model, prompts, start, end) == needle.answer
        assert decoded(model, prompts, 0, prompts.decode_from).count(needle.needle) == 1


def test_the_rows_are_those_that_produce_the_gold_answer(model, tests):
    for prompts in tests.build(model, 0):
        assert model.tokenizer.decode(gold(prompts)) == " " + prompts.facts[0]["answer"]
        assert decoded(model, prompts, 0, prompts.rows["answer"][0, 0] + 1).endswith("\nAnswer:")
        assert prompts.rows["answer"][0, -1] == prompts.length - 2
        assert prompts.decode_from == prompts.rows["answer"][0, 0]


def test_a_test_is_as_long_as_asked_within_a_few_tokens(model, tests):
    for prompts in tests.build(model, 0):
        assert prompts.facts[0]["length"] - 8 <= prompts.length <= prompts.facts[0]["length"]


def test_the_question_stands_behind_the_text(model, tests):
    needle = load_needles("needles")[0]
    text = decoded(model, tests.build(model, 0)[0])
    assert text.endswith(f"\n\nBased on the content of the book, Question: {needle.question}\nAnswer: {needle.answer}")


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_the_needle_stands_near_its_depth_between_whole_sentences(model, hay, depth):
    known = {needle.id: needle for needle in load_needles("needles")}
    for prompts in NeedleTests(lengths_=(1200,), depths=(depth,), per_cell=None, haystack=hay).build(model, 0):
        context = decoded(model, prompts).split("\n\nBased on")[0]
        before, after = context.split(known[prompts.facts[0]["needle"]].needle)
        assert before == "" or before.startswith("In year ")
        assert depth in (0, 1) or before.endswith(" feet. ")
        assert not after or after.startswith(" In year ")
        room = len(before) + len(after)
        assert abs(len(before) - depth * room) <= len(SENTENCES[-1]) / 2 + 3
        assert (before == "") == (depth == 0)
        assert (after == "") == (depth == 1)
        assert abs(prompts.facts[0]["depth_found"] - len(before) / room) < 0.02


def test_stretches_come_from_different_places_of_the_haystack(model, tests):
    begins = {decoded(model, prompts).split(".")[0] for prompts in tests.build(model, 0) if prompts.facts[0]["depth"] == 1}
    assert len(begins) == 4


def test_facts_tell_everything_about_a_test(model, tests, hay):
    prompts = tests.build(model, 0)[0]
    from workbench.recipes import haystack_text

    answer = load_needles("needles")[0].answer
    assert dict(prompts.facts[0]) == {
        "needle": "dolores", "length": 450, "depth": 0.0, "depth_found": 0.0, "answer": answer, "decisive": (), "decisive_tokens": (),
        "haystack": haystack_text(hay)[1], "chat": False, "absent": False,
    }  # fmt: skip


def test_cells_come_length_by_length_and_draw_the_needles_in_turn(model, tests):
    facts = [prompts.facts[0] for prompts in tests.build(model, 0)]
    assert [(fact["length"], fact["depth"]) for fact in facts] == [(length, depth) for length in (450, 700) for depth in (0.0, 0.5, 1.0) for _ in range(2)]
    names = [needle.id for needle in load_needles("needles")]
    assert [fact["needle"] for fact in facts] == names + names[1:] + names[:1]  # one further at each length, so that every needle comes to every depth
    assert tests.lengths(model) == [fact["length"] for fact in facts]


def test_without_per_cell_every_needle_is_hidden_in_every_cell(model, tests):
    every = replace(tests, per_cell=None, depths=(0.5,))
    names = [needle.id for needle in load_needles("needles")]
    assert [prompts.facts[0]["needle"] for prompts in every.build(model, 0)] == names * 2
    assert every.lengths(model) == [450] * 6 + [700] * 6


def test_the_same_seed_makes_the_same_tests_and_another_others(model, tests):
    first, again, other = ([prompts.fingerprint for prompts in tests.build(model, seed)] for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_the_control_hides_another_needle_and_asks_as_before(model, tests):
    control = replace(tests, teacher_forced=False).control()
    assert control == replace(tests, absent=True, depths=(0.5,), per_cell=2)
    known = load_needles("needles")
    for number, prompts in zip((0, 1, 3, 4), control.build(model, 0), strict=True):
        asked, hidden = known[number], known[number + 1]
        start, end = prompts.span("needle")[0]
        assert decoded(model, prompts, start, end) == hidden.needle
        assert asked.needle not in decoded(model, prompts, 0, prompts.rows["answer"][0, 0])
        assert asked.question in decoded(model, prompts)
        assert model.tokenizer.decode(gold(prompts)) == " " + asked.answer
        assert prompts.facts[0]["absent"]


def test_the_last_needles_control_is_the_first(model, tests):
    (*_, last) = replace(tests, absent=True, per_cell=None, lengths_=(500,), depths=(0.5,)).build(model, 0)
    start, end = last.span("needle")[0]
    assert decoded(model, last, start, end) == load_needles("needles")[0].needle


def test_a_test_that_the_model_answers_itself_ends_where_the_answer_begins(model, tests):
    forced, free = (replace(tests, teacher_forced=forced).build(model, 0)[0] for forced in (True, False))
    np.testing.assert_array_equal(free.ids_BT[0], forced.ids_BT[0, : free.length])
    assert decoded(model, free).endswith("\nAnswer:")
    assert not free.rows
    assert free.decode_from == free.length - 1 == forced.decode_from
    assert free.spans["needle"].tolist() == forced.spans["needle"].tolist()


def test_bos_stands_in_front_once_where_there_is_one(model, tests):
    assert (tests.build(model, 0)[0].ids_BT == 1).sum() == 1
    bare = with_tokenizer(model, lambda tokenizer: setattr(tokenizer, "bos_token", None))
    prompts = tests.build(bare, 0)[0]
    assert (prompts.ids_BT != 1).all()
    start, end = prompts.span("needle")[0]
    assert decoded(bare, prompts, start, end) == prompts.facts[0]["answer"]


def test_a_chat_model_is_asked_in_its_template(chat, tests):
    for prompts in tests.build(chat, 0):
        text = chat.tokenizer.decode(prompts.ids_BT[0])
        answer = prompts.facts[0]["answer"]
        assert text.startswith("<s><user><book>")
        assert text.endswith(f"\nAnswer:</user><bot>{answer}")
        assert (prompts.ids_BT == 1).sum() == 1
        assert chat.tokenizer.decode(gold(prompts)) == answer  # behind the template's end, without a space
        start, end = prompts.span("needle")[0]
        assert decoded(chat, prompts, start, end) == answer
        assert prompts.facts[0]["chat"]
        assert prompts.facts[0]["length"] - 8 <= prompts.length <= prompts.facts[0]["length"]


def test_the_template_can_be_left_out_but_not_misspelt(chat, tests):
    bare = replace(tests, template="none").build(chat, 0)[0]
    assert decoded(chat, bare).startswith(load_needles("needles")[0].needle)
    assert not bare.facts[0]["chat"]
    with pytest.raises(InputError, match="unknown template 'chat'; choose one of auto, none"):
        replace(tests, template="chat").build(chat, 0)


def test_a_needle_that_does_not_fit_the_test_is_refused(model, hay):
    with pytest.raises(InputError, match=r"needle 'dolores' with its question takes 298 tokens; a test of 200 cannot hold it"):
        NeedleTests(lengths_=(200,), haystack=hay).build(model, 0)
    with pytest.raises(InputError, match="a test of 40 cannot hold it"):
        NeedleTests(lengths_=(900, 40)).check(model)  # which reads no haystack
    NeedleTests(lengths_=(900,)).check(model)


def test_the_shortest_test_has_no_hay(model, hay):
    needle = load_needles("needles")[0]
    frame = f"{needle.needle}\n\nBased on the content of the book, Question: {needle.question}\nAnswer: {needle.answer}"
    exact = NeedleTests(lengths_=(len(frame) + 1,), depths=(0.5,), per_cell=1, haystack=hay)
    (prompts,) = exact.build(model, 0)
    assert decoded(model, prompts) == frame
    with pytest.raises(InputError, match="cannot hold it"):
        replace(exact, lengths_=(len(frame),)).build(model, 0)


def test_a_test_may_be_longer_than_the_context(hay):
    """The capture says so in its provenance, or refuses it where positions are learned."""
    model = random_model("llama", max_position_embeddings=500)
    assert 500 < NeedleTests(lengths_=(600,), depths=(0.5,), per_cell=1, haystack=hay).build(model, 0)[0].length <= 600


def test_a_haystack_too_short_empty_missing_or_not_text_is_refused(model, tests, tmp_path):
    (tmp_path / "short").write_text("Too short. ", encoding="utf-8")
    (tmp_path / "empty").write_text("", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xff")
    for name, message in {"short": "the haystack has 11 tokens; .* are needed", "empty": "is empty", "binary": "cannot read", "none": "cannot read"}.items():
        with pytest.raises(InputError, match=message):
            replace(tests, haystack=tmp_path / name).build(model, 0)


@pytest.mark.parametrize("wrong", [{"depths": (float("nan"),)}, {"depths": ()}, {"lengths_": (0,)}, {"depths": (-0.1,)}, {"depths": (1.1,)}])
def test_impossible_lengths_and_depths_are_refused(wrong):
    with pytest.raises(InputError, match="lengths are tokens above 0 and depths lie in 0–1"):
        NeedleTests(**wrong)


# ---------------------------------------------------------------- needle files

GOOD = {"id": "a", "needle": "The key is under the mat.", "question": "Where is the key?", "answer": "under the mat"}
OTHER = {"needle": "The cat sleeps.", "question": "Who sleeps?"}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_user_can_bring_needles(tmp_path, model, hay):
    path = write(tmp_path / "mine.jsonl", GOOD, "", OTHER)
    assert load_needles(path) == [
        Needle("a", "The key is under the mat.", "Where is the key?", "under the mat"),
        Needle("The cat sleeps.", "The cat sleeps.", "Who sleeps?", "The cat sleeps."),
    ]
    prompts = NeedleTests(needles=path, lengths_=(300,), depths=(0.5,), haystack=hay).build(model, 0)[0]
    start, end = prompts.span("needle")[0]
    assert decoded(model, prompts, start, end) == "under the mat"


@pytest.mark.parametrize("bad", [{"colour": "red"}, {"question": None}, {"needle": " "}, {"question": 3}, {"answer": 1}, {"id": 1}])
def test_a_line_that_is_no_needle_is_named(tmp_path, bad):
    path = write(tmp_path / "mine.jsonl", GOOD, {**GOOD, **bad})
    with pytest.raises(InputError, match=r"mine\.jsonl, needle 2: a needle has the texts 'needle' and 'question'"):
        load_needles(path)


@pytest.mark.parametrize("answer", ["under the carpet", "e"])
def test_an_answer_that_is_not_exactly_once_in_the_needle_is_refused(tmp_path, answer):
    with pytest.raises(InputError, match=r"needle 1: the answer must stand exactly once in the needle"):
        load_needles(write(tmp_path / "mine.jsonl", {**GOOD, "answer": answer}, OTHER))


@pytest.mark.parametrize("lines", [["{"], ["[1, 2]"], ["3"], ["null"]])
def test_a_file_that_is_not_json_objects_is_refused(tmp_path, lines):
    with pytest.raises(InputError, match=r"cannot read needles from .*mine\.jsonl|mine\.jsonl, needle 1"):
        load_needles(write(tmp_path / "mine.jsonl", *lines))


def test_a_missing_file_and_one_with_a_single_needle_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read needles from"):
        load_needles(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="has 1 needles; at least two are needed"):
        load_needles(write(tmp_path / "one.jsonl", GOOD))


# ---------------------------------------------------------------- how much of the answer was said


@pytest.mark.parametrize(
    ("answer", "response", "recall"),
    [
        ("a b c d", "a b c d", 1),
        ("a b c d", "d c", 0.5),
        ("A b, c!", "a-B  c.", 1),  # neither case nor punctuation counts
        ("a a a b", "a b", 0.5),  # each word as often as it occurs
        ("a b", "a a a b b", 1),
        ("a b", "", 0),
        ("grandfather's", "grandfather s", 1),
        ("Dolores Park", "doloresPark", 0),
    ],
)
def test_recall_is_the_share_of_the_answers_words(answer, response, recall):
    assert word_recall(answer, response) == recall


# ---------------------------------------------------------------- documents


@pytest.fixture
def search(hay):
    return DocumentSearch(documents=3, tokens=120, count=7, haystack=hay)


def test_both_prompts_of_a_pair_are_equal_but_for_the_query(model, search):
    for prompts in search.build(model, 0):
        asked, empty = prompts.ids_BT
        question = next(needle.question for needle in load_needles("needles") if needle.id == prompts.facts[0]["needle"])
        first = prompts.length - len(question)
        np.testing.assert_array_equal(asked[:first], empty[:first])
        assert model.tokenizer.decode(asked[first:]) == question
        assert model.tokenizer.decode(empty[first:]) == (" N/A" * 40)[: len(question)]
        assert [fact["query"] for fact in prompts.facts] == [True, False]


def test_documents_lie_where_their_spans_say_and_gold_holds_the_needle(model, search):
    known = {needle.id: needle for needle in load_needles("needles")}
    for prompts in search.build(model, 0):
        needle, place = known[prompts.facts[0]["needle"]].needle, prompts.facts[0]["gold"]
        texts = [decoded(model, prompts, *prompts.span(f"doc{number}")[0]) for number in range(3)]
        assert [needle in text for text in texts] == [number == place for number in range(3)]
        assert all(text.startswith(f"[{number + 1}] ") for number, text in enumerate(texts))
        assert decoded(model, prompts).startswith(" Here are some paragraphs:\n\n" + "\n\n".join(texts) + f"\n\n{INSTRUCTION}\n\nQuery: ")
        assert prompts.spans["gold"].tolist() == prompts.spans[f"doc{place}"].tolist()
        assert (prompts.spans["gold"][0] == prompts.spans["gold"][1]).all()


def test_query_rows_run_from_the_instruction_to_the_end(model, search):
    prompts = search.build(model, 0)[0]
    rows = prompts.rows["query"]
    assert (rows[0] == rows[1]).all()
    assert rows[0, -1] == prompts.length - 1
    assert decoded(model, prompts, rows[0, 0]).startswith(INSTRUCTION)
    assert len(rows[0]) == prompts.length - rows[0, 0]


def test_samples_take_the_needles_in_turn_and_put_the_gold_document_anywhere(model, search):
    built = search.build(model, 0)
    names = [needle.id for needle in load_needles("needles")]
    assert [prompts.facts[0]["needle"] for prompts in built] == [*names, names[0]]
    assert {prompts.facts[0]["gold"] for prompts in built} == {0, 1, 2}
    assert len(search.lengths(model)) == sum(prompts.count for prompts in built)


def test_the_control_of_a_search_holds_the_answer_to_another_query(model, search):
    control = search.control()
    assert control == replace(search, absent=True, count=2)
    assert replace(search, count=3).control().count == 2
    known = load_needles("needles")
    for number, prompts in enumerate(control.build(model, 0)):
        text = decoded(model, prompts)
        assert known[number].question in text
        assert known[number].needle not in text
        assert known[number + 1].needle in decoded(model, prompts, *prompts.span("gold")[0])


def test_searches_repeat_with_the_seed(model, search):
    first, again, other = ([prompts.fingerprint for prompts in search.build(model, seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_chat_model_searches_in_its_template(chat, search):
    prompts = search.build(chat, 0)[0]
    text = chat.tokenizer.decode(prompts.ids_BT[0])
    assert text.startswith("<s><user> Here are some paragraphs:")
    assert text.endswith("</user><bot>")
    asked, empty = (decoded(chat, prompts, prompts.rows["query"][0, 0], row=row) for row in (0, 1))
    assert asked.startswith(INSTRUCTION)
    assert empty.startswith(f"{INSTRUCTION}\n\nQuery:  N/A N/A")
    assert empty.endswith("</user><bot>")


def test_the_words_that_decide_stand_in_neither_question_nor_rest():
    reasoning = {needle.id: needle for needle in load_needles("reasoning")}
    assert reasoning["taller"].decisive == ("stone", "cottage")
    assert reasoning["faster"].decisive == ("teapot",)
    assert load_needles("needles")[0].decisive == ()


def test_the_tokens_that_decide_begin_the_words_that_decide(model, hay):
    recipe = NeedleTests(needles="reasoning", lengths_=(400,), depths=(0.5,), per_cell=2, haystack=hay)
    for prompts in recipe.build(model, 0):
        answer = " " + prompts.facts[0]["answer"]
        assert [answer.encode()[place : place + 1].decode() for place in prompts.facts[0]["decisive_tokens"]] == [
            word[0] for word in prompts.facts[0]["decisive"]
        ]


@pytest.mark.parametrize(
    ("response", "passes"), [("the stone cottage is taller", True), ("the stone house is taller", False), ("taller is the COTTAGE of Stone", True)]
)
def test_the_words_that_decide_must_be_in_the_response(response, passes):
    facts = {"answer": "the stone cottage is taller", "decisive": ("stone", "cottage"), "response": response}
    assert _needle.answered(Capture(tiny("llama").card, Prompts(np.array([[1, 2]]), facts=(facts,)), {})).tolist() == [passes]


def test_the_tokens_that_decide_must_be_the_models_own_choice():
    """Three of four are right in each of the tests."""
    prompts = Prompts(
        np.array([[7, 8, 20, 21, 22, 23]] * 4),
        rows={"answer": np.array([[1, 2, 3, 4]] * 4)},
        facts=({"decisive_tokens": (1, 2)}, {"decisive_tokens": (1, 2)}, {"decisive_tokens": ()}, {}),
    )
    choice = np.array([[20, 21, 22, 0], [20, 0, 22, 23], [20, 0, 22, 23], [20, 0, 22, 23]])
    seen = Capture(tiny("llama").card, prompts, {_needle.PREDICTED: NextTokenValue(choice, np.zeros((4, 4)))})
    assert _needle.answered(seen).tolist() == [True, False, True, True]


def test_the_null_of_reasoning_is_as_wide_as_the_answer(model, hay):
    recipe = NeedleTests(needles="reasoning", lengths_=(400,), depths=(0.5,), per_cell=2, haystack=hay, absent=True)
    known = load_needles("reasoning")
    start, end = recipe.build(model, 0)[0].span("needle")[0]
    assert decoded(model, recipe.build(model, 0)[0], start, end) == known[1].answer


def test_the_papers_lengths_fill_the_context(model, hay):
    recipe = NeedleTests(lengths_=(), depths=(0.5,), per_cell=1, haystack=hay)
    sizes = recipe.lengths(model)
    assert (len(sizes), sizes[0], sizes[-1]) == (20, 1000, model.max_length - 64)
