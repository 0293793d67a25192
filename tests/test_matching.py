"""Do two tokens say the same? Two texts?"""

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workbench.matching import canonical, word_recall, words_of


def tokenizer():
    core = Tokenizer(models.WordLevel({"<unk>": 0, "The": 1, "ĠThe": 2, "Ġonly": 3, "cat": 4}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    from tokenizers import decoders

    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_a_space_in_front_makes_no_other_token():
    assert canonical(tokenizer(), np.array([[2, 1, 4, 2]])).tolist() == [[1, 1, 4, 1]]


def test_no_tokens_stay_no_tokens_and_whole_numbers():
    nothing = canonical(tokenizer(), np.zeros((1, 0), np.int64))
    assert nothing.shape == (1, 0)
    assert nothing.dtype == np.int64


def test_words_are_lower_case_without_punctuation():
    assert words_of("The cat, it's 3.5!") == ["the", "cat", "it", "s", "3", "5"]


def test_recall_counts_each_word_as_often_as_it_occurs():
    assert word_recall("a a b", "A; c") == 1 / 3


def test_words_of_the_question_are_worth_nothing():
    answer, question = "The key is under the mat", "Where is the key?"
    assert word_recall(answer, "The key is where?") == 3 / 6  # one "the" of two, key, is
    assert word_recall(answer, "the the key is", question) == 0
    assert word_recall(answer, "It is under a rug", question) == 1 / 2
    assert word_recall(answer, "It is under a mat", question) == 1
    assert word_recall("the key", "the lock", "the key?") == 1 / 2  # an answer that has no other words
