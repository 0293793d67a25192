"""Are questions what their files say, are faults told by line, and do options reach the model by their first tokens?"""

import json
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench import tiny
from workbench.errors import InputError
from workbench.questions import TASKS, Question, batches, categories, encode, feed, load_questions, questions_of, split
from workbench.sequences import CLASSES

GOOD = {"prompt": "The sky is (", "options": ["blue", "green"], "answer": "blue"}


@pytest.fixture(scope="module")
def model():
    return tiny.random_model("llama", seed=2)


def written(tmp_path, *rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_file_of_questions(tmp_path):
    path = written(tmp_path, GOOD, "", {**GOOD, "answer": 1, "task": "colours"})
    first, second = load_questions(path)
    assert first == Question("The sky is (", ("blue", "green"), 0, "mine", f"{path}, line 1")
    assert (second.answer, second.task, second.where) == (1, "colours", f"{path}, line 3")
    assert questions_of(str(path)) == [first, second]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "options": ["b", "c"]}, "'answer' missing"),
        ({"answer": 0}, "'prompt' and 'options' missing"),
        ({**GOOD, "label": 1}, "'label' is not known"),
        ({**GOOD, "prompt": " "}, "'prompt' is a text"),
        ({**GOOD, "task": 3}, "'task' is a text"),
        ({**GOOD, "options": ["blue"]}, "two or more texts"),
        ({**GOOD, "options": "blue"}, "two or more texts"),
        ({**GOOD, "options": ["blue", 3]}, "two or more texts"),
        ({**GOOD, "options": ["blue", "blue"]}, "'blue' stands twice"),
        ({**GOOD, "answer": "red"}, "'red' is none of the options 'blue', 'green'"),
        ({**GOOD, "answer": 2}, "2 is none of the 2 options"),
        ({**GOOD, "answer": -1}, "-1 is none"),
        ({**GOOD, "answer": True}, "True is none"),
        ([1], "no JSON object"),
        ("{", "not JSON"),
    ],
)
def test_faults_are_told_by_file_and_line(tmp_path, row, said):
    path = written(tmp_path, GOOD, row)
    with pytest.raises(InputError, match=r"mine\.jsonl, line 2: ") as caught:
        load_questions(path)
    assert said in str(caught.value)


def test_files_that_have_no_questions(tmp_path):
    with pytest.raises(InputError, match="has no questions"):
        load_questions(written(tmp_path, ""))
    with pytest.raises(InputError, match=r"cannot read questions from .*no\.jsonl: No such file"):
        questions_of(str(tmp_path / "no.jsonl"))
    with pytest.raises(InputError, match="choose one of category, follows, recall, a file"):
        questions_of("sums")


# ---- options and tokens


def test_options_are_their_first_tokens_behind_the_prompt(model):
    one = encode(model, Question("It is (", ("blue", "green"), 0, "t"))
    text = model.tokenizer.decode(one.ids)
    assert text.endswith("It is (")
    assert [model.tokenizer.decode([token]) for token in one.first] == ["b", "g"]
    assert Question("It is", ("blue", " green"), 0, "t").continuations() == ("It is blue", "It is green")
    assert Question("It is\n", ("blue",), 0, "t").continuations() == ("It is\nblue",)
    with pytest.raises(InputError, match="at least one token each"):
        encode(replace(model, tokenizer=lambda _: {"input_ids": [1]}), Question("a", ("b", "c"), 0, "t"))
    with pytest.raises(InputError, match="no tokenizer"):
        encode(replace(model, tokenizer=None), Question("a", ("b", "c"), 0, "t"))


def test_options_with_the_same_first_token_are_named(model, tmp_path):
    question = load_questions(written(tmp_path, GOOD, {**GOOD, "options": ["red", "blue", "brown"]}))[1]
    with pytest.raises(InputError, match=r"mine\.jsonl, line 2: the options 'blue' and 'brown' both begin with the token 'b'"):
        encode(model, question)


def test_a_prompt_that_an_option_changes_ends_before_the_change(model):
    """A tokenizer that joins a space to the word behind it, as most do."""

    def joining(text):
        return {"input_ids": [sum(map(ord, part)) for part in text.replace(" ", "\0 ").split("\0") if part]}

    one = encode(replace(model, tokenizer=joining), Question("It is ", ("blue", "red"), 0, "t"))
    assert one.ids == tuple(joining("It is")["input_ids"])
    assert one.first == tuple(joining(f"It is {word}")["input_ids"][-1] for word in ("blue", "red"))


def test_batches_answer_as_single_questions_do(model):
    questions = [Question("x" * length + " (", ("A", "B", "C")[: 2 + length % 2], length % 2, "t") for length in (3, 9, 4, 12, 7)]
    encoded = [encode(model, question) for question in questions]
    found = {}
    parts = batches(encoded, [4, 2, 0, 3, 1], 30)
    assert sorted(number for batch in parts for number in batch.numbers) == [0, 1, 2, 3, 4]
    assert len(parts) > 1
    assert any(batch.prompts.padding is not None for batch in parts)
    for batch in parts:
        assert batch.prompts.ids_BT.size <= 30 or batch.prompts.count == 1
        ids, how = feed(model, batch.prompts)
        with torch.inference_mode():
            logits = model.hf(ids, **how).logits[:, -1]
        for place, number in enumerate(batch.numbers):
            found[number] = batch.loss(logits)[place], batch.right(logits)[place], batch.options(logits)[place]
    for number, one in enumerate(encoded):
        with torch.inference_mode():
            logit = model.hf(torch.tensor([one.ids])).logits[0, -1, list(one.first)].log_softmax(-1)
        assert found[number][0] == pytest.approx(-float(logit[one.question.answer]), abs=1e-4)
        assert found[number][1] == (int(logit.argmax()) == one.question.answer)
        assert torch.allclose(found[number][2][: len(one.first)], logit, atol=1e-4)
    some = parts[0].of([1, 0, 1])
    assert some.numbers == tuple(parts[0].numbers[place] for place in (1, 0, 1))


# ---- splits and tasks


def test_splits_are_disjoint_and_drawn_by_seed():
    questions = [Question(f"q{number % 50}", ("a", "b"), 0, "t") for number in range(80)]
    parts = split(questions, 20, 25, seed=1)
    prompts = [[one.prompt for one in part] for part in (parts.calibration, parts.held_out)]
    assert (len(set(prompts[0])), len(set(prompts[1])), len(set(prompts[0] + prompts[1]))) == (20, 25, 45)
    assert split(questions, 20, 25, seed=1) == parts != split(questions, 20, 25, seed=2)
    few = split(questions, 100, 300, seed=0)
    assert (len(few.calibration), len(few.held_out)) == (12, 38)
    assert len(split(questions[:2], 100, 1, seed=0).held_out) == 1
    with pytest.raises(InputError, match="at least two"):
        split(questions[:1], 1, 1, seed=0)
    with pytest.raises(InputError, match="at least one question"):
        split(questions, 5, 0, seed=0)


@pytest.mark.parametrize("task", TASKS)
def test_tasks_of_the_package(task):
    questions = questions_of(task)
    assert questions == questions_of(task)
    assert len({question.prompt for question in questions}) == len(questions) >= 200
    assert all(question.task == task and len(set(question.options)) == len(question.options) >= 4 for question in questions)
    places = Counter(question.answer for question in questions)
    assert max(places.values()) < 2 * len(questions) / min(len(question.options) for question in questions)
    assert all(120 <= len(question.prompt) <= 400 for question in questions)


def test_answers_of_the_tasks_are_right():
    kind_of = {word: kind for kind, words in categories().items() if kind != "colour" for word in words}
    asked = [question.prompt.rpartition("Word: ")[2].partition(". Kind:")[0] for question in questions_of("category")]
    assert [kind_of[word] for word in asked] == [question.options[question.answer] for question in questions_of("category")]
    assert len(set(asked)) == len(asked)
    assert all(f"Word: {word}. Kind: " not in question.prompt for word, question in zip(asked, questions_of("category"), strict=True))
    for question in questions_of("follows"):
        way, word = question.prompt.rpartition("Right ")[2].removesuffix(" comes").split(" ", 1)
        members = next(words.members for name, words in CLASSES.items() if not name.startswith("numbers") and word in words.members)
        assert members.index(question.options[question.answer]) - members.index(word) == (1 if way == "after" else -1)
        assert word in question.options
    for question in questions_of("recall"):
        *told, last = question.prompt.split(". ")
        (mine,) = [sentence for sentence in told if any(sentence.startswith(name) and name in last for name in [sentence.split()[0]])]
        assert question.options[question.answer] in mine
        assert all(option in question.prompt for option in question.options)


@pytest.mark.model
def test_the_default_model_tells_the_options_of_all_tasks_apart(smollm2):
    for task in TASKS:
        lengths = [len(encode(smollm2, question).ids) for question in questions_of(task)]
        assert np.mean(lengths) >= 34


# ---- the hub


@pytest.fixture
def hub(monkeypatch):
    """A hub that has one dataset."""
    rows = [
        {"text": "It rained.", "label": 1, "choices": {"text": ["dry", "wet"], "label": ["A", "B"]}, "key": "B"},
        {"text": "Sun.", "label": 0, "choices": {"text": ["dry", "wet"], "label": ["A", "B"]}, "key": "A"},
    ]

    def load_dataset(name, config=None, *, split):
        if name != "who/weather":
            raise ConnectionError("cannot reach the hub\nat all")
        assert (config, split) in {(None, "train"), ("en", "test")}
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


@pytest.mark.usefixtures("hub")
def test_a_dataset_of_the_hub():
    first, second = questions_of("hf:who/weather:train?prompt={text}%0AIt was&options=dry|wet&answer=label")
    assert first == Question("It rained.\nIt was", ("dry", "wet"), 1, "weather", "who/weather, row 0")
    assert second.answer == 0
    named = questions_of("hf:who/weather:en:test?prompt=text&options=choices.text&answer=key&labels=choices.label")
    assert [(one.prompt, one.options, one.answer) for one in named] == [("It rained.", ("dry", "wet"), 1), ("Sun.", ("dry", "wet"), 0)]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:who/weather?prompt=text&options=a|b&answer=label", "is given as hf:owner/name"),
        ("hf:who/weather:train?prompt=text&answer=label", "is given as hf:owner/name"),
        ("hf:who/weather:train?prompt=text&options=a|b&answer=label&shots=3", "unknown part of a hub source 'shots'"),
        ("hf:who/weather:train?prompt={title}&options=a|b&answer=label", "columns: text, label"),
        ("hf:who/weather:train?prompt=text&options=choices.word&answer=label", "row 0: there is no column 'choices.word'"),
        ("hf:who/weather:train?prompt=text&options=a|b&answer=key", "row 0: 'answer' 'B' is none"),
        ("hf:who/else:train?prompt=text&options=a|b&answer=key", "cannot load who/else .train.: ConnectionError: cannot reach the hub; a file"),
    ],
)
def test_what_the_hub_cannot_give(source, said):
    with pytest.raises(InputError, match=said):
        questions_of(source)


def test_without_the_hubs_package_files_still_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="need the package datasets"):
        questions_of("hf:who/weather:train?prompt=text&options=a|b&answer=label")
