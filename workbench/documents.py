"""Does the model look up the document that answers a question? Paragraphs with a query, each paired with a query that asks nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from workbench.models import Model
from workbench.needle_files import Needle, load_needles
from workbench.needles import DATE, Haystack, encode, tokens_between
from workbench.prompts import Prompts

INSTRUCTION = "Please find information that are relevant to the following query in the paragraphs above."


@dataclass(frozen=True)
class DocumentSearch:
    """Paragraphs, one of which answers a query; each sample is a pair of prompts: the query, and a query of the same length that asks nothing.

    Spans `doc0`, `doc1`, … are the paragraphs, `gold` the right one; rows `query` are instruction, query and what follows them. The empty
    query is "N/A" repeated: QRHead's null is a single "N/A", here stretched so that both prompts have the same positions.
    `absent=True` makes the control: the gold paragraph belongs to another query.
    """

    needles: str | Path = "needles"
    documents: int = 4
    tokens: int = 40
    count: int = 4
    haystack: Path | None = None
    absent: bool = False

    def build(self, model: Model, seed: int) -> list[Prompts]:
        """One batch of two prompts per sample."""
        rng = np.random.default_rng(seed)
        needles, hay = load_needles(self.needles), Haystack(model, self.haystack)
        return [self._sample(model, hay, needles, index % len(needles), rng) for index in range(self.count)]

    def control(self) -> "DocumentSearch":
        """The document that answers the query absent, in a third of the samples, two at least."""
        return replace(self, absent=True, count=max(2, self.count // 3))

    def lengths(self, model: Model) -> list[int]:
        """Tokens of each prompt, about."""
        return [self.documents * (self.tokens + 10) + 60] * (2 * self.count)

    def _sample(self, model: Model, hay: Haystack, needles: Sequence[Needle], index: int, rng: np.random.Generator) -> Prompts:
        hidden = needles[(index + 1) % len(needles)] if self.absent else needles[index]
        gold = int(rng.integers(self.documents))
        bodies = [hay.with_needle(hidden.needle if place == gold else "", self.tokens, 0.5, rng.random())[0] for place in range(self.documents)]
        texts = [f"[{place + 1}] {body}" for place, body in enumerate(bodies)]
        before = " Here are some paragraphs:\n\n" + "\n\n".join(texts)
        text = _framed(model, f"{before}\n\n{INSTRUCTION}\n\nQuery: {needles[index].question}")
        ids, ranges = encode(model, text)
        nothing, first = _with_null_query(model, text, ids, ranges, needles[index].question)
        starts = [text.index(part) for part in texts]
        spans = {f"doc{place}": np.repeat(tokens_between(ranges, start, start + len(texts[place])), 2, axis=0) for place, start in enumerate(starts)}
        rows = np.tile(np.arange(first, len(ids)), (2, 1))
        facts = {"needle": needles[index].id, "gold": gold, "absent": self.absent, "haystack": hay.digest}
        return Prompts(
            np.stack([ids, nothing]), {**spans, "gold": spans[f"doc{gold}"]}, {"query": rows}, facts=({**facts, "query": True}, {**facts, "query": False})
        )


def _framed(model: Model, text: str) -> str:
    if not getattr(model.tokenizer, "chat_template", None):
        return text
    return model.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, date_string=DATE)


def _with_null_query(model: Model, text: str, ids: np.ndarray, ranges: np.ndarray, query: str) -> tuple[np.ndarray, int]:
    """The ids with "N/A", over and over, in place of the query, and the row at which the instruction begins."""
    begin = text.rindex("Query: ") + len("Query: ")
    first, last = tokens_between(ranges, begin, begin + len(query))[0]
    instruction = tokens_between(ranges, text.index(INSTRUCTION), begin)[0][0]
    nothing = ids.copy()
    nothing[first:last] = np.resize(model.tokenizer(" N/A", add_special_tokens=False)["input_ids"], last - first)
    return nothing, int(instruction)
