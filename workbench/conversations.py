"""How much of a conversation's user does the model look at? Prompts under the tokenizer's own chat template, with what users said as spans.

Which tokens are whose is found from the template: it is rendered once with the messages and once with marks in their places. No token id is written down.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.errors import InputError
from workbench.models import Model
from workbench.needle_files import load_needles
from workbench.needles import DATE
from workbench.prompts import Prompts, special_ids

USER, RESPONSE = "user", "response"
"""The names of the span of what the user said, and of the rows of the answer; of several, each with its number, as in `user 0`."""

Message = Mapping[str, str]


def lacks_template(model: Model) -> str | None:
    """Why a model cannot be asked under a chat template; None if it can."""
    if not getattr(model.tokenizer, "chat_template", None):
        return f"{model.card.name} has no chat template, which says where a user speaks; take a chat model, or a tokenizer with a template"
    if not getattr(model.tokenizer, "is_fast", False):
        return f"{model.card.name} has no fast tokenizer, which is needed to find messages in tokens by character"
    return None


def conversation(model: Model, messages: Sequence[Message]) -> Prompts:
    """One conversation as a prompt: spans `user 0`, `user 1`, … of the users' tokens, and rows `response 0`, … of each answer's tokens.

    Tokens of the template, special tokens and line breaks belong to nobody (as in 2411.02688), nor do tokens that reach beyond a message; so what a user said
    may be several spans. Raises `InputError` for a model without a chat template, a template that changes what messages say, a conversation
    without a user's message or an answer behind it, and one in which they have no tokens.
    """
    if reason := lacks_template(model):
        raise InputError(reason)
    text, places = rendered(model, messages)
    coded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids_T, range_T2 = np.array(coded["input_ids"], np.int64), np.array(coded["offset_mapping"], np.int64).reshape(-1, 2)
    plain_T = (range_T2[:, 0] < range_T2[:, 1]) & ~np.isin(ids_T, list(special_ids(model)))
    plain_T &= np.array([bool(text[begin:end].strip("\r\n")) for begin, end in range_T2.tolist()])
    owner_T = np.full(len(ids_T), -1)
    for number, (begin, end) in enumerate(places):
        owner_T[plain_T & (range_T2[:, 0] >= begin) & (range_T2[:, 1] <= end)] = number
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant" and users and number > users[0]]
    spans, rows = _runs(np.isin(owner_T, users)), [np.flatnonzero(owner_T == number) for number in answers]
    if not spans or not rows or not all(map(len, rows)):
        raise InputError("a conversation needs a user's message with text, and an assistant's answer with text behind it")
    named = {f"{USER} {number}": np.array([span]) for number, span in enumerate(spans)}
    facts = {"chat": True, "responses": len(rows), "user_spans": len(spans), "user_tokens": sum(end - begin for begin, end in spans)}
    return Prompts(ids_T[None], named, {f"{RESPONSE} {number}": row[None] for number, row in enumerate(rows)}, facts=(facts,))


def rendered(model: Model, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The text that the template makes, and the characters [begin, end) of each message in it. Raises `InputError` if that cannot be told."""
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]  # characters for private use: no template or message has them
    marked = _render(model, [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)])
    if any(marked.count(mark) != 1 for mark in marks):
        raise InputError(f"the chat template of {model.card.name} leaves messages out or repeats them, so that it cannot be told which tokens are whose")
    text = _render(model, messages)
    for contents in ([message["content"] for message in messages], [message["content"].strip() for message in messages]):
        made, places, rest = "", [], marked
        for mark, content in zip(marks, contents, strict=True):
            before, _, rest = rest.partition(mark)
            made += before
            places.append((len(made), len(made) + len(content)))
            made += content
        if made + rest == text:
            return text, places
    raise InputError(f"the chat template of {model.card.name} changes what messages say, so that it cannot be told which tokens are whose")


def _render(model: Model, messages: Sequence[Message]) -> str:
    try:
        return model.tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, date_string=DATE)
    except Exception as error:  # a template raises what it likes for roles that it does not know
        raise InputError(f"the chat template of {model.card.name} does not take this conversation: {error}") from error


def _runs(mask_T: np.ndarray) -> list[tuple[int, int]]:
    """The ranges [begin, end) of neighbours that are true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask_T.astype(int), [0]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def load_conversation(path: str | Path) -> list[Message]:
    """Messages from a JSON file: a list of objects with `role` and `content`. Raises `InputError` naming the message that is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read a conversation from {path}: {error}") from error
    if not isinstance(data, list) or not data:
        raise InputError(f"{path}: a conversation is a list of messages")
    for number, message in enumerate(data, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"} or not all(isinstance(part, str) for part in message.values()):
            raise InputError(f"{path}, message {number}: a message has the texts 'role' and 'content', and nothing else")
    return data


@dataclass(frozen=True)
class Conversations:
    """One question each about something the user has just said, answered with it: the shipped needles, their questions and answers.

    Each is a prompt of its own, with the span `user` and the rows `response`.
    """

    needles: str = "needles"
    count: int = 6
    batch: int = 1

    def lacks(self, model: Model) -> str | None:
        """Why a model cannot be asked; None if it can."""
        return lacks_template(model)

    def build(self, model: Model, seed: int) -> list[Prompts]:
        """One prompt per conversation; the seed changes nothing. Raises `InputError` for a model without a chat template."""
        made = []
        for needle in load_needles(self.needles)[: self.count]:
            question, answer = f"{needle.needle} {needle.question}", needle.answer
            one = conversation(model, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
            whole = np.array([[min(span[0, 0] for span in one.spans.values()), max(span[0, 1] for span in one.spans.values())]])
            made.append(Prompts(one.ids_BT, {USER: whole}, {RESPONSE: one.rows[f"{RESPONSE} 0"]}, facts=({"chat": True, "needle": needle.id},)))
        return made

    def control(self) -> None:
        """The null is uniform attention over the same conversations."""
        return

    def lengths(self, model: Model) -> list[int]:
        """Tokens of each conversation, about."""
        return [100] * min(self.count, len(load_needles(self.needles)))
