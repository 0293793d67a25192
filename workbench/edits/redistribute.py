"""What if heads that look at an image looked past its sinks? `Redistribute`: after VAR (Kang et al. 2025, 2503.03321), on any spans of tokens.

A token is a sink if its hidden state x at the input of a layer has φ(x) = max_{m ∈ dims} |x_m| / RMS(x) > τ. A row attends by a head that is about the span
if the span has at least `least` of the row's attention, and those of its tokens that are no sinks at least the share ρ of that. In such rows every
sink token, within the span or not, gives up a share p of its attention, which goes to the span's tokens that are no sinks, in proportion. Rows still sum to 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.edits._edit import BaseEdit, Scene, check_heads, heads_in, named, parsed
from workbench.errors import InputError
from workbench.heads import Head, Shape
from workbench.models import HFModel
from workbench.ops.changed import Step
from workbench.prompts import Prompts

EPSILON = 1e-6
"""Added to the mean square under the root, as the authors' code does."""

DIMENSIONS = {
    "LLaMA2-7B": (1415, 2533),
    "LLaVA-1.5-7B": (1415, 2533),
    "LLaMA2-13B": (2100, 4743),
    "Qwen2-VL-7B": (458, 2570),
    "InternVL2-8B": (3584,),
}
"""Hidden dimensions of sinks: the first three stand in the authors' code, the others are known from secondary sources."""


@dataclass(frozen=True)
class Redistribute(BaseEdit):
    """Move the share `p` of the attention on sink tokens to those tokens of the named `spans` that are no sinks, in heads that attend to the spans.

    `dims` are the hidden dimensions in which sinks are large (`DIMENSIONS`, or what `sink_dimensions` finds); a token is a sink if φ > `tau`, which no
    model of up to τ² dimensions can reach. `rho` and `least` choose the rows of a head, `heads` the heads (None: all); layers 0, 1 and the last are skipped.
    Rows up to the end of the last span are left as they are. A layer in which no span token is a sink is not changed.

    From the authors' code: τ = 20, the strict >, `least` = 0.2, the skipped layers, that nothing happens in a layer without a sink in the span, and
    ρ = 0.5 with p = 0.4, which it writes as their complements 0.5 and 0.6. Known from secondary sources: ρ = 0.8 for general and 0.9 for vision-centric
    tasks (0.5 is for hallucination), and p = 0.6 in some notes on the paper. Reconstructed here: spans by name, of which several count as one; that rows
    before the end of the last span stay; decoding with the sinks of the prompt kept; and that the share's denominator is the mass itself, to which the
    code adds 1e-6 per token. Raises `InputError` for shares outside 0–1, no spans or no dimensions.
    """

    spans: tuple[str, ...]
    dims: tuple[int, ...]
    p: float = 0.4
    rho: float = 0.5
    tau: float = 20.0
    least: float = 0.2
    heads: tuple[Head, ...] | None = None
    sees_residual = True

    def __post_init__(self) -> None:
        for name in ("p", "rho", "least"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share, 0 to 1; got {getattr(self, name)}")
        if not self.spans or not self.dims or min(self.dims) < 0:
            raise InputError("redistribution takes the names of one span or more, and one hidden dimension of sinks or more")
        object.__setattr__(self, "heads", parsed(self.heads))

    def check(self, shape: Shape) -> None:
        """Raise `InputError` unless a model of this shape has the heads and the dimensions."""
        check_heads(self.heads, shape)
        if max(self.dims) >= shape.d_model:
            raise InputError(f"dimension {max(self.dims)} is none of the {shape.d_model} of the hidden states")

    def check_model(self, model: HFModel, prompts: Prompts, chunk: int | None) -> None:
        """Raise `InputError` for a span that the prompts do not have."""
        for name in self.spans:
            prompts.span(name)

    def describe(self) -> dict[str, object]:
        """The edit as plain data, for provenance."""
        settings = {"p": self.p, "rho": self.rho, "tau": self.tau, "least": self.least, "heads": named(self.heads)}
        return {"edit": "redistribute", "spans": list(self.spans), "dims": list(self.dims), **settings}

    def said(self, found_BLH: Int[np.ndarray, "B L H"]) -> dict[str, object]:
        """How many sink tokens were found per prompt and layer; where there are none, that nothing was changed."""
        per_BL = found_BLH.max(-1)
        none = [prompt for prompt, count in enumerate(per_BL.sum(-1).tolist()) if not count]
        return {"sinks": per_BL.tolist(), **({"remark": f"no sink found in the prompts {none}, which are unchanged"} if none else {})}

    def looking(self, layer: int, shape: Shape) -> tuple[int, ...]:
        """The query heads of a layer that may be changed: none in layers 0, 1 and the last."""
        return heads_in(self.heads, layer, shape) if 2 <= layer < shape.n_layers - 1 else ()

    def opened(self, scene: Scene) -> Step:
        """The step of one layer and pass."""
        mine = set(self.looking(scene.layer, scene.model.shape))
        return Redistributing(self, scene, [place for place, head in enumerate(scene.heads) if head in mine])


class Redistributing(Step):
    """`Redistribute` in one layer and pass. Its state has which tokens were sinks in the passes before."""

    def __init__(self, edit: Redistribute, scene: Scene, places: list[int]) -> None:
        super().__init__(places)
        self.edit, self.state, self.heads = edit, scene.state, [scene.heads[place] for place in places]
        if scene.residual_BQD is None:
            raise RuntimeError("redistribution takes the layer's input, which this pass does not hand over")
        start_B, first = scene.attention.start_B, scene.attention.span[0]
        new_BQ = sink_tokens(scene.residual_BQD, edit.dims, edit.tau)
        before_BK = scene.state["sinks"] if first else new_BQ[:, :0]
        key_K = torch.arange(scene.attention.keys, device=new_BQ.device)
        self.sink_BK = torch.cat([before_BK, new_BQ], dim=1) & (key_K >= start_B[:, None])
        spans = [torch.from_numpy(scene.prompts.span(name).copy()).to(new_BQ.device) for name in edit.spans]
        self.span_BK = torch.stack([(key_K >= span[:, :1]) & (key_K < span[:, 1:]) for span in spans]).any(0)
        self.after_B = torch.stack([span[:, 1] for span in spans]).amax(0)
        self.any_B = (self.sink_BK & self.span_BK).any(-1)

    def on_pattern(self, p_BHRK: Tensor, pos_BR: Tensor) -> Tensor:
        """The probabilities of some rows, redistributed where the conditions hold."""
        width = p_BHRK.shape[-1]
        row_BR = (pos_BR >= self.after_B[:, None]) & self.any_B[:, None]
        all_heads = len(self.places) == p_BHRK.shape[1]
        after_BHRK = redistributed(
            p_BHRK if all_heads else p_BHRK[:, self.places],
            self.sink_BK[:, :width],
            self.span_BK[:, :width],
            row_BR,
            self.edit.p,
            self.edit.rho,
            self.edit.least,
        )
        if all_heads:
            return after_BHRK
        p_BHRK[:, self.places] = after_BHRK
        return p_BHRK

    def commit(self) -> None:
        """Keep which tokens are sinks, and their number."""
        self.state["sinks"] = self.sink_BK
        self.state["found"] = self.heads, self.sink_BK.sum(-1)[:, None].expand(-1, len(self.heads))


def redistributed(
    p_BHRK: Float[Tensor, "B H R K"],
    sink_BK: Bool[Tensor, "B K"],
    span_BK: Bool[Tensor, "B K"],
    row_BR: Bool[Tensor, "B R"],
    p: float,
    rho: float,
    least: float,
) -> Float[Tensor, "B H R K"]:
    """Rows of probabilities, in which sinks give up the share `p` to the span's other tokens, where row, mass and share allow; the definition."""
    sink, kept = sink_BK[:, None, None], (span_BK & ~sink_BK)[:, None, None]
    span_BHR1 = (p_BHRK * span_BK[:, None, None]).sum(-1, keepdim=True)
    kept_BHR1 = (p_BHRK * kept).sum(-1, keepdim=True)
    chosen_BHR1 = row_BR[:, None, :, None] & (span_BHR1 >= least) & (kept_BHR1 >= rho * span_BHR1) & (kept_BHR1 > 0)
    moved_BHR1 = p * (p_BHRK * sink).sum(-1, keepdim=True)
    factor_BHRK = torch.where(sink, 1 - p, torch.where(kept, 1 + moved_BHR1 / kept_BHR1.clamp(min=torch.finfo(p_BHRK.dtype).tiny), 1.0))
    return torch.where(chosen_BHR1, p_BHRK * factor_BHRK, p_BHRK)


def phi(x_BTD: Float[Tensor, "B T D"], dims: tuple[int, ...]) -> Float[Tensor, "B T"]:
    """How far the largest of some dimensions stands out: |x_m| / RMS(x), 0 to √D; about 1 for a Gaussian and √D for a one-hot vector."""
    x_BTD = x_BTD.float()
    return x_BTD[..., list(dims)].abs().amax(-1) / (x_BTD.square().mean(-1) + EPSILON).sqrt()


def sink_tokens(x_BTD: Float[Tensor, "B T D"], dims: tuple[int, ...], tau: float = 20.0) -> Bool[Tensor, "B T"]:
    """Which tokens are sinks: φ > τ, strictly, as in the authors' code."""
    return phi(x_BTD, dims) > tau


def sink_dimensions(x_BTD: Float[Tensor, "B T D"], start_B: Int[Tensor, " B"], count: int = 2) -> tuple[int, ...]:
    """The hidden dimensions in which the first real tokens stand out most, in the mean of |x_m| / RMS(x): `dims` for a model of which none are known.

    A reconstruction: the authors take them from work on massive activations. `x_BTD` is a layer's input behind the layer where sinks arise.
    """
    first_BD = x_BTD[torch.arange(len(start_B), device=x_BTD.device), start_B.long()].float()
    share_D = (first_BD.abs() / (first_BD.square().mean(-1, keepdim=True) + EPSILON).sqrt()).mean(0)
    return tuple(sorted(share_D.topk(count).indices.tolist()))
