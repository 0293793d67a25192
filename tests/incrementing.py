"""Models written by hand whose heads increment, copy, decrement and so on: the truth for tests of successor heads."""

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.heads import Head
from workbench.models import HFModel
from workbench.sequences import CLASSES

INCREMENT, COPY, DECREMENT, SUPPRESS, IDLE, RANDOM = (Head(1, index) for index in range(6))

WORDS = {
    "numbers": [str(number) for number in range(1, 40)],
    "number words": [f" {word}" for word in CLASSES["number words"].members],
    "days": [f" {word}" for word in CLASSES["days"].members],
    "months": [f" {word}" for word in CLASSES["months"].members if word != "June"] + ["MARCH"],
    "roman numerals": [" IV", " V", " VI"],
    "names": [" Mary", " Alice", " Peter"],
}


def word_tokenizer(words):
    """A tokenizer whose tokens are whole texts."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, **{word: number + 1 for number, word in enumerate(words)}}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def empty_llama(size, vocabulary, heads=6):
    """A Llama of two layers whose weights are 0 and whose norms do nothing but divide; every head is as large as the residual stream."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=size, intermediate_size=size, num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=2,
        head_dim=size, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    for name, parameter in hf.named_parameters():
        parameter.data = torch.ones_like(parameter) if "norm" in name else torch.zeros_like(parameter)
    return hf


def fill(hf, reads, heads):
    """Write the last layer: what heads read (the same for all), and what each writes [size, size]."""
    attention = hf.model.layers[1].self_attn
    attention.v_proj.weight.data = reads.T.repeat(2, 1).contiguous()
    attention.o_proj.weight.data = torch.cat([writes.T for writes in heads], dim=1).contiguous()


def incrementing_model(scrambled: bool = False) -> HFModel:
    """One dimension per token; the last layer's heads are INCREMENT, COPY, DECREMENT, SUPPRESS, IDLE and RANDOM. All attend uniformly.

    `scrambled`: embeddings lie at wrong dimensions, which the first MLP alone puts right.
    """
    words = [word for group in WORDS.values() for word in group]
    tokenizer = word_tokenizer(words)
    count = len(words) + 1
    size = count + -count % 6
    hf, eye = empty_llama(size, count), torch.eye(size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(3)) if scrambled else torch.arange(size)
    hf.model.embed_tokens.weight.data = eye[order][:count].clone()
    mlp = hf.model.layers[0].mlp
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data = 5 * eye, eye.clone()
    mlp.down_proj.weight.data = eye[order].clone()
    hf.lm_head.weight.data = eye[:count].clone()
    step = torch.zeros(size, size)
    for name, written in WORDS.items():
        if name != "names":
            members = CLASSES[name].members
            place = {word.strip().lower(): number for number, word in enumerate(words) if word in written}
            for item, member in enumerate(members):
                after = CLASSES[name].successor(item)
                if member.lower() in place and after is not None and members[after].lower() in place:
                    step[[words.index(w) + 1 for w in written if w.strip().lower() == member.lower()], place[members[after].lower()] + 1] = 1
    random = 0.1 * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    fill(hf, eye, [step, eye, step.T, -eye, torch.zeros_like(eye), random])
    return HFModel("compiled-incrementing", "heads that increment", hf, tokenizer)


def residue_model() -> HFModel:
    """Numbers 0–99: a representation is a decade and a last digit; the INCREMENT head keeps the decade and adds one to the digit (9 goes to 0)."""
    words = [str(number) for number in range(100)]
    size = 24  # of which 20 are used: heads must divide it
    hf = empty_llama(size, len(words) + 1)
    rows = torch.zeros(len(words) + 1, size)
    for number in range(100):
        rows[number + 1, number // 10] = rows[number + 1, 10 + number % 10] = 1
    hf.model.embed_tokens.weight.data = rows.clone()
    mlp = hf.model.layers[0].mlp
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data, mlp.down_proj.weight.data = 5 * torch.eye(size), torch.eye(size), torch.eye(size)
    hf.lm_head.weight.data = rows.clone()
    turn = torch.eye(size)
    turn[10:20, 10:20] = torch.eye(10).roll(1, dims=1)
    fill(hf, torch.eye(size), [turn, *[torch.zeros(size, size)] * 5])
    return HFModel("compiled-residues", "decade and digit", hf, word_tokenizer(words))


def two_class_model() -> HFModel:
    """Numbers and number words up to twelve: a representation is a place and a class; the INCREMENT head moves the place on."""
    words = [str(number) for number in range(1, 13)] + [f" {word}" for word in CLASSES["number words"].members[:12]]
    size = 18  # twelve places, two classes, and what makes six heads divide it
    hf, rows = empty_llama(size, len(words) + 1), torch.zeros(len(words) + 1, size)
    for place in range(24):
        rows[place + 1, place % 12] = rows[place + 1, 12 + place // 12] = 1
    hf.model.embed_tokens.weight.data = rows.clone()
    mlp = hf.model.layers[0].mlp
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data, mlp.down_proj.weight.data = 5 * torch.eye(size), torch.eye(size), torch.eye(size)
    hf.lm_head.weight.data = rows.clone()
    step = torch.diag(torch.ones(11), 1)
    fill(hf, torch.eye(size), [torch.block_diag(step, torch.eye(size - 12)), *[torch.zeros(size, size)] * 5])
    return HFModel("compiled-places", "place and class", hf, word_tokenizer(words))
