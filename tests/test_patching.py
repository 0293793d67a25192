"""Patching against plain loops over hooked passes, which know nothing of the engine."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from workbench.circuits import patching, paths, writes
from workbench.circuits.anatomy import taken_apart
from workbench.circuits.paths import LOGITS, Receiver
from workbench.circuits.tasks import Item, Pairs, TaskSet
from workbench.errors import InputError
from workbench.heads import Head
from workbench.tiny import ARCHITECTURES, random_model

LENGTH, BATCH = 9, 3


def data(seed=0, batch=BATCH, length=LENGTH):
    rng = np.random.default_rng(seed)
    clean, corrupted = rng.integers(3, 259, (2, batch, length))
    corrupted[:, 0] = clean[:, 0]
    items = tuple(Item("a", "b", (" c",), (" d", " e"), "xyy"[number % 3]) for number in range(batch))
    right, wrong = [(int(x),) for x in rng.integers(3, 100, batch)], [(int(x), int(x) + 7) for x in rng.integers(101, 200, batch)]
    return TaskSet("random", (Pairs("random", "logit_difference", items, clean, corrupted, tuple(right), tuple(wrong)),), {}, 0)


def model_of(architecture, layers=3):
    settings = {"n_layer": layers} if architecture == "gpt2" else {"num_hidden_layers": layers}
    if architecture == "gemma3_text":
        settings["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"][:layers]
    return random_model(architecture, **settings)


@contextmanager
def hooks(pairs):
    """Functions called with what enters (before) or leaves (after) modules; what they return takes its place."""
    handles = []
    for module, when, function in pairs:
        if when == "before":
            handles.append(module.register_forward_pre_hook(lambda _m, args, f=function: (f(args[0]), *args[1:])))
        else:
            handles.append(module.register_forward_hook(lambda _m, _i, out, f=function: f(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(model, ids, *changes):
    with hooks(changes), torch.no_grad():
        return model.hf(torch.tensor(ids)).logits[:, -1]


def outputs(model, ids):
    """What enters every output projection: the heads' outputs side by side."""
    kept = {}
    keep = [(module, "before", lambda x, layer=layer: kept.setdefault(layer, x.clone())) for layer, module in enumerate(model.weights.outputs)]
    logits(model, ids, *keep)
    return kept


def put(model, layer, index, value, positions=None):
    """A hook that gives one head another output."""
    size = model.shape.d_head

    def change(x):
        x = x.clone()
        at = slice(None) if positions is None else positions
        x[:, at, index * size : (index + 1) * size] = value[:, at, index * size : (index + 1) * size]
        return x

    return model.weights.outputs[layer], "before", change


def metric(pairs, logits_BV):
    return pairs.measure(logits_BV).numpy()


def mlps(model):
    family_blocks = model.hf.get_submodule({"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}.get(model.config.model_type, "model.layers"))
    return [block.mlp for block in family_blocks]


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(ours, theirs, atol=tolerance * max(1.0, np.nanmax(np.abs(theirs))), rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trace_is_the_models_own_pass(architecture):
    model, pairs = model_of(architecture), data().pairs[0]
    with taken_apart(model, LENGTH) as anatomy, torch.no_grad():
        trace = anatomy.trace(torch.tensor(pairs.clean_BT))
    close(trace.logits_BV, logits(model, pairs.clean_BT).numpy())
    for layer, z in outputs(model, pairs.clean_BT).items():
        close(trace.z[layer].transpose(1, 2).flatten(2), z.numpy())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", [None, [4, -1]])
def test_patching_outputs_is_the_loop(architecture, positions):
    model, task = model_of(architecture), data()
    pairs = task.pairs[0]
    other, clean = outputs(model, pairs.corrupted_BT), metric(pairs, logits(model, pairs.clean_BT))
    effects = patching.activation_patching(model, task, positions=positions)
    expected = np.empty((BATCH, model.shape.n_layers, model.shape.n_heads), np.float32)
    for head in model.shape.heads():
        expected[:, head.layer, head.index] = (
            metric(pairs, logits(model, pairs.clean_BT, put(model, head.layer, head.index, other[head.layer], positions))) - clean
        )
    assert np.abs(expected).max() > 0.05
    close(effects.effect_NLH, expected)
    close(effects.base_N, clean)
    close(effects.other_N, metric(pairs, logits(model, pairs.corrupted_BT)))


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_other_ablations_are_the_loop(ablation):
    model, task = model_of("llama"), data()
    pairs = task.pairs[0]
    other, clean = outputs(model, pairs.corrupted_BT), metric(pairs, logits(model, pairs.clean_BT))
    templates = np.array(pairs.templates)
    alike = torch.tensor((templates[:, None] == templates) / (templates[:, None] == templates).sum(1, keepdims=True), dtype=torch.float32)
    value = {layer: torch.zeros_like(z) if ablation == "zero" else torch.einsum("ab,b...->a...", alike, z) for layer, z in other.items()}
    effects = patching.activation_patching(model, task, ablation=ablation)
    for head in model.shape.heads():
        close(
            effects.effect_NLH[:, head.layer, head.index],
            metric(pairs, logits(model, pairs.clean_BT, put(model, head.layer, head.index, value[head.layer]))) - clean,
        )


def test_denoising_is_noising_with_prompts_exchanged():
    model, task = model_of("qwen3"), data()
    pairs = task.pairs[0]
    turned = TaskSet("t", (Pairs("t", "logit_difference", pairs.items, pairs.corrupted_BT, pairs.clean_BT, pairs.right, pairs.wrong),), {}, 0)
    close(patching.activation_patching(model, task, direction="denoising").effect_NLH, patching.activation_patching(model, turned).effect_NLH)


def sliced(model, layer, branch, index):
    """The module that makes a branch's projection, and where in its output one head's lies: [.., width] -> mask."""
    shape, attention = model.shape, model.weights.attentions[layer]
    kind, size = model.config.model_type, model.shape.d_head
    if kind == "gpt2":
        start = "qkv".index(branch) * shape.d_model + index * size
        return attention.c_attn, slice(start, start + size)
    if kind == "gpt_neox":
        start = (index * 3 + "qkv".index(branch)) * size
        return attention.query_key_value, slice(start, start + size)
    if kind == "phi3":
        start = {"q": 0, "k": shape.n_heads * size, "v": (shape.n_heads + shape.n_kv_heads) * size}[branch] + index * size
        return attention.qkv_proj, slice(start, start + size)
    return getattr(attention, f"{branch}_proj"), slice(index * size, (index + 1) * size)


def received(model, ids, layer, branch, index, changes):
    module, where = sliced(model, layer, branch, index)
    kept = []
    logits(model, ids, (module, "after", lambda out: kept.append(out[..., where].clone()) or out), *changes)
    return kept[0]


def give(model, layer, branch, index, value, positions=None):
    module, where = sliced(model, layer, branch, index)

    def change(out):
        out = out.clone()
        at = slice(None) if positions is None else positions
        out[:, at, where] = value[:, at]
        return out

    return module, "after", change


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("branch", ["q", "k", "v"])
def test_patching_a_branch_is_the_loop(architecture, branch):
    model, task = model_of(architecture, 2), data()
    pairs = task.pairs[0]
    clean = metric(pairs, logits(model, pairs.clean_BT))
    effects = patching.activation_patching(model, task, component=branch, positions=[2, 5])
    units = model.shape.n_heads if branch == "q" else model.shape.n_kv_heads
    assert effects.effect_NLH.shape == (BATCH, 2, units)
    assert effects.groups == (units < model.shape.n_heads)
    for layer in range(2):
        for index in range(units):
            value = received(model, pairs.corrupted_BT, layer, branch, index, [])
            close(effects.effect_NLH[:, layer, index], metric(pairs, logits(model, pairs.clean_BT, give(model, layer, branch, index, value, [2, 5]))) - clean)


def test_pattern_alone_and_values_alone_make_up_an_output():
    """With the pattern and the values both replaced one after the other, from the other prompt, the output is the other prompt's."""
    model, pairs = model_of("gpt2"), data().pairs[0]
    with taken_apart(model, LENGTH) as anatomy, torch.no_grad():
        from workbench.circuits.alternatives import alternatives
        from workbench.circuits.anatomy import mixed

        clean, corrupted = (anatomy.trace(torch.tensor(ids)) for ids in (pairs.clean_BT, pairs.corrupted_BT))
        other = alternatives(anatomy, clean, corrupted, "pattern", "resample")
        for layer, z in enumerate(other):
            close(z, mixed(anatomy.pattern(layer, corrupted.q[layer], corrupted.k[layer]), clean.v[layer]).numpy())
            close(mixed(anatomy.pattern(layer, corrupted.q[layer], corrupted.k[layer]), corrupted.v[layer]), corrupted.z[layer].numpy())


def naive_paths(model, pairs, sender, receiver, *, frozen_mlps=False, positions=None, receiver_positions=None):
    """The three passes of Wang et al.; several receivers get what the second pass gives them at once."""
    clean, corrupted = outputs(model, pairs.clean_BT), outputs(model, pairs.corrupted_BT)
    frozen = []
    for layer, module in enumerate(model.weights.outputs):
        frozen.append((module, "before", lambda x, layer=layer: clean[layer].clone()))
    if frozen_mlps:
        kept = {}
        logits(model, pairs.clean_BT, *[(mlp, "after", lambda out, n=n: kept.setdefault(n, out.clone())) for n, mlp in enumerate(mlps(model))])
        frozen += [(mlp, "after", lambda out, n=n: kept[n]) for n, mlp in enumerate(mlps(model))]
    changes = [*frozen, put(model, sender.layer, sender.index, corrupted[sender.layer], positions)]
    if receiver == LOGITS:
        return metric(pairs, logits(model, pairs.clean_BT, *changes))
    given = []
    for one in receiver if isinstance(receiver, tuple) else (receiver,):
        value = received(model, pairs.clean_BT, one.layer, one.branch, one.index, changes)
        given.append(give(model, one.layer, one.branch, one.index, value, receiver_positions))
    return metric(pairs, logits(model, pairs.clean_BT, *given))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("how", [{}, {"frozen_mlps": True}, {"positions": [3, 6]}, {"positions": [-2], "receiver_positions": [-1]}])
def test_path_patching_is_three_passes(architecture, how):
    model, task = model_of(architecture), data()
    pairs = task.pairs[0]
    together = (Receiver(2, 1, "q"), Receiver(1, 0, "k"), Receiver(2, 0, "v"), Receiver(1, 1, "q"))
    receivers = [LOGITS, Receiver(2, 1, "q"), Receiver(2, 0, "k"), Receiver(1, 0, "v"), together]
    clean = metric(pairs, logits(model, pairs.clean_BT))
    found = paths.path_patching(model, task, receivers, **how)
    for receiver in receivers:
        for head in model.shape.heads():
            ours = found[receiver].effect_NLH[:, head.layer, head.index]
            if receiver != LOGITS and head.layer >= (2 if receiver == together else receiver.layer):
                assert np.isnan(ours).all()
                continue
            close(ours, naive_paths(model, pairs, head, receiver, **how) - clean)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("how", [{}, {"frozen_mlps": True}, {"ablation": "mean"}, {"positions": [3, 6]}, {"positions": [2, -1]}])
def test_paths_to_the_logits_alone_are_those_beside_other_receivers(architecture, how):
    """They take the last position only, as nothing else reaches it; beside receivers at other positions all of them are carried."""
    model, task = model_of(architecture), data()
    alone = paths.path_patching(model, task, **how)[LOGITS]
    beside = paths.path_patching(model, task, [LOGITS, Receiver(1, 0, "k")], **how)[LOGITS]
    close(alone.effect_NLH, beside.effect_NLH)
    assert (np.abs(beside.effect_NLH).max() > 1e-3) == (how.get("positions") != [3, 6])


def test_receivers_at_once_are_heads():
    model, task = model_of("llama"), data()
    one = paths.path_patching(model, task, [Receiver(2, 1, "q"), (Receiver(2, 1, "q"),)])
    np.testing.assert_array_equal(*(effects.effect_NLH for effects in one.values()))
    assert [effects.facts["receiver"] for effects in paths.path_patching(model, task, [(Receiver(2, 1, "q"), Receiver(1, 0, "k"))]).values()] == [
        "L2H1.q+L1G0.k"
    ]
    for wrong in ((), (LOGITS, Receiver(2, 1, "q"))):
        with pytest.raises(InputError, match="at once are heads"):
            paths.path_patching(model, task, [wrong])


def test_senders_that_say_the_same_have_no_effect():
    model, task = model_of("gemma2"), data()
    pairs = task.pairs[0]
    same = TaskSet("same", (Pairs("same", "logit_difference", pairs.items, pairs.clean_BT, pairs.clean_BT, pairs.right, pairs.wrong),), {}, 0)
    for effects in (patching.activation_patching(model, same), *paths.path_patching(model, same, [LOGITS, Receiver(1, 0, "k")]).values()):
        close(np.nan_to_num(effects.effect_NLH), np.zeros_like(effects.effect_NLH), 1e-6)


def test_direct_paths_with_frozen_mlps_are_direct_attribution_with_the_norm_recomputed():
    model, task = model_of("llama"), data()
    pairs = task.pairs[0]
    effects = paths.path_patching(model, task, frozen_mlps=True)[LOGITS]
    with taken_apart(model, LENGTH) as anatomy, torch.no_grad():
        clean, corrupted = (anatomy.trace(torch.tensor(ids)) for ids in (pairs.clean_BT, pairs.corrupted_BT))
        for layer in range(model.shape.n_layers):
            change_BHD = (writes.head_writes(anatomy, layer, corrupted.z[layer]) - writes.head_writes(anatomy, layer, clean.z[layer]))[:, :, -1]
            for index in range(model.shape.n_heads):
                moved = anatomy.logits(clean.x[-1][:, -1] + change_BHD[:, index])
                close(effects.effect_NLH[:, layer, index], metric(pairs, moved) - metric(pairs, clean.logits_BV))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3_text", "gpt_neox"])
def test_direct_attribution_adds_up(architecture):
    """Heads, MLPs, output biases and the embedding together are the logit difference, up to what the final norm adds by its bias."""
    model, task = model_of(architecture), data()
    pairs = task.pairs[0]
    effects = patching.direct_attribution(model, task)
    with taken_apart(model, LENGTH) as anatomy, torch.no_grad():
        clean = anatomy.trace(torch.tensor(pairs.clean_BT))
        unembedding = model.hf.get_output_embeddings().weight
        direction = torch.stack([unembedding[list(r)].mean(0) - unembedding[list(w)].mean(0) for r, w in zip(pairs.right, pairs.wrong, strict=True)])
        rest = clean.x[0][:, -1] + sum(part[:, -1] for part in clean.mlp)
        for layer in range(model.shape.n_layers):
            rest = rest + clean.attention[layer][:, -1] - writes.head_writes(anatomy, layer, clean.z[layer])[:, :, -1].sum(1)
        bias = getattr(model.weights.final_norm_module, "bias", None)
        total = writes.to_logits(anatomy, clean.x[-1][:, -1], direction, rest[:, None])[:, 0] + (0 if bias is None else direction @ bias)
    close(effects.effect_NLH.sum((1, 2)) + total.numpy(), metric(pairs, clean.logits_BV))


def test_replacing_all_heads_of_the_last_layer_is_the_loop_and_nothing_is_nothing():
    model, task = model_of("mistral"), data()
    pairs = task.pairs[0]
    other = outputs(model, pairs.corrupted_BT)
    sets = np.zeros((3, 3, model.shape.n_heads), bool)
    sets[1, 2], sets[2, :, 0] = True, True
    value, base, _ = patching.replace_sets(model, task, sets)
    close(value[0], base)
    close(value[1], metric(pairs, logits(model, pairs.clean_BT, *[put(model, 2, index, other[2]) for index in range(model.shape.n_heads)])))
    close(value[2], metric(pairs, logits(model, pairs.clean_BT, *[put(model, layer, 0, other[layer]) for layer in range(3)])))


def test_small_pieces_give_the_same(monkeypatch):
    model, task = model_of("llama"), data(batch=5)
    whole, through = patching.activation_patching(model, task, ablation="mean"), paths.path_patching(model, task, [LOGITS, Receiver(2, 0, "k")])
    monkeypatch.setattr("workbench.circuits.patching.TRACED", 2 * LENGTH)
    for module in ("sweep", "paths"):
        monkeypatch.setattr(f"workbench.circuits.{module}.TOKENS", {"cpu": 4 * LENGTH})
    close(patching.activation_patching(model, task, ablation="mean").effect_NLH, whole.effect_NLH)
    for receiver, effects in paths.path_patching(model, task, [LOGITS, Receiver(2, 0, "k")]).items():
        np.testing.assert_allclose(effects.effect_NLH, through[receiver].effect_NLH, atol=3e-5)


def test_the_model_is_what_it_was():
    model, task = model_of("gemma2"), data()
    before = logits(model, task.pairs[0].clean_BT)
    patching.activation_patching(model, task)
    paths.path_patching(model, task, [Receiver(1, 0, "k")])
    assert torch.equal(before, logits(model, task.pairs[0].clean_BT))


def test_receivers_are_read_and_refused():
    shape = model_of("llama").shape
    assert Receiver.parse("L2H5.q", shape) == Receiver(2, 5, "q")
    assert Receiver.parse("L2H5.k", shape) == Receiver(2, 1, "k") == Receiver.parse("L2G1.k", shape)
    assert str(Receiver(2, 1, "k")) == "L2G1.k"
    for text in ("L2H5", "L9H0.q", "L1G2.v", "L1G0.q", "head.q"):
        with pytest.raises(InputError):
            Receiver.parse(text, shape)
    with pytest.raises(InputError, match="component"):
        patching.activation_patching(model_of("llama"), data(), component="x")
    for wrong in ([LENGTH], [], [-LENGTH - 1]):
        with pytest.raises(InputError, match="positions lie"):
            patching.activation_patching(model_of("llama"), data(), positions=wrong)
    with pytest.raises(InputError, match="logit differences"):
        patching.direct_attribution(model_of("llama"), data(), "kl")


def test_effects_are_ranked_and_tabled():
    model, task = model_of("llama"), data(batch=6)
    effects = patching.activation_patching(model, task)
    table = effects.table()
    assert list(table["head"]) == [str(head) for head in effects.ranked()]
    best = Head.parse(table["head"][0])
    assert abs(table["effect"][0]) == pytest.approx(np.abs(effects.mean_LH).max())
    assert (table["low"] <= table["effect"]).all()
    assert (table["effect"] <= table["high"]).all()
    assert table["normalised"][0] == pytest.approx(effects.mean_LH[best.layer, best.index] / (effects.other_N - effects.base_N).mean())
    assert (table["p"] <= table["q"] + 1e-12).all()
    assert table["p"].min() >= 2 / 2**6
