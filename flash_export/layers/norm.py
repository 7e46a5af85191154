"""Normalisation over the model width, or over the whole of a row.

Axes: b batch, n sequence, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SCALE_NORM_EPS = 1e-5


class ScaleNorm(nn.Module):
    """Divide by the root mean square and multiply by one learned scalar.

    ``x / max(||x|| * dim**-0.5, eps) * g``: a clamp, not an added epsilon (flash-pytorch 0.1.9,
    ``ScaleNorm``; Nguyen and Salazar, arXiv 1910.05895).
    """

    def __init__(self, dim: int, eps: float = SCALE_NORM_EPS) -> None:
        """Create the norm of vectors of width ``dim``; ``eps`` is the smallest root mean square that is divided by."""
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Normalise the last axis."""
        root_mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.dim**-0.5
        return x / root_mean_square.clamp(min=self.eps) * self.g


class GlobalNorm(nn.GroupNorm):
    """Subtract the mean of a row, all its positions and channels, and divide by their deviation; one affine map each.

    ``GroupNorm`` of one group: what a row gives depends on how long it is, so that padding changes it.
    """

    def __init__(self, dim: int, eps: float = 1e-8) -> None:
        """Create the norm of rows of width ``dim``; ``eps`` is added to the variance."""
        super().__init__(1, dim, eps=eps)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Normalise each row."""
        return super().forward(x.mT).mT


def build_norm(norm_type: str, dim: int) -> nn.Module:
    """Create the norm called ``norm_type``: ``scalenorm`` or ``layernorm``."""
    return ScaleNorm(dim) if norm_type == "scalenorm" else nn.LayerNorm(dim)
