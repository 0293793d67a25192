"""Does the head raise the token that it looks at?"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.probes import Probe
from workbench.weights import Weights


def score(weights: Weights) -> Float[np.ndarray, "1 L H"]:
    """Copying: how far the head's OV circuit W_E·W_V·W_O·W_U maps tokens to themselves: Re(Σλ) / Σ|λ| of its eigenvalues.

    −1 (lowers what it attends to) to 1 (raises it), from weights alone. Elhage et al. 2021; Olsson et al. 2022. The gains of the norms before
    attention and unembedding are folded in, and centring where they centre; W_U is centred over the vocabulary; biases and post-norms are
    left out. The control shuffles which embedding belongs to which token.
    """
    ratios = [eigenvalue_ratio(o_HED @ weights.full_DD[layer] @ v_HDE) for layer, (v_HDE, o_HED) in enumerate(weights.layers)]
    return torch.stack(ratios)[None].cpu().numpy().astype(float)


def eigenvalue_ratio(matrix_HEE: Float[Tensor, "H E E"]) -> Float[Tensor, " H"]:
    """Re(Σλ) / Σ|λ| of each matrix; 0 for a matrix without non-zero eigenvalues."""
    total_H = matrix_HEE.diagonal(dim1=-2, dim2=-1).sum(-1)
    size_H = torch.linalg.eigvals(matrix_HEE.cpu()).abs().sum(-1).to(total_H)  # LAPACK is many times faster on matrices this small
    return torch.where(size_H > 0, total_H / size_H, 0)


def ideal(size: int) -> tuple[Float[Tensor, "D E"], Float[Tensor, "E D"]]:
    """A pair W_V, W_O (each size × size) that writes back just what it reads."""
    return torch.eye(size), torch.eye(size)


PROBE = Probe(
    name="copying",
    score=score,
    ideal=ideal,
    citation="Elhage et al. 2021, A mathematical framework for transformer circuits",
    null="control: embeddings shuffled among tokens",
)
