"""Does `verify` measure what it says? Beside the plain model, on answers that are known, and from the command line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from workbench import choosing, tiny, views
from workbench.cli import app
from workbench.errors import InputError
from workbench.kernels.applied import apply
from workbench.labels import HeadLabels
from workbench.needles import NeedleTests
from workbench.verification import COLUMNS, Setting, measuring, verify

TESTS = NeedleTests(lengths_=(700, 900), depths=(0.2, 0.8), per_cell=2, teacher_forced=False)
SIZES = {"sinks": 2, "window": 5}


@pytest.fixture(scope="module")
def model():
    return tiny.random_model("llama", seed=8)


@pytest.fixture
def remembering(monkeypatch):
    """Answers right if and only if KV head 1 of layer 0 sees the whole prompt."""

    def answer(_model, applied, tests, _setting):
        right = applied.policy.full_LG[0, 1] or applied.policy.window > 200
        return [test.facts[0]["answer"] if right else "no idea" for test in tests]

    monkeypatch.setattr(measuring, "_generate", answer)


def scores(model, best=(0, 1)):
    score_LG = np.zeros((model.shape.n_layers, model.shape.n_kv_heads))
    score_LG[best] = 1
    return score_LG


@pytest.mark.usefixtures("remembering")
def test_the_table_tells_who_remembers(model):
    policy = choosing.by_budget(model.card, scores(model, (1, 0)), 0.25, **SIZES)
    setting = Setting(TESTS, (0.0, 0.25, 0.75), (0, 1, 2, 3), text_tokens=300)
    found = verify(model, policy, {"labels": scores(model)}, setting, saved=True)
    table = found.table.set_index(["policy", "budget"])
    assert set(COLUMNS) <= set(found.table.columns)
    assert table.loc[("full", 1.0), "recall"] == table.loc[("labels", 0.25), "recall"] == 1
    assert table.loc[("labels", 0.0), "recall"] == table.loc[("saved", 0.25), "recall"] == 0
    assert (table.loc[("labels", 0.75), ["kept", "kept_low", "kept_high"]] == 1).all()
    assert table.loc[("window", 0.75), "recall"] == 1  # of 700 and 900 tokens, 525 and 675
    assert table.loc[("window", 0.25), "recall"] == 0.5  # 175 and 225
    random = found.table[found.table["policy"] == "random"]
    assert len(random) == 8
    for row in random.itertuples():
        drawn = choosing.at_random(model.card, row.budget, int(row.seed), **SIZES)
        assert row.recall == drawn.full_LG[0, 1]
        assert row.full_heads == drawn.full_LG.sum() == row.budget * 4
    share = np.mean([policy.share(test.length) for test in TESTS.build(model, 1)])
    assert table.loc[("labels", 0.25), "kv_share"] == pytest.approx(share)
    assert found.tests.groupby(["policy", "budget", "seed"], dropna=False)["recall"].agg(["mean", "size"])["size"].eq(8).all()


def test_text_is_read_as_the_model_reads_it(model):
    setting = Setting(TESTS, text_tokens=700)
    ids, digest = measuring._text(model, setting)
    plain = model.hf(ids, labels=ids)
    nll, choice = measuring._read(model, choosing.everything(model.card), ids, "torch", 256)
    assert nll == pytest.approx(float(plain.loss), abs=1e-5)
    assert (choice == plain.logits[0, :-1].argmax(-1).numpy()).all()
    policy = choosing.uniform(model.card, **SIZES)
    with apply(model, policy, implementation="reference") as applied, torch.inference_mode():
        once = applied.hf(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    nll, choice = measuring._read(model, policy, ids, "torch", 256)
    assert nll == pytest.approx(-float(once.gather(1, ids[0, 1:, None]).mean()), abs=1e-4)
    assert (choice == once.argmax(-1).numpy()).mean() > 0.99
    assert len(digest) >= 16


def test_answers_together_are_answers_alone(model):
    setting, tests = Setting(TESTS, answer_tokens=6), TESTS.build(model, 1)
    policy = choosing.at_random(model.card, 0.5, 1, **SIZES)
    with apply(model, policy) as applied, torch.inference_mode():
        alone = [measuring._generate(model, applied, [test], setting)[0] for test in tests]
        assert measuring._generate(model, applied, tests, setting) == alone


def test_batches_have_one_length_and_so_many_tokens(model):
    tests = TESTS.build(model, 1)
    batches = list(measuring._batches(tests, 2100))
    assert sorted(number for batch in batches for number in batch) == list(range(8))
    assert all(len({tests[number].facts[0]["length"] for number in batch}) == 1 for batch in batches)
    assert sorted(map(len, batches)) == [1, 2, 2, 3]  # 3 and 1 of 700 tokens, 2 and 2 of 900
    assert all(len(batch) == 1 for batch in measuring._batches(tests, 1))


def test_what_cannot_be_verified(model, monkeypatch):
    policy = choosing.uniform(model.card, **SIZES)
    with pytest.raises(InputError, match="a chunk size"):
        verify(model, choosing.uniform(model.card, semantics="chunk"), {"labels": scores(model)}, Setting(TESTS))
    with pytest.raises(InputError, match="the text has"):
        verify(model, policy, {"labels": scores(model)}, Setting(TESTS, text_tokens=10**8))
    monkeypatch.setattr(measuring, "_generate", lambda _model, _applied, tests, _setting: ["no idea"] * len(tests))
    with pytest.raises(InputError, match="insufficient evidence: tiny-llama answers none of the 8 needle tests"):
        verify(model, policy, {"labels": scores(model)}, Setting(TESTS, text_tokens=300))


def test_the_picture_has_a_line_for_each_way():
    ways = [("full", 1, None, 1), ("labels", 0.2, None, 0.5), ("labels", 0.4, None, 0.9), ("random", 0.4, 0, 0.1), ("random", 0.4, 1, 0.3)]
    rows = [{"policy": name, "budget": budget, "seed": seed, "kv_share": budget, "kept": quality} for name, budget, seed, quality in ways]
    table = pd.DataFrame(rows).assign(full_heads=2, recall=0.5, word_recall=0.6, kept_low=0.2, kept_high=1.1, perplexity=9.0, agreement=0.8)
    figure = views.quality_figure(table, {"model": "m", "sinks": 4, "window": 8, "semantics": "exact"})
    lines = {trace.name: trace for trace in figure.data if trace.showlegend}
    assert len(lines) == 3
    chosen = next(trace for name, trace in lines.items() if name == "by labels")
    assert list(zip(chosen.x, chosen.y, strict=True)) == [(0.2, 0.5), (0.4, 0.9)]
    random = next(trace for name, trace in lines.items() if name.startswith("random"))
    assert list(random.y) == pytest.approx([0.2])
    assert (list(random.error_y.array), list(random.error_y.arrayminus)) == (pytest.approx([0.1]), pytest.approx([0.1]))


@pytest.fixture
def labels(model, tmp_path, monkeypatch):
    """A labels file of the tiny model, which the commands load in place of the default one."""
    monkeypatch.setattr("workbench.models.load", lambda *_, **__: model)
    score = model.shape.to_query(scores(model)).astype(float)
    return HeadLabels(model.card, {}, {"retrieval": score, "razor_echo": score, "razor_induction": score * 0}).save(tmp_path / "heads.json")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_policy_writes_into_the_labels_file(labels, model):
    result = run("policy", labels, "--kv-budget", 0.25, "--sinks", 2, "--window", 5)
    assert result.exit_code == 0, result.output
    assert "1 of 4 KV heads full; the others see 2 sinks and a window of 5 (exact)" in result.stdout
    kept = HeadLabels.load(labels).policy
    assert kept["full"] == [[1], []]
    assert kept["origin"] == {"by": "budget", "budget": 0.25, "at_length": None, "scores": {"by": "razor_echo+razor_induction", "combine": "sum"}}
    said = json.loads(run("policy", labels, "--quantile", 0.75, "--by", "retrieval", "--json").stdout)
    assert said["policy"]["full"] == [[1], []]
    assert said["kv_bytes"]["8192"] == 2 * model.shape.d_head * 2 * (8192 + 3 * 320)
    assert json.loads(run("policy", labels, "--uniform", "--compensation", "--json").stdout)["policy"]["compensation"]


def test_scores_of_other_files_can_be_named(labels, model, tmp_path):
    more = HeadLabels(model.card, {}, {"elimination": model.shape.to_query(scores(model, (1, 0)))}).save(tmp_path / "more.json")
    result = run("policy", labels, "--kv-budget", 0.25, "--scores", more, "--by", "elimination")
    assert result.exit_code == 0, result.output
    kept = HeadLabels.load(labels)
    assert kept.policy["full"] == [[], [0]]
    assert "elimination" not in kept.scores
    assert f"{labels}: there are scores razor_echo already" in run("policy", labels, "--kv-budget", 0.25, "--scores", labels).stderr
    other = tiny.random_model("llama", seed=9)
    alien = HeadLabels(other.card, {}, {"mine": other.shape.to_query(scores(other))}).save(tmp_path / "alien.json")
    assert "these labels were made for" in run("verify", labels, "--scores", alien, "--out", tmp_path / "v.csv").stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kv-budget", 0.5, "--uniform"], "choose one of"),
        (["--random", 1], "--random needs --kv-budget"),
        (["--at-length", 100], "--at-length needs --kv-budget"),
        (["--by", "retrieval"], "--by ranks the heads"),
        (["--kv-budget", 0.5, "--keep", "induction"], "--keep is for a policy by labels"),
        (["--kv-budget", 0.5, "--by", "induction"], "unknown probe among the labels 'induction'"),
        ([], "these labels decide nothing"),
        (["--kv-budget", 2], "a share, 0 to 1"),
    ],
)
def test_policy_refuses(labels, options, said):
    before = labels.read_bytes()
    result = run("policy", labels, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert labels.read_bytes() == before


def test_generate_says_what_it_used(labels, model):
    run("policy", labels, "--kv-budget", 0.25, "--sinks", 2, "--window", 5)
    result = run("generate", "some words to begin with", "--labels", labels, "--max-new-tokens", 4, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    ids = model.tokenizer("some words to begin with", return_tensors="pt")["input_ids"]
    with apply(model, labels) as applied:
        made = applied.generate(ids, max_new_tokens=4, do_sample=False)
    assert said["response"] == model.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    kept = made.shape[1] - 1  # the last token's key is not made
    vector = 2 * model.shape.d_head * 4
    assert (said["kv_bytes"], said["kv_bytes_full"]) == (vector * (kept + 3 * 7), vector * 4 * kept)
    assert said["implementation"] == "torch"
    assert "--chat" in run("generate", "x", "--labels", labels, "--chat").stderr
    assert "the prompt is empty" in run("generate", " ", "--labels", labels).stderr


@pytest.mark.usefixtures("remembering")
def test_verify_writes_table_tests_and_picture(labels, tmp_path):
    out = tmp_path / "v.csv"
    sizes = ["--sinks", 2, "--window", 5, "--lengths", 700, "--depths", "0.5", "--per-cell", 2, "--seeds", 1, "--text-tokens", 300]
    result = run("verify", labels, *sizes, "--kv-budgets", "0.25", "--out", out)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    assert list(table["policy"]) == ["full", "razor_echo+razor_induction", "random", "window"]
    assert table.loc[table["policy"] == "razor_echo+razor_induction", "recall"].item() == 1
    assert len(pd.read_csv(tmp_path / "v.tests.csv")) == 4 * 2
    assert "what a policy keeps" in (tmp_path / "v.html").read_text()
    assert run("verify", labels, "--out", tmp_path / "v.txt").exit_code == 2


@pytest.mark.model
@pytest.mark.slow
def test_the_default_model_all_full_is_itself_token_for_token(smollm2):
    chat = [{"role": "user", "content": "Name three rivers of France."}]
    ids = smollm2.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    plain = smollm2.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    with apply(smollm2, choosing.everything(smollm2.card)) as applied:
        assert torch.equal(applied.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False), plain)
