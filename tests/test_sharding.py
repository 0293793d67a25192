"""Is a model that is spread over processes the same model? Two ranks on the CPU beside one process, for every architecture that can be spread."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sharded import ARCHITECTURES, DEEP
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import InputError
from workbench.heads import Head, Shape
from workbench.labels import HeadLabels
from workbench.loading import shape_of
from workbench.models import load
from workbench.policies import HeadPolicy
from workbench.probes import PROBES
from workbench.sharding import Shards, plan, settled
from workbench.tiny import random_model
from workbench.weights import HeadWeights

RANKS = (0, 1)
HERE = Path(__file__).parent
NO_EVIDENCE = {"name_mover", "retrieval", "semantic_retrieval", "reasoning_retrieval", "user_attention"}
"""Probes that a random model of bytes gives nothing to count."""


def torchrun(*words, timeout=240, **variables):
    """Two processes of a program, on one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank found, together and alone."""
    folder = tmp_path_factory.mktemp("sharded")
    run = torchrun(HERE / "sharded.py", folder)
    assert run.returncode == 0, run.stderr[-4000:]
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in RANKS]


def alone(found, name):
    """What the rank found that measured this model by itself."""
    return next(rank[name, "alone"] for rank in found if (name, "alone") in rank)


def near(part, right, tolerance):
    """Equal numbers, but for rounding beside the largest of them; what counts things is the same."""
    if np.issubdtype(right.dtype, np.floating):
        size = max(1.0, float(np.nanmax(np.abs(right), initial=0)))
        np.testing.assert_allclose(part, right, rtol=0, atol=tolerance * size)
    else:
        np.testing.assert_array_equal(part, right)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_of_all_probes_are_those_of_one_process(found, name):
    right = alone(found, name)
    assert NO_EVIDENCE | set(right["table"].probe) >= set(PROBES)
    for rank in found:
        mine = rank[name, "together"]
        assert mine["card"] == right["card"]
        assert mine["evidence"].keys() == right["evidence"].keys()
        pd.testing.assert_frame_equal(mine["table"], right["table"], rtol=0, atol=1e-5)
    pd.testing.assert_frame_equal(*(rank[name, "together"]["table"] for rank in found), check_exact=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captures_with_edits_are_those_of_one_process(found, name):
    right = alone(found, name)["captures"]
    for rank in found:
        mine = rank[name, "together"]["captures"]
        assert mine.keys() == right.keys()
        for what, seen in mine.items():
            assert seen["provenance"] == right[what]["provenance"]
            for read, parts in seen["values"].items():
                for part, wanted in zip(parts, right[what]["values"][read], strict=True):
                    near(part, wanted, 1e-4 if "calibrate" in what else 1e-5)
            for part, wanted in zip(seen["found"], right[what]["found"], strict=True):
                np.testing.assert_array_equal(part, wanted)


def test_edits_change_what_they_change_of_one_process(found):
    """The captures above are of something: every edit moves the heads that it names, on both ranks."""
    seen = alone(found, "llama")["captures"]
    for what in ("zero", "uniform", "mean", "resample", "calibrate", "calibrate some, then ablate", "stream"):
        after, before = (seen[name]["values"]["HeadOutput(rows=None)"][0] for name in (what, "nothing"))
        for head in (0, 5):
            assert not np.allclose(after[:, 0, head], before[:, 0, head]), what


def test_redistribution_is_that_of_one_process(found):
    right = alone(found, DEEP)
    assert right["found"][0].any()
    for rank in found:
        for read, parts in rank[DEEP, "together"]["values"].items():
            for part, wanted in zip(parts, right["values"][read], strict=True):
                near(part, wanted, 1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_policy_gives_the_logits_and_answers_of_one_process(found, name):
    right = alone(found, name)["policies"]
    for rank in found:
        mine = rank[name, "together"]["policies"]
        assert mine.keys() == right.keys()
        for semantics, parts in mine.items():
            for part, wanted in zip(parts, right[semantics], strict=True):
                near(part, wanted, 1e-5)


def test_what_is_on_disk_is_found_again_by_all_ranks(found):
    for rank in found:
        pd.testing.assert_frame_equal(rank["again"], found[0]["llama", "together"]["table"], check_exact=True)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("gpt2", "gpt2 cannot be split over 2 devices: transformers has no tensor-parallel plan for gpt2; try --device-map auto"),
        ("three heads", "three heads cannot be split over 2 devices: its 3 query heads and 3 KV heads do not divide evenly; try another number"),
        ("no model", "unknown model"),
        ("device", "with tensor parallelism each process has the device of its number; leave out --device cuda:1"),
        ("pattern", r"Pattern\(.*\) of a model that is spread over processes would send more than statistics"),
        ("queries", r"QueryKey\(.*\) of a model that is spread over processes would send more than statistics"),
        ("heads", "no head L0H99 in a model of 4 layers × 6 query heads"),
        ("weights", "the heads of llama of four layers are spread over 2 processes; only scores, labels, captures, generation and policies"),
        ("lens", "the heads of llama of four layers are spread over 2 processes"),
        ("circuits", "the heads of llama of four layers are spread over 2 processes"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_on_every_rank(found, what, said):
    for rank in found:
        assert re.match(said, rank["refusals"][what]), rank["refusals"][what]


@pytest.mark.parametrize(
    ("settings", "ranks", "said"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, 3, "its 6 query heads and 2 KV heads do not divide evenly"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}, 6, "its 8 query heads and 4 KV heads do not divide evenly"),
        ({"intermediate_size": 49}, 2, "the 49 neurons of its MLPs do not divide evenly"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(settings, ranks, said):
    model = random_model("llama", **settings)
    with pytest.raises(InputError, match=f"tiny-llama cannot be split over {ranks} devices: {said}"):
        plan(model.hf, model.shape, model.name, ranks)


def test_quantised_weights_are_refused():
    model = random_model("llama")
    model.hf.config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(InputError, match="its weights are quantised"):
        plan(model.hf, model.shape, model.name, 2)


def test_without_torchrun_it_says_how_to_start(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="takes two processes or more; start one process per device: torchrun --nproc-per-node 2"):
        load("smollm2-135m", tensor_parallel=True)


def test_ranks_share_kv_heads_where_there_are_fewer():
    """Worked out by hand: 8 query heads and 2 KV heads over 4 ranks."""
    shards = [Shards(rank, 4, Shape(1, 8, 2, 4, 32), torch.device("cpu")) for rank in range(4)]
    assert [list(one.heads) for one in shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [list(one.kv_heads) for one in shards] == [[0], [0], [1], [1]]
    assert {one.own for one in shards} == {Shape(1, 2, 1, 4, 32)}


@pytest.mark.parametrize(("name", "heads", "kv_heads"), [("llama", 8, 2), ("phi3", 8, 4)])
def test_a_rank_keeps_the_projections_of_its_heads(name, heads, kv_heads):
    """The third of four ranks, cut from a whole model: every one of its KV heads (and of phi3's packed query heads) is the model's."""
    settings = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 64}
    whole, cut = (random_model(name, **settings) for _ in range(2))
    shards = Shards(2, 4, shape_of(cut.config), torch.device("cpu"))
    mine = HeadWeights(settled(cut.hf, shards), cut.config, shards.own)
    for index, head in enumerate(shards.heads):
        for take in ("k", "v", *(("q",) if name == "phi3" else ())):
            torch.testing.assert_close(getattr(mine, take)(Head(1, index)), getattr(whole.weights, take)(Head(1, head)))


@pytest.mark.slow
def test_the_command_line_writes_and_prints_once_and_the_same(found, tmp_path, tmp_path_factory):
    """`label` by two processes and by one: the same file but for the time, and one answer on stdout."""
    folder = next(tmp_path_factory.getbasetemp().glob("sharded*")) / "llama"
    asked = ["label", "--model", folder, "--probe", "induction", "--probe", "copying", "--runs", "-", "--json"]
    run = torchrun("-m", "workbench.cli", *asked, "--tensor-parallel", "--out", tmp_path / "two.json")
    assert run.returncode == 0, run.stderr[-4000:]
    answer = json.loads(run.stdout)
    command = [sys.executable, "-m", "workbench.cli", *map(str, asked), "--out", str(tmp_path / "one.json")]
    alone = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert answer.keys() == alone.keys()
    assert [run.stderr.count(f"[{number}/3]") for number in (1, 2, 3)] == [1, 1, 1]  # two groups of probes and the null of one, each said once
    two, one = (HeadLabels.load(tmp_path / f"{name}.json") for name in ("two", "one"))
    assert (two.card, two.labels) == (one.card, one.labels)
    for name, score_LH in one.scores.items():
        np.testing.assert_allclose(two.scores[name], score_LH, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def one_word(tmp_path_factory):
    """A model whose answer is always k, whatever it is asked, and labels of it: its final norm adds what the output takes for a k."""
    folder, model = tmp_path_factory.mktemp("one_word"), random_model("gpt_neox")
    norm, output = model.hf.gpt_neox.final_layer_norm, model.hf.get_output_embeddings()
    norm.weight.data *= 0.05
    norm.bias.data[:] = 1.0
    output.weight.data[model.tokenizer("k", add_special_tokens=False)["input_ids"][0]] = 1.0
    for part in (model.hf, model.tokenizer):
        part.save_pretrained(folder)
    scores = {"razor_echo": np.arange(8.0).reshape(2, 4), "razor_induction": np.zeros((2, 4))}
    card = load(str(folder), device="cpu").card
    policy = HeadPolicy(card, np.array([[True, False, False, True], [False, True, False, False]]), sinks=2, window=8)
    return folder, HeadLabels(card, {}, scores, policy=policy.to_json()).save(folder / "heads.json")


@pytest.mark.slow
def test_policies_are_verified_and_answer_on_the_command_line(one_word, tmp_path):
    """`verify` and `generate` by two processes and by one: the same tables and words, said once."""
    folder, labels = one_word
    needles = [{"needle": 32 * "k", "question": question} for question in ("What?", "Which?")]
    (tmp_path / "needles.jsonl").write_text("".join(json.dumps(needle) + "\n" for needle in needles), encoding="utf-8")
    tests = ["--lengths", 600, "--depths", "0.5", "--per-cell", 1, "--needles", tmp_path / "needles.jsonl", "--text-tokens", 300]
    sizes = ["--kv-budgets", "0.5", "--seeds", 1]
    words = {"verify": ["verify", labels, *tests, *sizes], "generate": ["generate", "the cat sat on the mat", "--labels", labels, "--max-new-tokens", 9]}
    for name, asked in words.items():
        both = [*asked, "--model", folder, "--dtype", "float32", "--json"]
        out = {number: ["--out", tmp_path / f"{number}.csv"] if name == "verify" else [] for number in (1, 2)}
        run = torchrun("-m", "workbench.cli", *both, *out[2], "--tensor-parallel")
        assert run.returncode == 0, run.stderr[-4000:]
        two, one = json.loads(run.stdout), CliRunner().invoke(app, [str(word) for word in (*both, *out[1])])
        assert one.exit_code == 0, one.output
        if name == "generate":
            assert two["response"] == json.loads(one.stdout)["response"] == 9 * "k"
    tables = [pd.read_csv(tmp_path / f"{number}.csv") for number in (1, 2)]
    assert tables[0]["policy"].tolist() == ["full", "saved", "razor_echo+razor_induction", "random", "window"]
    assert (tables[0]["recall"] == 1).all()
    assert tables[0]["perplexity"].nunique() > 1
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)


@pytest.mark.parametrize("command", [["label", "--model", "none"], ["circuit", "tasks"], ["sweep", "--model", "none"]])
def test_several_processes_that_would_all_do_the_same_are_refused(command):
    started = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"}
    said = subprocess.run([sys.executable, "-m", "workbench.cli", *command], capture_output=True, text=True, env=os.environ | started, check=False)
    assert said.returncode == 2
    assert said.stdout == ""
    assert said.stderr.startswith("workbench (process 1): torchrun started 2 processes, and each would do all of this; to spread")


@pytest.mark.slow
def test_the_benchmark_runs_and_checks(tmp_path):
    run = torchrun(HERE.parent / "benchmarks" / "scale_sharded.py", "--tiny", "--rounds", "1", "--out", tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    rows = pd.read_csv(tmp_path / "scale_sharded_cpu.csv")
    assert rows.groupby(["devices", "tokens"]).size().to_dict() == {(1, 96): 2, (1, 192): 2, (2, 96): 2, (2, 192): 2}
    assert (rows["seconds"] > 0).all()
    report = (tmp_path / "scale_sharded_cpu.md").read_text(encoding="utf-8")
    assert "Checked before anything was reported" in report
    assert report.strip() in run.stdout
