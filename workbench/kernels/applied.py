"""Run a model under a policy: `apply` permutes the weights, registers the attention, takes over the caches, and undoes it all at the end."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, DynamicCache

from workbench.choosing import policy_of
from workbench.errors import InputError, unknown
from workbench.kernels import cache as caches
from workbench.kernels.attention import Running
from workbench.kernels.permutation import permuted
from workbench.labels import HeadLabels
from workbench.models import HYBRID, HFModel
from workbench.ops.attend import DECODE, PREFILL
from workbench.ops.dense import BACKENDS
from workbench.ops.support import HEAD_SIZES, missing_for
from workbench.policies import HeadPolicy


@dataclass(frozen=True, eq=False)
class Applied:
    """A model that runs under a policy. `hf` is its module: call it, or `generate`, as ever.

    `facts` says who computes what: the implementation of streaming prefill and of decoding, and the dense kernels that have run so far. Where the model is
    spread over processes, each runs its own heads under its own part of the policy, `running.policy`, and has caches of that.
    """

    hf: Any
    policy: HeadPolicy
    running: Running
    config: Any

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, under the policy."""
        return self.hf.generate(*args, **kwargs)

    def cache(self, max_length: int = 0) -> Cache:
        """An empty cache for the policy, with room for `max_length` tokens at once; 0 lets it grow."""
        return caches.make(self.running.policy, self.config, max_length)

    @property
    def facts(self) -> dict[str, Any]:
        """Which implementations run."""
        running = self.running
        return {"implementation": running.implementation, "decoding": running.decoder, "dense": sorted(running.dense_used) or running.dense}


@contextmanager
def apply(model: HFModel, by: HeadPolicy | HeadLabels | str | Path, *, implementation: str = "auto", dense: str = "auto") -> Generator[Applied, None, None]:
    """Run a model under a policy, within the `with` block; afterwards it is what it was.

    `by` is a policy, labels, or a labels file (its policy, or that of its labels). Caches are the policy's own: an empty `DynamicCache`, which `generate`
    and the model make by themselves, is turned into one. `implementation` computes the streaming heads (`attend.PREFILL`, or `auto`), `dense` the full ones
    (`dense.BACKENDS`, or `auto`).
    Raises `InputError` for labels of another model, a model that the policy cannot be applied to, or an implementation that cannot run here.
    """
    policy, own = _policy(model, by), model.own
    mine = policy if model.shards is None else policy.among(model.shards.kv_heads, own.shape)
    prefill, decoder = choose(implementation, model.device, model.shape.d_head)
    if dense not in ("auto", *BACKENDS):
        raise unknown("dense kernel", dense, ["auto", *BACKENDS])
    with own.attention(HYBRID) as hf, permuted(own, mine) as orders, _caches_taken_over(hf, mine):
        running = Running(mine, prefill, decoder, dense, orders)
        try:
            for number, module in enumerate(own.weights.attentions):
                module.workbench_policy = (number, running)
            yield Applied(hf, policy, running, model.config)
        finally:
            for module in own.weights.attentions:
                module.__dict__.pop("workbench_policy", None)


def choose(implementation: str, device: torch.device, head_size: int) -> tuple[str, str]:
    """Who computes streaming heads in prefill, and who decodes; `auto` is Triton on CUDA, and plain torch elsewhere.

    Raises `InputError` for an unknown name, and for Triton where it cannot run. Those without a kernel for decoding decode in torch.
    """
    if implementation == "auto":
        able = device.type == "cuda" and head_size in HEAD_SIZES and missing_for(device) is None
        return ("triton", "triton") if able else ("torch", "torch")
    if implementation not in PREFILL:
        raise unknown("implementation", implementation, ["auto", *PREFILL])
    if implementation == "triton" and (missing := missing_for(device)):
        raise InputError(f"implementation triton: {missing}; torch and reference run on any device")
    return implementation, implementation if implementation in DECODE else "torch"


def _policy(model: HFModel, by: HeadPolicy | HeadLabels | str | Path) -> HeadPolicy:
    labels = HeadLabels.load(by) if isinstance(by, (str, Path)) else by
    policy = policy_of(labels) if isinstance(labels, HeadLabels) else labels
    policy.check_model(model.card)
    return policy.with_windows(model.windows)


@contextmanager
def _caches_taken_over(hf: Any, policy: HeadPolicy) -> Generator[None, None, None]:
    """Every empty cache that comes in becomes the policy's; where none comes in but one is wanted, it is made."""

    def before(_module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        if cache is None and kwargs.get("use_cache", hf.config.use_cache) and not hf.training:
            cache = DynamicCache(config=hf.config)
        if cache is not None and not caches.made_for(cache, policy):
            caches.take_over(cache, policy)
        return args, {**kwargs, "past_key_values": cache}

    handle = hf.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
