"""Is a model whose layers are offloaded the same model? Weights on the disk and on the CPU, fetched by accelerate for the moment, beside a model in memory."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from workbench import measure
from workbench.captures import capture
from workbench.cli import app
from workbench.edits import Ablate, Calibrate
from workbench.errors import InputError
from workbench.heads import Head
from workbench.kernels import apply
from workbench.labels import HeadLabels
from workbench.models import load
from workbench.plan import LINK, away
from workbench.policies import HeadPolicy
from workbench.reads import Entropy, HeadOutput, NextToken, Peak, Received, Written
from workbench.tiny import random_model

FIRST = {"llama": "model.layers", "gpt2": "transformer.h", "phi3": "model.layers", "gemma2": "model.layers", "gpt_neox": "gpt_neox.layers"}
"""The blocks of some architectures: with packed projections and without, tied embeddings and untied."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Each model in memory, and with its first block, and the output if that is untied, on the disk."""
    made = {}
    for name, blocks in FIRST.items():
        folder, model = tmp_path_factory.mktemp("models") / name, random_model(name)
        model.hf.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        inner = blocks.partition(".")[0]
        places = {f"{inner}.{part}": "cpu" for part, _ in getattr(model.hf, inner).named_children() if f"{inner}.{part}" != blocks}
        places |= {f"{blocks}.0": "disk", f"{blocks}.1": "cpu", "lm_head": "cpu" if model.hf.config.tie_word_embeddings else "disk"}
        made[name] = load(str(folder), device="cpu"), load(str(folder), device_map=places)
    return made


@pytest.mark.parametrize("name", FIRST)
def test_what_is_offloaded_is_scored_and_captured_as_in_memory(pairs, name, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"In year {year} the river rose by {year * 7 % 91} feet." for year in range(300)), encoding="utf-8")
    here, there = pairs[name]
    assert any(weight.is_meta for weight in there.hf.parameters())
    assert there.card == here.card
    asked = ["induction", "copying", "copy_suppression", "no_op_update", "successor"]
    scores = [measure.score(model, asked, seed=1) for model in (here, there)]
    pd.testing.assert_frame_equal(scores[0].table, scores[1].table, check_exact=True)
    heads = (Head(0, 1), Head(1, 0))
    seen = [
        capture(model, text.read_text()[:90], [Entropy(), Peak(), Received(), HeadOutput(), Written(), NextToken()], [Calibrate(), Ablate(heads)])
        for model in (here, there)
    ]
    for read, value in seen[0].values.items():
        for part, wanted in zip(*(other if isinstance(other, tuple) else (other,) for other in (seen[1][read], value)), strict=True):
            np.testing.assert_array_equal(part, wanted)


def under_a_policy(model, policy, **how):
    """Logits of a pass in two pieces over prompts of which one is padded, and what is then decoded."""
    ids = torch.randint(3, 259, (2, 40), generator=torch.Generator().manual_seed(3)).to(model.device)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.inference_mode(), apply(model, policy, **how) as applied:
        cache = applied.cache()
        parts = [applied.hf(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits for a, b in ((0, 24), (24, 40))]
        said = applied.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    return torch.cat(parts, 1).cpu(), said.cpu()


@pytest.mark.parametrize("semantics", ["exact", "decode"])
@pytest.mark.parametrize("name", FIRST)
def test_a_policy_on_what_is_offloaded_is_that_policy_in_memory(pairs, name, semantics):
    """The heads of the offloaded layer change places in every pass, those of the other one as weights; and all is as before at the end."""
    here, there = pairs[name]
    full_LG = np.zeros((2, here.shape.n_kv_heads), dtype=bool)
    full_LG[:, -1] = True  # so that both layers are permuted
    policy = HeadPolicy(here.card, full_LG, sinks=2, window=8, semantics=semantics)
    assert policy.order(0) != sorted(policy.order(0))
    (wanted, words), (logits, said) = (under_a_policy(model, policy) for model in (here, there))
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
    assert torch.equal(said, words)
    everything = under_a_policy(there, HeadPolicy(here.card, np.ones_like(full_LG)))[0]  # all heads full: the model that it was before
    torch.testing.assert_close(everything, under_a_policy(here, HeadPolicy(here.card, np.ones_like(full_LG)))[0], rtol=0, atol=1e-5)
    assert ((everything - logits).abs().max() > 0.01) == (semantics == "exact")  # with `decode` only what is decoded is cut off


def test_a_bridge_shares_weights_and_is_refused(pairs):
    _, model = pairs["llama"]
    with pytest.raises(InputError, match="a TransformerBridge takes the weights of llama in one place, and a device map has put them on cpu, disk"):
        _ = model.lens


def test_everything_on_one_device_is_a_model_as_ever(pairs):
    model = load(pairs["llama"][0].origin, device_map="auto", dtype="float32")
    assert not any(weight.is_meta for weight in model.hf.parameters())
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), apply(model, HeadPolicy(model.card, np.eye(2, dtype=bool), sinks=2, window=8)) as applied:
        assert applied.hf(ids).logits.isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device_map": "balanced"}, "unknown device map 'balanced'; there are: auto"),
        ({"device_map": "auto", "device": "cpu"}, "--device-map chooses the devices; leave out --device cpu"),
        ({"device_map": "auto", "tensor_parallel": True}, "--device-map and --tensor-parallel are two ways to spread a model; choose one"),
        ({"gpu_memory": 20.0}, "--gpu-memory bounds what --device-map auto puts on a GPU; give both"),
    ],
)
def test_options_that_do_not_go_together_are_refused(pairs, options, said):
    with pytest.raises(InputError, match=said):
        load(pairs["llama"][0].origin, **options)


def plan(*words):
    """The plan's answer as data, for the induction probe on a tiny model."""
    run = CliRunner().invoke(app, ["plan", "--probe", "induction", "--json", "--model", *map(str, words)])
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


def test_the_plan_counts_what_is_fetched_in_every_pass(pairs):
    """By hand: weights of 2 bytes, less the room, at the stated bytes per second, once per forward pass; and they do not lie on the GPU."""
    folder, model = pairs["llama"][0].origin, pairs["llama"][0]
    total = 2 * sum(weight.numel() for weight in model.hf.parameters())
    room = 2**15
    fits, less = plan(folder, "--device-map", "auto", "--gpu-memory", 1), plan(folder, "--device-map", "auto", "--gpu-memory", room / 2**30)
    assert (fits["offloaded_bytes"], less["offloaded_bytes"]) == (0, total - room)
    assert less["seconds"] - fits["seconds"] == pytest.approx(less["forwards"] * (total - room) / LINK)
    assert fits["bytes"] - less["bytes"] == total - room
    assert less["assumptions"][-1].endswith("at 8 GB/s, as measured on an H100")
    assert f"fetched in each of {less['forwards']:,} forwards" in less["assumptions"][-1]
    assert not any("fetched in each" in line for line in fits["assumptions"])


def test_what_is_offloaded_is_what_the_plan_says(pairs):
    """`away` counts the weights that are fetched: those of a model in memory are none."""
    here, there = pairs["llama"]
    assert away(here) == 0
    assert away(there) == sum(weight.nbytes for name, weight in here.hf.named_parameters() if name.startswith(("model.layers.0.", "lm_head")))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu-memory", "1"), "--gpu-memory bounds what --device-map auto puts on a GPU; give both"),
        (("--device-map", "even"), "unknown device map 'even'; there are: auto"),
        (("--device-map", "auto", "--device", "cpu"), "--device-map chooses the devices; leave out --device cpu"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(pairs, words, said):
    run = CliRunner().invoke(app, ["plan", "--model", str(pairs["llama"][0].origin), *words])
    assert run.exit_code == 2
    assert said in run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what is said where there is no GPU")
def test_without_a_gpu_the_plan_asks_for_one_to_imagine(pairs):
    run = CliRunner().invoke(app, ["plan", "--model", str(pairs["llama"][0].origin), "--device-map", "auto"])
    assert run.exit_code == 2
    assert "say with --gpu-memory how many GiB weights may take there" in run.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "abc", "--labels", "LABELS"),
        ("verify", "LABELS", "--by", "induction"),
        ("needle", "LABELS", "--ablate", "L0H1"),
        ("map", "--text", "TEXT", "--head", "L0H1"),
        ("label", "--probe", "induction"),
        ("score", "--probe", "induction"),
    ],
)
def test_every_command_that_spreads_a_model_asks_for_it(pairs, words, tmp_path):
    """What `load` says of the options shows that they reach it."""
    model = pairs["llama"][0]
    files = {"TEXT": tmp_path / "text.txt", "LABELS": tmp_path / "heads.json"}
    files["TEXT"].write_text("the cat sat on the mat", encoding="utf-8")
    HeadLabels(model.card, {}, {"induction": np.zeros((2, 6))}).save(files["LABELS"])
    asked = [str(files.get(word, word)) for word in words]
    options = {
        ("--device-map", "even"): "unknown device map 'even'; there are: auto",
        ("--gpu-memory", "1"): "--gpu-memory bounds what --device-map auto puts on a GPU; give both",
        **({} if words[0] in ("needle", "map") else {("--tensor-parallel",): "tensor parallelism takes two processes or more"}),
    }
    for option, said in options.items():
        run = CliRunner().invoke(app, [*asked, "--model", model.origin, *option])
        assert run.exit_code == 2
        assert said in run.stderr


@pytest.mark.parametrize("spread", [("--device-map", "auto"), ("--gpu-memory", "4"), ("--tensor-parallel",)])
def test_other_workers_load_their_own_models(pairs, spread):
    model = pairs["llama"][0]
    run = CliRunner().invoke(app, ["score", "--model", str(model.origin), "--executor", "ray", *spread])
    assert run.exit_code == 2
    assert "with --executor ray each task loads its own" in run.stderr


def test_the_rows_whose_logits_are_kept_are_bound_to_no_device(pairs):
    """The output may lie on another GPU than the embedding; what accelerate moves to the first one cannot index it."""
    asked = []
    model = pairs["llama"][1]
    with model.hf.register_forward_pre_hook(lambda _, __, given: asked.append(given["logits_to_keep"]), with_kwargs=True):
        capture(model, "the cat sat on the mat", [NextToken()])
    assert asked
    assert not any(isinstance(rows, torch.Tensor) for rows in asked)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="layers are put on a GPU, and this machine has none")
@pytest.mark.parametrize("second", ["cpu", 1])
def test_layers_on_a_gpu_and_elsewhere_are_one_model(second, tmp_path):
    """The first layer on the first GPU; the second offloaded from it, or on the second GPU. Heads are large enough for the kernels of a GPU."""
    if second == 1 and torch.cuda.device_count() < 2:
        pytest.skip("the second layer is put on a second GPU, and this machine has one")
    made, folder = random_model("llama", hidden_size=256, num_attention_heads=4), str(tmp_path)
    for part in (made.hf, made.tokenizer):
        part.save_pretrained(folder)
    ends = {"model.norm": second, "lm_head": second} if second == 1 else {"model.norm": 0, "lm_head": 0}
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": second, **ends}
    models = load(folder, device="cuda", dtype="float32"), load(folder, device_map=places, dtype="float32")
    assert models[1].devices == [torch.device("cuda", number) for number in ((0, 1) if second == 1 else (0,))]
    heads = (Head(0, 1), Head(1, 0))
    reads = [Entropy(), Peak(), Received(), HeadOutput(), Written(), NextToken()]
    seen = [capture(model, "the cat sat on the mat", reads, [Calibrate(), Ablate(heads)]) for model in models]
    for read, value in seen[0].values.items():
        for part, wanted in zip(*(other if isinstance(other, tuple) else (other,) for other in (seen[1][read], value)), strict=True):
            np.testing.assert_allclose(part, wanted, rtol=1e-5, atol=1e-5)
    scores = [measure.score(model, ["induction", "copying", "copy_suppression"]).table for model in models]
    pd.testing.assert_frame_equal(*scores, rtol=0, atol=1e-5)
    policy = HeadPolicy(models[0].card, np.array([[False, True], [False, True]]), sinks=2, window=8)
    for implementation in ("torch", "triton"):
        (wanted, words), (logits, said) = (under_a_policy(model, policy, implementation=implementation) for model in models)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(said, words)
