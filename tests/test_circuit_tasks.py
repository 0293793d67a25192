"""Are the tasks of circuits what they say? Their prompts by hand, what is dropped and why, and the measures against sums written out."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workbench.circuits.tasks import METRICS, TASKS, Item, Pairs, TaskSet, items_of, load_items, prepare, task_of
from workbench.circuits.tasks.encoding import JOINED, SAME, SEVERAL, SHARED, UNEQUAL, UNKNOWN, encode, known
from workbench.circuits.tasks.knowledge_conflict import RELATIONS
from workbench.errors import InputError
from workbench.tiny import random_model

SOURCES = [
    source for name, task in TASKS.items() for source in [name, *(f"{name}:{option}={value}" for option, values in task.options.items() for value in values)]
]


def some(source: str, count: int = 40, seed: int = 0) -> list[Item]:
    return list(islice(items_of(source, seed), count))


def word_tokenizer(items: list[Item]) -> PreTrainedTokenizerFast:
    """One token per word, two digits, or sign; the words are those of the items."""
    pieces = pre_tokenizers.Split(Regex(r" ?[^\W\d]+| ?\d\d| ?\d|\n| ?[^\w\s]| "), "isolated")
    texts = [text for item in items for text in (item.clean, item.corrupted, *item.right, *item.wrong, item.facts.get("query", ""))]
    words = sorted({piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)})
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pieces, decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.fixture(scope="module")
def words():
    """A random model with a token for each word of every task's first items."""
    tokenizer = word_tokenizer([item for source in SOURCES for item in some(source, 400)])
    return replace(random_model("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def byte():
    return random_model("llama")


@pytest.fixture
def lines(tmp_path):
    def write(*rows) -> str:
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


def row(clean="ab", corrupted="cd", right="x", wrong="y", **more) -> dict:
    return {"clean": clean, "corrupted": corrupted, "right": right, "wrong": wrong, **more}


def differing(item: Item) -> list[tuple[str, str]]:
    return [pair for pair in zip(item.clean.split(), item.corrupted.split(), strict=True) if pair[0] != pair[1]]


class TestEveryTask:
    @pytest.mark.parametrize("source", SOURCES)
    def test_the_seed_decides(self, source):
        assert some(source) == some(source)
        assert some(source) != some(source, seed=1)

    @pytest.mark.parametrize("source", SOURCES)
    def test_items_are_pairs(self, source):
        for item in some(source):
            assert item.clean != item.corrupted
            assert not item.clean.endswith(" ")
            assert item.template

    @pytest.mark.parametrize("source", SOURCES)
    def test_items_fit_a_tokenizer_of_words(self, words, source):
        def keep(_, items):
            return [""] * len(items)

        made = prepare(words, source, 16, keep=keep)
        assert len(made) == 16
        assert len({item.clean for item in made.items}) == 16
        for pairs in made.pairs:
            assert pairs.clean_BT.shape == pairs.corrupted_BT.shape == (len(pairs), pairs.length)
            assert not pairs.clean_BT.flags.writeable
            assert all((clean != corrupted).any() for clean, corrupted in zip(pairs.clean_BT, pairs.corrupted_BT, strict=True))
            assert pairs.metric == task_of(source).metric

    @pytest.mark.parametrize("name", TASKS)
    def test_it_says_what_it_is(self, name):
        assert TASKS[name].name == name
        assert len(TASKS[name].title) <= 160
        assert TASKS[name].source
        assert TASKS[name].metric in METRICS[:2]


class TestIndirectObjects:
    @pytest.mark.parametrize(("corruption", "count"), [("abc", 3), ("repeat", 1), ("swap", 3)])
    def test_only_names_change(self, corruption, count):
        for item in some(f"ioi:corruption={corruption}"):
            io, subject = item.facts["io"], item.facts["subject"]
            assert (item.right, item.wrong) == ((f" {io}",), (f" {subject}",))
            assert (item.clean.count(io), item.clean.count(subject)) == (1, 2)
            assert len(differing(item)) == count
            if corruption == "swap":
                assert (item.corrupted.count(io), item.corrupted.count(subject)) == (2, 1)
            else:
                assert all(item.corrupted.count(after.strip(",.")) == 1 for _, after in differing(item))

    def test_both_orders_and_many_templates(self):
        items = some("ioi", 200)
        assert len({item.template for item in items}) >= 10
        for item in items:
            first, second = item.clean.index(item.facts["io"]), item.clean.index(item.facts["subject"])
            assert (first < second) == (item.facts["order"] == "ABBA")
        assert 60 < Counter(item.facts["order"] for item in items)["ABBA"] < 140


class TestGreaterThan:
    def test_later_years(self):
        for item in some("greater_than"):
            year = int(item.facts["year"])
            assert [int(text) for text in item.right] == list(range(year + 1, 100))
            assert [int(text) for text in item.wrong] == list(range(year + 1))
            century = item.facts["century"]
            assert differing(item) == [(f"{century}{year:02d}", f"{century}01")]
            assert item.clean.endswith(f"to the year {century}")

    def test_later_decades(self):
        for item in some("greater_than_digit"):
            decade = int(item.facts["decade"])
            assert f"{item.facts['century']}{decade}" in item.clean
            assert {int(text) for text in item.right} == {digit for digit in range(10) if digit > decade} != set()
            assert {int(text) for text in item.wrong} == {digit for digit in range(10) if digit < decade} != set()


class TestOtherTasks:
    @pytest.mark.parametrize(("corruption", "definition", "doc"), [("random_random", 3, 2), ("random_def", 3, 0), ("random_doc", 0, 2)])
    def test_docstring(self, corruption, definition, doc):
        for item in some(f"docstring:corruption={corruption}"):
            inside = item.clean[item.clean.index("(self, ") + 7 : item.clean.index(")")].split(", ")
            described = [line.split()[1].strip(":") for line in item.clean.splitlines() if ": " in line and ":param" in line]
            assert described == inside[2:4]
            assert item.right == (f" {inside[4]}",)
            assert {*item.wrong} == {f" {name}" for name in inside} - {*item.right}
            changed = [":param" in line for line, other in zip(item.clean.splitlines(), item.corrupted.splitlines(), strict=True) if line != other]
            assert changed == [False] * (definition > 0) + [True] * doc
            assert len(differing(item)) == definition + doc

    def test_pronouns_take_turns(self):
        items = some("gendered_pronoun")
        assert [item.right[0] for item in items] == [" she", " he"] * 20
        assert all(len(differing(item)) == 1 for item in items)

    def test_numbers_take_turns(self):
        items = some("subject_verb_agreement")
        assert [item.facts["number"] for item in items] == ["singular", "plural"] * 20
        assert all(len(differing(item)) == 1 for item in items)

    def test_colours(self):
        for item in some("colored_objects"):
            question = item.clean.splitlines()[2]
            asked = question[question.index("What color is the ") :].split()[4].strip("?")
            assert f"{item.right[0].lower()} {asked}" in question
            assert all(colour.lower() in question for colour in item.wrong)
            assert len(differing(item)) == 1
        assert Counter(item.facts["asked"] for item in some("colored_objects", 30)) == {"1": 10, "2": 10, "3": 10}

    def test_induction(self):
        for item in some("induction"):
            words = item.clean.split()[1:]
            cut = len(words) - 10
            assert words[10:] == words[:cut]
            assert item.right == (f" {words[cut]}",)
            assert len({*item.corrupted.split()}) == len(item.corrupted.split())
            assert item.corrupted.split()[11:] == words[10:]

    def test_successors(self):
        first = next(item for item in some("successor") if item.clean == "Monday, Tuesday, Wednesday," or item.template == "days")
        days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        shown = first.clean.strip(",").split(", ")
        assert first.right == (f" {days[(days.index(shown[-1]) + 1) % 7]}",)
        for item in some("successor"):
            shown, mixed = item.clean.strip(",").split(", "), item.corrupted.strip(",").split(", ")
            assert sorted(shown) == sorted(mixed)
            assert mixed[-1] != shown[-1]
            place = {word: number for number, word in enumerate(shown)}
            assert all(place[after] != place[before] + 1 for before, after in pairwise(mixed))

    @pytest.mark.parametrize("answer", ["given", "known"])
    def test_choices_are_balanced(self, answer):
        items = some(f"multiple_choice:answer={answer}", 24)
        assert {*Counter((item.facts["letter"], item.facts["corrupted_letter"]) for item in items).values()} == {2}
        for item in items:
            options = {line[0]: line[3:] for line in item.clean.splitlines()[-5:-1]}
            others = {line[0]: line[3:] for line in item.corrupted.splitlines()[-5:-1]}
            assert item.right == (f" {item.facts['letter']}",)
            assert len(item.wrong) == 3
            assert options[item.facts["letter"]] == others[item.facts["corrupted_letter"]]
            assert item.clean.splitlines()[:-5] == item.corrupted.splitlines()[:-5]
            if answer == "given":
                assert f"is {options[item.facts['letter']]}." in item.clean.splitlines()[-6]
            solved = [line.split()[1] for line in item.clean.splitlines() if line.startswith("Answer: ")]
            assert sorted(solved) == list("ABCD")


class TestKnowledgeConflicts:
    def test_the_data(self):
        assert len(RELATIONS) >= 5
        for relation in RELATIONS.values():
            assert len({subject for subject, _ in relation.facts}) == len(relation.facts) >= 40
            assert "{subject}" in relation.query
            assert "{object}" not in relation.query
            assert all(mark in relation.passage for mark in ("{subject}", "{object}"))
            assert not {*relation.others} & {thing for _, thing in relation.facts}

    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize("form", ["substitution", "coherent"])
    def test_corrupted_prompts_favour_neither(self, relation, form):
        facts = dict(RELATIONS[relation].facts)
        for item in some(f"knowledge_conflict:relation={relation},format={form}", 100):
            memory, context, subject = item.right[0][1:], item.wrong[0][1:], item.facts["subject"]
            assert facts[subject] == memory != context == item.facts["context"]
            assert item.facts["query"] == RELATIONS[relation].query.format(subject=subject)
            assert (item.facts["relation"], item.facts["format"]) == (relation, form)
            assert f" {context}" in item.clean or item.clean.startswith(context)
            other = next(one for one in facts if RELATIONS[relation].question.format(subject=one) in item.corrupted) if form == "coherent" else None
            assert other is None or facts[other] not in {memory, context}
            closed = item.facts["query"] if form == "substitution" else f"Question: {RELATIONS[relation].question.format(subject=subject)}\nAnswer:"
            assert item.facts["closed"] == closed
            assert item.clean.endswith(closed)
            if form == "substitution":
                assert item.clean.endswith(f" {context}. {item.facts['query']}")
                assert f" {context}." not in item.corrupted
                assert f" {memory}." not in item.corrupted

    def test_one_side_may_be_corrupted(self):
        for item in some("knowledge_conflict:corruption=subject"):
            assert f" {item.facts['context']}." in item.corrupted
            assert item.facts["query"] not in item.corrupted
        for item in some("knowledge_conflict:corruption=context"):
            assert f" {item.facts['context']}." not in item.corrupted
            assert item.corrupted.endswith(item.facts["query"])

    def test_all_relations_take_turns(self):
        assert [item.facts["relation"] for item in some("knowledge_conflict:relation=all", 14)] == [*RELATIONS] * 2

    def test_known_is_what_comes_first_without_a_context(self, words):
        items = [item for relation in RELATIONS for item in some(f"knowledge_conflict:relation={relation}", 12)]
        tokenizer = words.tokenizer
        best = [int(words.hf(torch.tensor([tokenizer(item.facts["query"])["input_ids"]])).logits[0, -1].argmax()) for item in items]
        assert known(words, items) == ["" if token == tokenizer(item.right[0])["input_ids"][0] else UNKNOWN for item, token in zip(items, best, strict=True)]
        said = [replace(item, right=(tokenizer.decode([token]),), wrong=("@",)) for item, token in zip(items, best, strict=True)]
        answers = [item for item in said if item.right[0][0] == " " and item.right[0] != " "]
        assert answers
        assert known(words, answers) == [""] * len(answers)
        assert known(words, [replace(items[0], facts={})]) == [""]

    def test_what_is_not_known_is_dropped(self, words):
        with pytest.raises(InputError, match=r"0 of 4 items fit tiny-llama, dropped \d+ for a fact that the model does not know"):
            prepare(words, "knowledge_conflict", 4)


class TestPrepare:
    def test_what_does_not_fit_is_dropped_by_reason(self, byte, lines):
        path = lines(
            row(),
            row(),
            row("cd", "ab", right="xx"),
            row("ef", "gh", "x", ["y", "xx"]),
            row("ij", "kl", ["é", "p"]),
            row("mn", "mn"),
            row("op", "qr", ["a", "b"], ["c"]),
        )
        made = prepare(byte, path, 10)
        assert dict(made.dropped) == {SEVERAL: 3, SAME: 1, "a prompt that was drawn before": 1}
        assert {item.clean for item in made.items} == {"ab", "op"}
        (pairs,) = made.pairs
        b = [item.clean for item in pairs.items].index("op")
        first = {text: byte.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in "opqrabc"}
        assert pairs.clean_BT[b].tolist() == [1, first["o"], first["p"]]
        assert pairs.corrupted_BT[b].tolist() == [1, first["q"], first["r"]]
        assert (pairs.right[b], pairs.wrong[b]) == ((first["a"], first["b"]), (first["c"],))
        assert (made.task, made.seed, pairs.metric, pairs.length) == (path, 0, "logit_difference", 3)

    def test_one_token_may_not_be_right_and_wrong(self, words):
        assert encode(words, Item("Words: sun", "Words: key", (" unheardof",), (" unseen",))) == SHARED
        assert encode(words, Item("Words: sun", "Words: key sun", (" key",), (" sun",))) == UNEQUAL

    def test_an_answer_that_joins_the_prompt_counts_if_it_spells(self, words):
        assert len(words.tokenizer("the sunday")["input_ids"]) == 2  # " sunday" is no " sun" with a "day" behind it
        fits = encode(words, Item("the sun", "the key", ("day",), (" oil",)))
        assert [words.tokenizer.decode(list(ids)) for ids in (fits.right, fits.wrong)] == ["day", " oil"]
        assert encode(words, Item("the sun", "the key", ("rise",), (" oil",))) == JOINED

    def test_unequal_lengths_in_a_file_name_the_line(self, byte, lines):
        path = lines(row(), "", row("abc", "de"))
        with pytest.raises(InputError, match=r"mine\.jsonl, line 3: the clean prompt has 4 tokens and the corrupted one 3"):
            prepare(byte, path, 1)

    def test_too_few(self, byte, lines):
        with pytest.raises(InputError, match=r"ioi: 0 of 5 items fit tiny-llama, dropped \d+ for .*; choose another task or another model"):
            prepare(byte, "ioi", 5)
        with pytest.raises(InputError, match="dropped 1 for an answer of several tokens"):
            prepare(byte, lines(row(right="xx")), 5)
        with pytest.raises(InputError, match="above 0"):
            prepare(byte, "ioi", 0)
        with pytest.raises(InputError, match="no tokenizer"):
            prepare(replace(byte, tokenizer=None), "ioi", 1)

    def test_a_task_that_runs_out_says_how_many_there_are(self, words):
        with pytest.raises(InputError, match=r"successor: (\d+) of 1000 items fit .* for a prompt that was drawn before.*; ask for \1 or fewer"):
            prepare(words, "successor", 1000)

    def test_what_is_kept_can_be_chosen(self, words):
        made = prepare(words, "ioi", 8, keep=lambda _, items: ["" if item.facts["order"] == "ABBA" else "BABA" for item in items])
        assert {item.facts["order"] for item in made.items} == {"ABBA"}
        assert made.dropped["BABA"] > 0

    def test_the_seed_decides(self, words):
        ids = [[pairs.clean_BT.tolist() for pairs in prepare(words, "ioi", 12, seed).pairs] for seed in (3, 3, 4)]
        assert ids[0] == ids[1] != ids[2]

    def test_groups_have_one_length_each(self, words):
        made = prepare(words, "ioi", 40)
        assert len({pairs.length for pairs in made.pairs}) == len(made.pairs) > 2
        assert [len(pairs) for pairs in made.pairs] == sorted(map(len, made.pairs), reverse=True)
        assert len(made) == len(made.items) == 40


class TestSources:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("ioj", r"unknown task 'ioj'; there are: FILE\.jsonl, colored_objects, .*, ioi, "),
            ("ioi:curruption=abc", "unknown option of the task ioi: 'curruption'; there are: corruption"),
            ("ioi:corruption=abd", "unknown corruption of the task ioi: 'abd'; there are: abc, repeat, swap"),
            ("ioi:corruption", "written once each, as corruption=abc"),
            ("ioi:corruption=abc,corruption=swap", "written once each"),
            ("induction:length=3", "the task induction has no options"),
            ("knowledge_conflict:relation=capital,format=poem", "there are: coherent, substitution"),
            ("nowhere.jsonl", "cannot read items from nowhere.jsonl: No such file"),
        ],
    )
    def test_what_does_not_exist(self, source, message):
        with pytest.raises(InputError, match=message):
            items_of(source, 0)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "not JSON"),
            ("[1]", "this is no JSON object"),
            ({"clean": "a"}, "'corrupted' and 'right' and 'wrong' missing"),
            (row(metric="kl"), "'metric' is not known"),
            (row(clean=3), "'clean' is a text, got 3"),
            (row(clean=" "), "prompts that are not empty"),
            (row(right=[]), "at least one answer each"),
            (row(right=[1]), "'right' is a text or a list of texts"),
            (row(right="y"), "'y' is both right and wrong"),
            (row(facts={"a": 1}), "'facts' is an object of texts"),
        ],
    )
    def test_a_bad_line_is_named(self, lines, line, message):
        with pytest.raises(InputError, match=rf"mine\.jsonl, line 2: .*{message}"):
            load_items(lines(row(), line))

    def test_a_file(self, lines):
        path = lines(row(template="t", facts={"kind": "k"}), *(row(f"a{number}") for number in range(20)))
        first = load_items(path)[0]
        assert (first.right, first.template, first.facts, first.where) == (("x",), "t", {"kind": "k"}, f"{path}, line 1")
        orders = [[item.clean for item in items_of(path, seed)] for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]
        assert sorted(orders[0]) == sorted(orders[2])
        with pytest.raises(InputError, match="has no items"):
            load_items(lines(""))


def pairs_of(right, wrong, metric="logit_difference", templates=None) -> Pairs:
    count = len(right)
    items = tuple(Item(f"c{number}", f"d{number}", ("r",), ("w",), template=(templates or ["t"] * count)[number]) for number in range(count))
    return Pairs("test", metric, items, np.zeros((count, 3), np.int64), np.ones((count, 3), np.int64), right, wrong)


class TestMeasure:
    RIGHT, WRONG = ((0,), (1, 2)), ((1, 2, 3), (4,))

    def test_against_sums(self):
        pairs = pairs_of(self.RIGHT, self.WRONG)
        logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
        reference = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
        p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum(-1, keepdims=True) for x in (logits, reference))
        for b in range(2):
            right, wrong = list(self.RIGHT[b]), list(self.WRONG[b])
            wanted = {
                "logit_difference": np.mean([logits[b, a] for a in right]) - np.mean([logits[b, a] for a in wrong]),
                "probability_difference": sum(p[b, a] for a in right) - sum(p[b, a] for a in wrong),
                "log_probability": np.log(sum(p[b, a] for a in right)),
                "kl": -sum(q[b, v] * np.log(q[b, v] / p[b, v]) for v in range(5)),
            }
            for metric in METRICS:
                assert pairs.measure(logits, metric, reference)[b].item() == pytest.approx(wanted[metric], abs=1e-5), metric
        assert torch.equal(pairs.measure(logits), pairs.measure(logits, "logit_difference"))
        assert pairs.measure(logits.bfloat16()).dtype == torch.float32
        assert pairs.measure(logits, "kl", logits).abs().max() < 1e-6

    @pytest.mark.parametrize("metric", METRICS)
    def test_it_has_a_gradient(self, metric):
        logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float32).requires_grad_()
        pairs_of(self.RIGHT, self.WRONG).measure(logits, metric, torch.zeros(2, 5)).sum().backward()
        assert torch.isfinite(logits.grad).all()
        assert logits.grad.abs().sum() > 0

    def test_what_it_refuses(self):
        pairs = pairs_of(self.RIGHT, self.WRONG)
        with pytest.raises(InputError, match="unknown metric 'f1'; there are: kl, log_probability"):
            pairs.measure(torch.zeros(2, 5), "f1")
        with pytest.raises(InputError, match="reference_BV"):
            pairs.measure(torch.zeros(2, 5), "kl")
        with pytest.raises(InputError, match="unknown metric"):
            replace(pairs, metric="f1")
        with pytest.raises(InputError, match="one shape"):
            replace(pairs, right=((0,),))

    def test_rows(self):
        pairs = pairs_of(self.RIGHT, self.WRONG, templates=["a", "b"]).rows([1])
        assert (len(pairs), pairs.templates, pairs.right, pairs.wrong) == (1, ("b",), ((1, 2),), ((4,),))
        assert len(pairs.rows(np.array([0, 0]))) == 2

    def test_accuracy_and_chance(self):
        pairs = pairs_of(self.RIGHT, self.WRONG)
        made = TaskSet("test", (pairs, replace(pairs, metric="probability_difference")), {}, 0)
        logits = torch.tensor([[1.0, 0, 0, 2, 0], [0, -9, 3, 0, 2]])  # the first is wrong: token 3 is above token 0
        assert pairs.correct(logits).tolist() == [False, True]
        assert made.accuracy([logits, logits]) == 0.5
        assert made.chance == pytest.approx((1 / 4 + 2 / 3 + 0.5 + 0.5) / 4)
        with pytest.raises(InputError, match="each of 2 lengths"):
            made.accuracy([logits])


class TestSplit:
    def test_templates_are_held_out(self, words):
        made = prepare(words, "ioi", 80)
        first, second = made.split(0.5, by="template", seed=1)
        assert not {item.template for item in first.items} & {item.template for item in second.items}
        assert len(first) + len(second) == 80
        assert len({item.template for item in first.items}) == len({item.template for item in second.items}) == 7

    def test_items_are_held_out(self, words):
        made = prepare(words, "ioi", 80)
        first, second = made.split(0.75, seed=1)
        assert (len(first), len(second)) == (60, 20)
        assert not {item.clean for item in first.items} & {item.clean for item in second.items}
        assert [item.clean for item in made.split(0.75, seed=1)[0].items] == [item.clean for item in first.items]
        assert [item.clean for item in made.split(0.75, seed=2)[0].items] != [item.clean for item in first.items]
        for part in (first, second):
            assert all(pairs.length == len(ids) for pairs in part.pairs for ids in pairs.clean_BT)

    def test_facts_are_held_out(self, words):
        first, second = prepare(words, "ioi", 40).split(0.5, by="order")
        assert {item.facts["order"] for item in first.items} != {item.facts["order"] for item in second.items}

    def test_what_it_refuses(self, words):
        made = prepare(words, "induction", 8)
        with pytest.raises(InputError, match="unknown part to split by 'mood'; there are: item, template"):
            made.split(0.5, by="mood")
        with pytest.raises(InputError, match="between 0 and 1"):
            made.split(1.0)
        with pytest.raises(InputError, match="at least two"):
            prepare(words, "greater_than", 8).split(0.5, by="template")


@pytest.mark.model
class TestOnTheDefaultModel:
    @staticmethod
    def measured(model, source, count=32):
        made = prepare(model, source, count)
        with torch.no_grad():
            ends = [[model.hf(torch.tensor(ids_BT), logits_to_keep=1).logits[:, -1] for ids_BT in (pairs.clean_BT, pairs.corrupted_BT)] for pairs in made.pairs]
        means = [float(torch.cat([pairs.measure(end[side]) for pairs, end in zip(made.pairs, ends, strict=True)]).mean()) for side in (0, 1)]
        return means, [made.accuracy([end[side] for end in ends]) for side in (0, 1)]

    def test_indirect_objects(self, smollm2):
        (clean, corrupted), (right, _) = self.measured(smollm2, "ioi", 64)
        assert clean == pytest.approx(4.6, abs=0.6)
        assert abs(corrupted) < 1
        assert right > 0.9

    @pytest.mark.parametrize("source", ["greater_than_digit", "docstring", "gendered_pronoun", "subject_verb_agreement", "induction", "successor"])
    def test_the_corruption_takes_the_behaviour_away(self, smollm2, source):
        (clean, corrupted), (right, after) = self.measured(smollm2, source)
        assert clean > corrupted + 1
        assert right > 0.7
        assert after < right - 0.3

    def test_years_of_several_tokens_name_another_task(self, smollm2):
        with pytest.raises(InputError, match=r"dropped \d+ for an answer of several tokens; choose greater_than_digit or another model"):
            prepare(smollm2, "greater_than", 4)

    def test_conflicts_are_of_known_facts(self, smollm2):
        made = prepare(smollm2, "knowledge_conflict", 24)
        assert made.dropped[UNKNOWN] > 0
        assert known(smollm2, made.items) == [""] * 24
        assert len({item.facts["subject"] for item in made.items}) > 12
        assert all(len({*item.right, *item.wrong}) == 2 for item in made.items)
