"""Attention of the paper: per-dimension offsets, quadratic within chunks, linear across them.

Axes: b batch, g chunk, c position in a chunk, s query/key width, e hidden width, m number of sums, 1 or g.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float
    from torch import Tensor


class OffsetScale(nn.Module):
    """Per-dimension affine maps that turn one shared projection into several queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        """Create ``heads`` maps of vectors of width ``dim``."""
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(heads, dim))
        self.beta = nn.Parameter(torch.zeros(heads, dim))
        nn.init.normal_(self.gamma, std=0.02)

    def forward(self, z: Float[Tensor, "... s"]) -> tuple[Float[Tensor, "... s"], ...]:
        """Return ``z * gamma[h] + beta[h]`` for each head h."""
        return tuple(z * gamma + beta for gamma, beta in zip(self.gamma, self.beta, strict=True))


def split_into_chunks(x: Float[Tensor, "*b n d"], chunk_size: int) -> Float[Tensor, "*b g c d"]:
    """Cut the sequence into chunks, filling the last one with zeros."""
    padding = -x.shape[-2] % chunk_size
    return F.pad(x, (0, 0, 0, padding)).unflatten(-2, (-1, chunk_size))


def build_causal_mask(length: int, device: torch.device) -> Bool[Tensor, "i j"]:
    """Return True where a query may see a key: on and below the diagonal."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def weigh_keys(
    q: Float[Tensor, "b g c s"],
    k: Float[Tensor, "b g c s"],
    *,
    bias: Float[Tensor, "c c"],
    visible: Bool[Tensor, "*b g c c"],
    attention_fn: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b g c c"]:
    """Return the weights inside each chunk: ``attention_fn(q k^T / c + bias)``, hidden keys weighing 0."""
    scores = q @ k.mT / q.shape[-2] + bias
    return attention_fn(scores).masked_fill(~visible, 0.0)


def sum_kv_causal(k: Float[Tensor, "*b g c s"], v: Float[Tensor, "*b g c e"]) -> Float[Tensor, "*b g s e"]:
    """Return what each chunk sees of all *earlier* ones: ``sum_{h < g} k_h^T v_h / c`` (an exclusive prefix sum)."""
    kv = k.mT @ v / k.shape[-2]
    return F.pad(kv.cumsum(dim=-3), (0, 0, 0, 0, 1, -1))


def sum_kv_global(
    k: Float[Tensor, "*b g c s"],
    v: Float[Tensor, "*b g c e"],
    *,
    length: Float[Tensor, "*#b 1 1 1"],
    sum_over_chunks: bool,
) -> Float[Tensor, "*b m s e"]:
    """Return what every token sees: ``sum(k^T v) / length``; that of its own chunk if not ``sum_over_chunks``."""
    kv = k.mT @ v / length
    return kv.sum(dim=-3, keepdim=True) if sum_over_chunks else kv
