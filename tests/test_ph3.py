"""Two heads that write the two answers: PH3 tells them apart, and pruning one flips the answer."""

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, PreTrainedTokenizerFast

from workbench.captures import capture
from workbench.circuits import conflicts, ph3
from workbench.circuits.compiled_ioi import without_norms
from workbench.circuits.conflicts import CONTEXT, MEMORY, ConflictSets
from workbench.circuits.tasks import Item, Pairs, TaskSet
from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.pruning import pruned
from workbench.tiny import random_model

COUNT, START, ASK = 8, 0, 1
SUBJECTS, ANSWERS = range(2, 2 + COUNT), range(2 + COUNT, 2 + 2 * COUNT)
VOCABULARY = 2 + 2 * COUNT
WORDS = ["<s>", "?", *(f"s{number}" for number in range(COUNT)), *(f"a{number}" for number in range(COUNT))]
REMEMBERS, READS, IDLE = Head(0, 1), Head(0, 2), Head(0, 0)


def toy(memory=3.0, context=2.0):
    """One layer of four heads without norms and MLPs: one writes what belongs to the subject, one what the text stated."""
    width, size = 4 * VOCABULARY, VOCABULARY
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=8, n_embd=width, n_layer=1, n_head=4, n_inner=1, scale_attn_weights=False, tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = without_norms(config)
    for parameter in hf.parameters():
        parameter.data.zero_()
    for block in hf.transformer.h:
        block.ln_1.weight.data.fill_(1)
    body, tokens = hf.transformer, torch.eye(VOCABULARY)
    body.wte.weight.data[:, :VOCABULARY] = tokens
    hf.lm_head.weight.data[:, VOCABULARY : 2 * VOCABULARY] = tokens
    attention, matrix = body.h[0].attn, torch.zeros(3, width, 4, size)
    output = torch.zeros(4, size, width)
    for head, looked_at, gain in ((REMEMBERS, SUBJECTS, memory), (READS, ANSWERS, context)):
        matrix[0, ASK, head.index, 0] = 30.0
        matrix[1, list(looked_at), head.index, 0] = 1.0
        for number, token in enumerate(looked_at):
            matrix[2, token, head.index, token] = 1.0
            output[head.index, token, VOCABULARY + ANSWERS[number]] = gain
    attention.c_attn.weight.data = matrix.permute(1, 0, 2, 3).reshape(width, -1)
    attention.c_proj.weight.data = output.reshape(-1, width)
    core = Tokenizer(models.WordLevel(vocab={word: number for number, word in enumerate(WORDS)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return HFModel("toy", "two answers", hf.float(), PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>"))


def clashes(count, seed=0):
    rng = np.random.default_rng(seed)
    items, clean, corrupted, right, wrong = [], [], [], [], []
    for _ in range(count):
        (subject, other), (stated, else_stated) = rng.permutation(COUNT)[:2], rng.permutation(COUNT)[:2]
        while len({subject, other, stated, else_stated}) < 4:
            stated, else_stated = rng.permutation(COUNT)[:2]
        items.append(
            Item(
                f"a{stated} s{subject} ?",
                f"a{else_stated} s{other} ?",
                (f" a{subject}",),
                (f" a{stated}",),
                facts=dict.fromkeys(("query", "closed"), f"s{subject} ?"),
            )
        )
        clean.append([START, ANSWERS[stated], SUBJECTS[subject], ASK])
        corrupted.append([START, ANSWERS[else_stated], SUBJECTS[other], ASK])
        right.append((ANSWERS[subject],))
        wrong.append((ANSWERS[stated],))
    return TaskSet("toy", (Pairs("toy", "logit_difference", tuple(items), np.array(clean), np.array(corrupted), tuple(right), tuple(wrong)),), {}, seed)


@pytest.fixture
def said(monkeypatch):
    monkeypatch.setattr(conflicts, "INSTRUCTIONS", {"context": "a0 ", "memory": "s0 "})  # the toy knows no other words


def test_the_two_heads_get_opposite_signs():
    effects = ph3.importance(toy(), clashes(16))
    assert effects.mean_LH[0] == pytest.approx([0, -3, 2, 0], abs=1e-3)
    assert ph3.sides(effects) == {"memory": [REMEMBERS], "context": [READS]}
    by_probability = ph3.importance(toy(), clashes(16), "probabilities").mean_LH[0]
    assert by_probability[REMEMBERS.index] < -0.3
    assert by_probability[READS.index] > 0.1
    with pytest.raises(InputError, match="score"):
        ph3.importance(toy(), clashes(4), "x")


def test_pruning_one_flips_the_answer():
    model, data = toy(), clashes(16)
    sets = np.zeros((3, 1, 4), bool)
    sets[1, 0, REMEMBERS.index] = sets[2, 0, READS.index] = True
    kinds, margins = conflicts.answers(model, data, sets)
    assert [set(row) for row in kinds.tolist()] == [{MEMORY}, {CONTEXT}, {MEMORY}]
    assert margins.mean(1) == pytest.approx([1, -2, 3], abs=1e-3)
    assert conflicts.rates(np.array([0, 0, 1, 2])) == {"memory": 0.5, "context": 0.25, "other": 0.25}


@pytest.mark.usefixtures("said")
def test_the_whole_way():
    model = toy()
    data = ConflictSets(clashes(16), clashes(8, 1), clashes(12, 2), {"again": clashes(6, 3)}, {})
    found = ph3.find(model, data, text_T=np.arange(2, 8), sizes=(1,))
    assert found.heads == {"memory": (REMEMBERS,), "context": (READS,)}
    table = found.table.set_index(["steer", "way"])
    assert table.loc[("context", "none"), "memory"] == 1
    assert table.loc[("context", "pruned"), "context"] == 1
    assert table.loc[("context", "gradient"), "context"] == 1
    assert table.loc[("memory", "pruned"), "memory"] == 1
    assert table.loc[("memory", "pruned"), "clean"] == 1
    assert table.loc[("context", "pruned"), "clean"] == 0
    assert table.loc[("context", "random"), "context"] < 1
    assert table.loc[("context", "pruned"), "perplexity"] > 0
    assert table.loc[("context", "pruned"), ["context_low", "context_high"]].tolist() == pytest.approx([12 / (12 + 1.959964**2), 1])
    assert table.loc[("context", "instruction"), ["clean", "clean_low"]].isna().all()
    assert set(found.transfer["items"]) == {"again"}
    assert found.transfer.set_index("steer").loc["to context", "context"] == 1
    labels = found.labels()
    assert labels.heads("memory") == (REMEMBERS,)
    assert labels.heads("context") == (READS,)
    assert labels.scores["ph3_memory"][0, REMEMBERS.index] == pytest.approx(3, abs=1e-3)
    assert found.labels(labels).counts() == labels.counts()
    assert found.edit("context").heads == (REMEMBERS,)
    with pytest.raises(InputError, match="side"):
        found.edit("x")
    by_probability = ph3.find(model, data, text_T=np.arange(2, 8), sizes=(1,), score="probabilities")
    assert 0 < by_probability.labels().scores["ph3_memory"][0, REMEMBERS.index] < 1
    with pytest.raises(InputError, match="score"):
        ph3.find(model, data, text_T=np.arange(2, 8), score="x")


def test_a_memory_that_costs_the_closed_book_is_not_chosen():
    """Pruning memory heads costs the answers without a text too; the size that does so least is preferred."""
    model, data = toy(), clashes(12)
    chosen, sizes = ph3._choose(model, data, {"memory": [IDLE, REMEMBERS], "context": [READS]}, (1, 2))
    assert chosen["memory"] == (IDLE,)
    assert sizes.groupby("steer")["chosen"].sum().eq(1).all()
    with pytest.raises(InputError, match="no context heads"):
        ph3._choose(model, data, {"memory": [REMEMBERS], "context": []}, (1,))


@pytest.mark.usefixtures("said")
def test_contrast_and_instruction_are_the_formula():
    model, data = toy(), clashes(10)
    assert set(conflicts.contrastive(model, data, "context", alpha=3.0)) == {CONTEXT}
    assert set(conflicts.contrastive(model, data, "memory", alpha=3.0)) == {MEMORY}
    assert [pairs.length for pairs in conflicts.instructed(model, data, "context").pairs] == [5]
    assert [pairs.length for pairs in conflicts.closed_book(model, data).pairs] == [3]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_pruned_models_are_those_of_the_edit(architecture):
    from workbench.edits import Ablate
    from workbench.reads import HeadOutput

    model, heads = random_model(architecture), (Head(0, 1), Head(1, 3))
    ids = np.random.default_rng(0).integers(3, 200, (2, 7))
    before = model.hf(torch.tensor(ids)).logits
    with pruned(model, heads) as hf:
        after = hf(torch.tensor(ids)).logits[:, -1]
    data = TaskSet("t", (Pairs("t", "logit_difference", (Item("a", "b", (" c",), (" d",)),) * 2, ids, ids, ((1,), (2,)), ((3,), (4,))),), {}, 0)
    from workbench.circuits.faithfulness import mask
    from workbench.circuits.patching import replace_sets

    value, _, _ = replace_sets(model, data, mask(model.shape, heads)[None], ablation="zero")
    np.testing.assert_allclose(value[0], data.pairs[0].measure(after).detach().numpy(), atol=1e-4)
    assert torch.equal(before, model.hf(torch.tensor(ids)).logits)
    found = capture(model, Prompts(ids), [HeadOutput()], edits=[Ablate(heads)])
    assert not np.asarray(found[HeadOutput()])[:, 0, 1].any()
    with pytest.raises(InputError), pruned(model, [Head(7, 0)]):
        pass


@pytest.mark.model
def test_the_command_writes_labels_and_tables(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from workbench.cli import app

    out = tmp_path / "ph3.json"
    asked = ["ph3", "--items", "12", "--validation", "8", "--test", "8", "--no-transfer", "--text-tokens", "64", "--out", str(out)]
    made = CliRunner().invoke(app, asked)
    assert made.exit_code == 0, made.output
    table = pd.read_csv(out.with_suffix(".test.csv"))
    assert set(table["way"]) == {"none", "pruned", "random", "gradient", "instruction", "contrastive"}
    assert np.allclose(table[["memory", "context", "other"]].sum(axis=1), 1)
    bad = CliRunner().invoke(app, ["ph3", "--steer", "x"])
    assert bad.exit_code == 2
