"""Which heads find the indirect object, for certain? An attention-only model whose weights are written by hand, with decoys, an opponent and a backup.

"… Ann and Bob … gave … Bob … to" → Ann. 1. The duplicate-token head, L0H0, finds from the second Bob the first one, and writes down its
position and a flag. 2. The two S-inhibition heads, L1H2 and L1H4, see the flag from the end, and each carry there one half of "not this position, not
this name". 3. Two name movers, L2H1 and L2H3, attend from the end to the name that is not inhibited and write it; the negative mover, L2H5, attends
like them and takes some of it back. 4. The backup mover, L3H0, does as the movers do, where they have not written the name already.
The previous-token head, L0H1, attends sharply and writes into a slot that no head reads. The other 16 heads attend at random and write
into such a slot too; with a `leak` also a little into all others. A head with nothing to do attends to the first token.

After the circuit of Wang et al. 2022 (arXiv 2211.00593). The residual stream, and each head inside, are rotated at random, so that nothing
can be read off from coordinates. There are no MLPs and no norms.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.circuits.name_prompts import LENGTH, NAMES, START, TO, WORDS, word_tokenizer
from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel

LAYERS, HEADS, SIZE = 4, 6, 64

DUPLICATE, PREVIOUS, INHIBITION = Head(0, 0), Head(0, 1), (Head(1, 2), Head(1, 4))
MOVERS, NEGATIVE, BACKUP = (Head(2, 1), Head(2, 3)), Head(2, 5), Head(3, 0)
ROLES: dict[Head, str] = {
    DUPLICATE: "duplicate token",
    **dict.fromkeys(INHIBITION, "S-inhibition"),
    **dict.fromkeys(MOVERS, "name mover"),
    NEGATIVE: "negative mover",
    BACKUP: "backup mover",
}
"""The seven heads of the circuit. `PREVIOUS` is a decoy: it attends like a head of a circuit and has no effect."""

GAINS = {MOVERS[0]: 4.0, MOVERS[1]: 3.0, NEGATIVE: -2.0, BACKUP: 3.0}
"""How much of the name at which it looks a mover writes."""

Edge = tuple[Head, Head | None, str]
"""Sender, receiver (None: the logits), and where it is received: `q`, `k`, `v` or `logits`."""

EDGES: frozenset[Edge] = frozenset(
    [(DUPLICATE, head, part) for head in INHIBITION for part in "kv"]
    + [(head, mover, "q") for head in INHIBITION for mover in GAINS]
    + [(head, BACKUP, "q") for head in (*MOVERS, NEGATIVE)]
    + [(mover, None, "logits") for mover in GAINS]
)
"""The 19 edges of the design, among the 672 of `all_edges`. At β = 20 only nine of them have an effect of their own: attention saturates."""

SLOTS = {"token": 30, "position": 12, "previous": 30, "where": 12, "flag": 1, "not_where": 12, "not_name": 30, "output": 30, "one": 1, "idle": 40}
"""The 198 coordinates of the residual stream before it is rotated. No head but the idle ones reads `previous` and `idle`."""

IDLE = {"qk": 0.35, "value": 3.5, "output": 0.05}
"""The spread of an idle head's weights. Values are read from names, so that what leaks differs between a prompt and its corrupted form; of the size at
which, at β = 5, the strongest edge that is not of the design has an effect of about 0.02 for a leak of 0.0003."""


def all_edges() -> tuple[Edge, ...]:
    """Every edge from a head to q, k or v of a head of a later layer, or to the logits: 672, sender by sender."""
    heads = [Head(layer, index) for layer in range(LAYERS) for index in range(HEADS)]
    later = {sender: [(sender, head, part) for head in heads if head.layer > sender.layer for part in "qkv"] for sender in heads}
    return tuple(edge for sender in heads for edge in [*later[sender], (sender, None, "logits")])


class Untouched(nn.Module):
    """What stands in the place of a norm: the output is the input. The gain of ones is there for those who ask a norm for it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """The vectors as they are, of any shape."""
        return x


def without_norms(config: GPT2Config) -> Any:
    """A GPT-2 of this configuration whose weights are all 0 and whose norms are `Untouched`."""
    with torch.device("meta"):
        hf: Any = GPT2LMHeadModel(config)
    hf = hf.to_empty(device="cpu")
    for parameter in hf.parameters():
        nn.init.zeros_(parameter)
    for block in hf.transformer.h:
        block.ln_1, block.ln_2 = Untouched(config.n_embd), Untouched(config.n_embd)
    hf.transformer.ln_f = Untouched(config.n_embd)
    return hf


def ioi_model(beta: float = 5.0, leak: float = 0.0, seed: int = 0, rotate: bool = True) -> HFModel:
    """A GPT-2 of four layers of six heads of 64, without norms and MLPs, that names the indirect object at the end of `name_prompts`.

    `beta` is the score of what a head looks for; the first token has half of it. At 3–8 every edge of the design has an effect of its own, from about 12
    on attention is hard. `leak` is the scale of what idle heads write everywhere: 0.0003–0.001 leave the model right, 0.01 breaks it.
    `seed` draws rotations, idle heads and leak. Without `rotate` the residual stream keeps its coordinates; heads are rotated inside all the same.
    Attention scores are not divided by the root of the head size. Raises `InputError` unless 0 < beta ≤ 50 and leak ≥ 0.
    """
    if not (0 < beta <= 50 and leak >= 0):
        raise InputError(f"a compiled IOI model has 0 < beta ≤ 50 and a leak of 0 or more, not {beta} and {leak}")
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=LENGTH, n_embd=HEADS * SIZE, n_layer=LAYERS, n_head=HEADS, n_inner=1, scale_attn_weights=False,
        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=START, eos_token_id=None,
    )  # fmt: skip
    hf = without_norms(config)
    _write(hf, _Slots(seed, rotate), beta, leak)
    facts = f"beta {beta:g}, leak {leak:g}, seed {seed}" + ", not rotated" * (not rotate)
    return HFModel("compiled-ioi", f"IOI circuit, {facts}", hf, word_tokenizer())


class _Slots:
    """Where in the residual stream each feature lies, in what directions, and the random numbers of the model."""

    def __init__(self, seed: int, rotate: bool) -> None:
        starts = torch.tensor([0, *SLOTS.values()]).cumsum(0).tolist()
        self.slices = {name: slice(start, start + size) for start, (name, size) in zip(starts, SLOTS.items(), strict=False)}
        self.used = starts[-1]
        self.generator = torch.Generator().manual_seed(seed)
        # The direction of all ones stays empty, so that a norm's centring, were there one, would change nothing.
        ones_D1 = torch.ones(HEADS * SIZE, 1, dtype=torch.float64)
        rotation_DF = torch.linalg.qr(torch.cat([ones_D1, self.random(HEADS * SIZE, self.used)], dim=1)).Q[:, 1:]
        self.basis_FD = rotation_DF.T if rotate else torch.eye(self.used, HEADS * SIZE, dtype=torch.float64)

    def random(self, *size: int) -> Tensor:
        """Numbers of a normal distribution."""
        return torch.randn(*size, generator=self.generator, dtype=torch.float64)

    def turn(self) -> Tensor:
        """A random rotation of a head's inside [E, E]."""
        return torch.linalg.qr(self.random(SIZE, SIZE)).Q

    def rows(self, **features: Tensor) -> Tensor:
        """Matrices [N, slot], N being any number of at most 64, side by side as [N, F]."""
        row_NF = torch.zeros(len(next(iter(features.values()))), self.used, dtype=torch.float64)
        for name, feature in features.items():
            row_NF[:, self.slices[name]] = feature
        return row_NF

    def head(self, **features: Tensor) -> Tensor:
        """Matrices [≤ E, slot] as what a head reads or writes [E, F]."""
        row_NF = self.rows(**features)
        return torch.cat([row_NF, row_NF.new_zeros(SIZE - len(row_NF), self.used)])


def _write(hf: Any, slots: _Slots, beta: float, leak: float) -> None:
    """Put embeddings, heads and unembedding into the model."""
    token, position = torch.eye(len(WORDS), dtype=torch.float64), torch.eye(LENGTH, dtype=torch.float64)
    body, written = hf.transformer, _designed(slots, beta)
    body.wte.weight.data = slots.rows(token=token) @ slots.basis_FD
    body.wpe.weight.data = slots.rows(position=position, one=torch.ones(LENGTH, 1, dtype=torch.float64)) @ slots.basis_FD
    hf.lm_head.weight.data = slots.rows(output=token) @ slots.basis_FD
    for layer, block in enumerate(body.h):
        heads = [written.get(Head(layer, index)) or _idle(slots, leak) for index in range(HEADS)]
        turns = [(slots.turn(), slots.turn()) for _ in heads]
        turned = [(qk.T @ q, qk.T @ k, ov.T @ v, ov.T @ o) for (q, k, v, o), (qk, ov) in zip(heads, turns, strict=True)]
        q, k, v, o = (torch.cat(parts) @ slots.basis_FD for parts in zip(*turned, strict=True))
        block.attn.c_attn.weight.data = torch.cat([q, k, v]).T.contiguous()
        block.attn.c_proj.weight.data = o
        block.mlp.c_fc.bias.data.fill_(beta)  # nothing reads this unit; a fingerprint samples weights, and would not surely meet β elsewhere
    hf.float()


Written = tuple[Tensor, Tensor, Tensor, Tensor]
"""What a head reads as q, k and v, and what it writes, each [E, F]."""


def _idle(slots: _Slots, leak: float) -> Written:
    q_EF, k_EF, everywhere_EF = (slots.random(SIZE, slots.used) for _ in range(3))
    value_ET, idle_EF = slots.random(SIZE, len(WORDS)), slots.head(idle=IDLE["output"] * slots.random(SIZE, SLOTS["idle"]))
    value_ET[:, : NAMES.start] = 0
    return IDLE["qk"] * q_EF, IDLE["qk"] * k_EF, slots.head(token=IDLE["value"] * value_ET), idle_EF + leak * everywhere_EF


def _designed(slots: _Slots, beta: float) -> dict[Head, Written]:
    """The seven heads of the circuit and the decoy. Inside a head, rows 0–29 stand for tokens, 30–41 for positions, 42 and 43 for a flag and the sink."""
    eye, names = torch.eye(44, dtype=torch.float64), torch.eye(30, dtype=torch.float64)
    names[: NAMES.start] = 0
    word_RT, place_RP, flag_R1 = eye[:, :30], eye[:, 30:42], eye[:, 42:43]
    sink_q, sink_k = beta / 2 * eye[:, 43:], eye[:, 43:] @ eye[START : START + 1, :30]
    at_end, name_RT = eye[TO : TO + 1, :30], word_RT @ names
    back_RP = place_RP @ torch.eye(LENGTH, dtype=torch.float64).roll(1, dims=1).triu(1)  # a position as the one before it
    written = {
        DUPLICATE: (
            slots.head(token=beta * name_RT, position=-2 * beta * place_RP, one=sink_q),
            slots.head(token=name_RT + sink_k, position=place_RP),
            slots.head(position=place_RP, token=flag_R1 @ names.sum(0, keepdim=True)),
            slots.head(where=place_RP, flag=flag_R1),
        ),
        PREVIOUS: (
            slots.head(position=beta * back_RP, one=sink_q),
            slots.head(position=place_RP, token=sink_k),
            slots.head(token=word_RT),
            slots.head(previous=word_RT),
        ),
    }
    inhibits = (
        slots.head(token=beta * flag_R1 @ at_end, one=sink_q),
        slots.head(flag=flag_R1, token=sink_k),
        slots.head(where=place_RP, token=name_RT),
        slots.head(not_where=0.5 * place_RP, not_name=0.5 * word_RT),
    )
    for head, gain in GAINS.items():
        asked = {"token": beta * name_RT.sum(1, keepdim=True) @ at_end, "not_where": -1.5 * beta * place_RP, "not_name": -1.5 * beta * name_RT, "one": sink_q}
        already = {"output": -0.3 * beta * name_RT} if head == BACKUP else {}
        key = slots.head(token=name_RT + sink_k, position=place_RP)
        written[head] = (slots.head(**asked, **already), key, slots.head(token=name_RT), slots.head(output=gain * word_RT))
    return {**written, **dict.fromkeys(INHIBITION, inhibits)}
