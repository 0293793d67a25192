"""Who gets it? Prompts of twelve words of the compiled IOI model, the same prompts with other names, and a tokenizer of its thirty words."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from workbench.circuits.tasks import Item, Pairs, TaskSet
from workbench.errors import InputError

WORDS = (
    *("<s>", "and", "to", "gave", "then", "there", "later", "the", "a", "one"),
    *("Ann", "Bob", "Carl", "Dora", "Emma", "Finn", "Gina", "Hugo", "Iris", "Jack"),
    *("Kate", "Liam", "Mary", "Nora", "Omar", "Paul", "Rose", "Sven", "Tina", "Vera"),
)
"""The vocabulary: first token, "and", "to", "gave", six fillers, twenty names."""

START, AND, TO, GAVE, FILLERS, NAMES = 0, 1, 2, 3, slice(4, 10), slice(10, 30)
LENGTH, FIRST, SECOND, VERB, SUBJECT, END = 12, 2, 4, 6, 8, 11
"""The length of a prompt, and where it has its two names, the verb, the name that is repeated, and its end."""


@dataclass(frozen=True, eq=False)
class NamePrompts:
    """Prompts [B, 12] and the same with three other, different names (ABC), the indirect object [B], which is the answer, and the subject [B], which is not.

    `template` says per prompt whether the subject is the second name (ABBA) or the first (BABA).
    """

    ids_BT: Int[np.ndarray, "B T"]
    corrupted_BT: Int[np.ndarray, "B T"]
    answer_B: Int[np.ndarray, " B"]
    wrong_B: Int[np.ndarray, " B"]
    template: tuple[str, ...]

    def text(self, corrupted: bool = False) -> list[str]:
        """The prompts as words, without the first token."""
        return [" ".join(WORDS[token] for token in ids_T[1:]) for ids_T in (self.corrupted_BT if corrupted else self.ids_BT)]


def name_prompts(count: int, seed: int = 0) -> NamePrompts:
    """Draw `count` prompts: five different names each (two for the prompt, three to corrupt it), ABBA or BABA, and fillers.

    The same seed gives the same prompts. Raises `InputError` for a count below 1.
    """
    if count < 1:
        raise InputError(f"at least one prompt is needed, not {count}")
    rng = np.random.default_rng(seed)
    name_BN = np.array([rng.permutation(np.arange(NAMES.start, NAMES.stop))[:5] for _ in range(count)])
    abba_B = rng.integers(2, size=count).astype(bool)
    ids_BT = rng.integers(FILLERS.start, FILLERS.stop, (count, LENGTH))
    ids_BT[:, [0, FIRST + 1, VERB, END]] = [START, AND, GAVE, TO]
    corrupted_BT = ids_BT.copy()
    answer_B, wrong_B = np.where(abba_B, name_BN[:, :2].T, name_BN[:, 1::-1].T)
    ids_BT[:, [FIRST, SECOND, SUBJECT]] = np.stack([name_BN[:, 0], name_BN[:, 1], wrong_B], axis=1)
    corrupted_BT[:, [FIRST, SECOND, SUBJECT]] = name_BN[:, 2:]
    return NamePrompts(ids_BT, corrupted_BT, answer_B, wrong_B, tuple(np.where(abba_B, "ABBA", "BABA").tolist()))


def name_pairs(count: int, seed: int = 0) -> TaskSet:
    """The same prompts as a task, `names`: the answer against the subject, in logits. Raises as `name_prompts` does."""
    made = name_prompts(count, seed)
    items = tuple(
        Item(clean, corrupted, (f" {WORDS[answer]}",), (f" {WORDS[wrong]}",), template)
        for clean, corrupted, answer, wrong, template in zip(made.text(), made.text(True), made.answer_B, made.wrong_B, made.template, strict=True)
    )
    right, wrong = (tuple((int(token),) for token in tokens) for tokens in (made.answer_B, made.wrong_B))
    return TaskSet("names", (Pairs("names", "logit_difference", items, made.ids_BT, made.corrupted_BT, right, wrong),), {}, seed)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of `WORDS`; `<s>` is put in front. Another word is an error."""
    core = Tokenizer(models.WordLevel(vocab={word: number for number, word in enumerate(WORDS)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
