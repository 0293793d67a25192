"""Is it found who says what under a chat template? Made-up templates with known characters, loops as oracles, and what is refused."""

import json
from functools import partial

import numpy as np
import pytest
from eager import tiny

from workbench.captures import capture
from workbench.conversations import Conversations, conversation, lacks_template, load_conversation, rendered
from workbench.errors import InputError
from workbench.groups import plan, suited
from workbench.measure import score
from workbench.reads import Pattern
from workbench.sinks import turns
from workbench.tiny import byte_tokenizer, random_model

PLAIN = "<s>{% for m in messages %}[{{ m.role }}]\n{{ m.content }}</s>\n{% endfor %}"
TRIMS = "{% for m in messages %}<{{ m.role }}> {{ m.content | trim }}\n{% endfor %}"
SYSTEM = "You say yes.\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TALK = [
    {"role": "user", "content": "yes"},
    {"role": "assistant", "content": "yes."},
    {"role": "user", "content": "no\n\nyes"},
    {"role": "assistant", "content": "maybe"},
]


def speaking(template):
    model = random_model("llama")
    model.tokenizer = byte_tokenizer()
    model.tokenizer.chat_template = template
    return model


def said(model, prompts, places):
    """The texts of key ranges or rows."""
    return [model.tokenizer.decode(prompts.ids_BT[0, place]) for place in places]


@pytest.mark.parametrize("template", [PLAIN, TRIMS, SYSTEM], ids=["plain", "trims", "system"])
def test_what_users_said_and_answers_are_found_wherever_the_template_puts_them(template):
    model = speaking(template)
    prompts = conversation(model, TALK)
    assert said(model, prompts, [slice(*span[0]) for span in prompts.spans.values()]) == ["yes", "no", "yes"]  # line breaks are nobody's
    assert said(model, prompts, [row[0] for row in prompts.rows.values()]) == ["yes.", "maybe"]
    assert list(prompts.spans) == ["user 0", "user 1", "user 2"]
    assert prompts.facts[0] == {"chat": True, "responses": 2, "user_spans": 3, "user_tokens": 8}
    assert model.tokenizer.decode(prompts.ids_BT[0]) == rendered(model, TALK)[0]


def test_text_that_a_template_trims_is_found_without_its_spaces():
    model = speaking(TRIMS)
    prompts = conversation(model, [{"role": "user", "content": "  hi \n"}, {"role": "assistant", "content": "\nho"}])
    assert said(model, prompts, [slice(*span[0]) for span in prompts.spans.values()]) == ["hi"]
    assert said(model, prompts, [row[0] for row in prompts.rows.values()]) == ["ho"]


def test_special_tokens_in_a_message_are_nobodys():
    model = speaking(PLAIN)
    prompts = conversation(model, [{"role": "user", "content": "a</s>b"}, {"role": "assistant", "content": "c"}])
    assert said(model, prompts, [slice(*span[0]) for span in prompts.spans.values()]) == ["a", "b"]


def test_a_token_that_reaches_beyond_a_message_is_nobodys():
    class Pairs:
        """Two characters to a token."""

        is_fast, chat_template, all_special_ids = True, "yes", []

        def apply_chat_template(self, messages, **_):
            return "".join(f"<{message['content']}>" for message in messages)

        def __call__(self, text, **_):
            ranges = [(place, min(place + 2, len(text))) for place in range(0, len(text), 2)]
            return {"input_ids": [3] * len(ranges), "offset_mapping": ranges}

    model = random_model("llama")
    model.tokenizer = Pairs()
    prompts = conversation(model, [{"role": "user", "content": "abcde"}, {"role": "assistant", "content": "fgh"}])  # <a bc de >< fg h>
    assert {name: span.tolist() for name, span in prompts.spans.items()} == {"user 0": [[1, 3]]}
    assert prompts.rows["response 0"].tolist() == [[4]]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, TALK, "tiny-llama has no chat template, which says where a user speaks; take a chat model"),
        ("{{ messages[0].content }}", TALK, "leaves messages out or repeats them"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", TALK, "leaves messages out or repeats them"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", TALK, "changes what messages say"),
        ("{{ raise_exception('no such role') }}", TALK, "does not take this conversation: no such role"),
        (PLAIN, TALK[:1], "needs a user's message with text, and an assistant's answer with text behind it"),
        (PLAIN, TALK[1:2], "needs a user's message with text"),
        (PLAIN, [{"role": "user", "content": "\n"}, TALK[1]], "needs a user's message with text"),
        (PLAIN, [TALK[0], {"role": "assistant", "content": ""}], "needs a user's message with text"),
    ],
)
def test_what_cannot_be_asked_is_refused(template, messages, message):
    with pytest.raises(InputError, match=message):
        conversation(speaking(template), messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "cannot read a conversation"),
        ("{}", "a conversation is a list of messages"),
        ("[]", "a conversation is a list of messages"),
        ('[{"role": "user", "content": "a"}, {"role": "user"}]', "message 2: a message has the texts 'role' and 'content'"),
        ('[{"role": "user", "content": 3}]', "message 1: a message has the texts"),
    ],
)
def test_files_that_hold_no_conversation_are_refused(tmp_path, content, message):
    (path := tmp_path / "talk.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_conversation(path)
    path.write_text(json.dumps(TALK), encoding="utf-8")
    assert load_conversation(path) == TALK


def test_a_model_without_a_template_is_not_asked_unless_by_name():
    model = tiny("llama")
    assert lacks_template(model) is not None
    groups, left = suited(plan(["user_attention", "induction"]), model, None)
    assert [group.name for group in groups] == ["induction"]
    assert left["user_attention"]["status"].startswith("not asked: tiny-llama has no chat template")
    for asked in (partial(score, model, ["user_attention"]), partial(Conversations().build, model, 0)):
        with pytest.raises(InputError, match="has no chat template"):
            asked()
    kept, none = suited(plan(["user_attention"]), speaking(PLAIN), None)
    assert (len(kept), none) == (1, {})


def test_the_shipped_conversations_ask_about_what_was_just_said():
    model = speaking(PLAIN)
    made = Conversations(count=2).build(model, 0)
    assert len(made) == 2
    assert made[0].facts[0] == {"chat": True, "needle": "dolores"}
    (question,), (answer,) = (said(model, made[0], [place]) for place in (slice(*made[0].spans["user"][0]), made[0].rows["response"][0]))
    assert question.startswith(answer)
    assert question.endswith("What is the best thing to do in San Francisco?")


@pytest.mark.parametrize("way", [{}, {"implementation": "reference"}, {"chunk": 9}], ids=["whole", "reference", "chunks"])
def test_the_score_of_a_turn_is_that_of_loops(way):
    model = speaking(PLAIN)
    prompts, found = conversation(model, TALK), turns(model, TALK, **way)
    pattern_LHQK = capture(model, prompts, [Pattern()], implementation="reference")[Pattern()][0]
    keys = [key for span in prompts.spans.values() for key in range(*span[0])]
    for turn, rows in enumerate(prompts.rows.values()):
        for layer in range(2):
            user = np.array([[sum(pattern_LHQK[layer, head, row, key] for key in keys) for head in range(6)] for row in rows[0]])
            row = found[(found["turn"] == turn) & (found["layer"] == layer)].iloc[0]
            assert row["score"] == pytest.approx(user.max(1).mean(), abs=1e-5)
            assert row["head"] == user.mean(0).argmax()
            assert row["context_dependent"] == (user.max(1).mean() > 0.6)
    assert found[found["paper"]]["layer"].unique().tolist() == [1]
    assert turns(model, TALK, layer=1)["layer"].tolist() == [1, 1]
