"""What do keys receive, if nothing else is asked for? On a CPU: PyTorch's flash attention, which gives the log-sum-exp, and one sweep that knows it.

Scores less their log-sum-exp come from one matrix product, with one column more in queries and keys, so that a block is read only to be exponentiated.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from workbench.ops.inputs import Attention, Statistics, Wanted

ELEMENTS = 2**20
"""Scores per block, which should stay in the cache."""

HIDDEN = -1e30


def applies(attention: Attention, wanted: Wanted) -> bool:
    """Whether this is all that is wanted, of a plain causal layer in single precision, and of all rows."""
    extra = wanted.entropy or wanted.peak or wanted.maps or wanted.ranges or wanted.singles
    plain = attention.softcap is None and attention.window is None and not attention.padded
    q = attention.q_BHRE
    whole = q.shape[2] == attention.keys > 1 and attention.span == (0, attention.keys - 1)
    return wanted.output and wanted.received == {"sum"} and not extra and plain and whole and q.device.type == "cpu" and q.dtype == torch.float32


def statistics(attention: Attention) -> Statistics:
    """Outputs, log-sum-exp, and the sum that each key receives."""
    k, v = (tensor.repeat_interleave(attention.group, dim=1) for tensor in (attention.k_BGKE, attention.v_BGKE))
    z_BHRE, lse_BHR = flash(attention.q_BHRE, k, v, attention.scaling)
    return Statistics(lse_BHR, z_BHRE, received={"sum": received(attention, lse_BHR)})


def flash(
    q_BHRE: Float[Tensor, "B H R E"], k_BHKE: Float[Tensor, "B H K E"], v_BHKE: Float[Tensor, "B H K E"], scaling: float, mask: Tensor | None = None
) -> tuple[Float[Tensor, "B H R E"], Float[Tensor, "B H R"]]:
    """PyTorch's flash attention on a CPU, causal where no mask is given: outputs and log-sum-exp."""
    z, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHRE, k_BHKE, v_BHKE, 0.0, mask is None, attn_mask=mask, scale=scaling)
    return z, lse


def received(attention: Attention, lse_BHR: Float[Tensor, "B H R"]) -> Float[Tensor, "B H K"]:
    """The sum over all rows of each key's probabilities."""
    batch, heads, rows, _ = attention.q_BHRE.shape
    q_BHRE = torch.cat([attention.q_BHRE * attention.scaling, -lse_BHR[..., None]], dim=-1)
    k_BGEK = pad(attention.k_BGKE, (0, 1), value=1.0).mT.contiguous()
    step = max(1, min(rows, ELEMENTS // (batch * heads * rows)))
    buffer = q_BHRE.new_empty(batch * heads * step * rows)
    later_RK = torch.ones(step, step, dtype=torch.bool).triu(1)
    sum_BHK = q_BHRE.new_zeros(batch, heads, rows)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        count = end - begin
        q = rearrange(q_BHRE[:, :, begin:end], "b (g h) r e -> b g (h r) e", h=attention.group)
        place = buffer[: batch * heads * count * end].view(*q.shape[:3], end)
        p_BHRK = torch.matmul(q, k_BGEK[..., :end], out=place).view(batch, heads, count, end)
        p_BHRK[..., begin:].masked_fill_(later_RK[:count, :count], HIDDEN)
        sum_BHK[..., :end] += p_BHRK.exp_().sum(2)
    return sum_BHK
