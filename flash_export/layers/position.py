"""Positions: scaled sinusoid, rotary embedding, relative biases and the token shift.

Axes: b batch, n sequence, i query position, j key position, m all positions of a table, d width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

MAX_ROTARY_DIM = 32
THETA = 10000.0
NUM_BUCKETS = 32
MAX_DISTANCE = 128


def compute_inverse_frequencies(dim: int) -> Float[Tensor, " dim/2"]:
    """Return ``THETA ** (-2i / dim)``: the angular step a position of each of the frequencies."""
    return 1.0 / (THETA ** (torch.arange(0, dim, 2).float() / dim))


class ScaledSinusoid(nn.Module):
    """The paper's scaled sinusoidal position embedding: ``[sin | cos] * scale``.

    ``inv_freq`` is kept in the checkpoint, as flash-pytorch does, and always in fp32: a half-precision
    frequency is wrong by whole turns after some thousand positions.
    """

    def __init__(self, dim: int) -> None:
        """Create the embedding of width ``dim`` (even)."""
        super().__init__()
        self.dim = dim
        self.scale = nn.Parameter(torch.ones(1))
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", self.compute_frequencies())

    def compute_frequencies(self) -> Float[Tensor, " d/2"]:
        """Return what ``inv_freq`` holds in a checkpoint that was not rounded."""
        return compute_inverse_frequencies(self.dim)

    def forward(self, positions: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return the embedding of each position, in the dtype of the parameters."""
        angles = positions.to(self.inv_freq.dtype)[:, None] * self.inv_freq
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.scale.dtype) * self.scale


class RotaryEmbedding(nn.Module):
    """Rotary position embedding of the leading dimensions, in interleaved pairs (arXiv 2104.09864)."""

    def __init__(self, qk_dim: int, max_rotary_dim: int = MAX_ROTARY_DIM) -> None:
        """Rotate the first ``min(max_rotary_dim, qk_dim)`` of ``qk_dim`` dimensions (rounded down to pairs)."""
        super().__init__()
        self.rotary_dim = min(max_rotary_dim, qk_dim)
        self.freqs: Tensor
        self.register_buffer("freqs", self.compute_frequencies())

    def compute_frequencies(self) -> Float[Tensor, " f"]:
        """Return what ``freqs`` holds in a checkpoint that was not rounded."""
        return compute_inverse_frequencies(self.rotary_dim)[: self.rotary_dim // 2]

    def forward(self, x: Float[Tensor, "*b n d"], positions: Int[Tensor, " n"]) -> Float[Tensor, "*b n d"]:
        """Rotate pair ``(2i, 2i + 1)`` of the token at position p by the angle ``p * freqs[i]``."""
        angles = positions.to(self.freqs.dtype)[:, None] * self.freqs
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        rotary_dim = 2 * self.freqs.shape[0]
        rotated, passed = x[..., :rotary_dim], x[..., rotary_dim:]
        even, odd = rotated[..., 0::2], rotated[..., 1::2]
        pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return torch.cat((pairs.flatten(-2), passed), dim=-1)


def compute_t5_buckets(offsets: Int[Tensor, ...], causal: bool) -> Int[Tensor, ...]:
    """Return the T5 bucket of each offset ``key position - query position``.

    Bidirectional: ``|offset| < 8`` has a bucket of its own, then logarithmic to 15, and 16 more when the
    key comes after the query. Causal: ``< 16`` exact, saturating at 31. The logarithm is taken in fp32,
    as in flash-pytorch 0.1.9 (``T5RelativePositionBias``), so that bucket edges fall on the same offsets.
    """
    if causal:
        num_buckets, base = NUM_BUCKETS, torch.zeros_like(offsets)
        distance = (-offsets).clamp(min=0)
    else:
        num_buckets = NUM_BUCKETS // 2
        base = (offsets > 0).long() * num_buckets
        distance = offsets.abs()
    max_exact = num_buckets // 2
    growth = torch.log(distance.float() / max_exact) / math.log(MAX_DISTANCE / max_exact)
    logarithmic = max_exact + (growth * (num_buckets - max_exact)).long()
    logarithmic = logarithmic.clamp(max=num_buckets - 1)
    return base + torch.where(distance < max_exact, distance, logarithmic)


class RelativePositionBias(nn.Module):
    """T5 relative position bias of a single head, multiplied by a constant scale."""

    def __init__(self, scale: float, causal: bool) -> None:
        """Create the bias; ``scale`` is ``sqrt(qk_dim)`` in FLASH and ``sqrt(dim)`` in GAU."""
        super().__init__()
        self.scale = scale
        self.causal = causal
        self.relative_attention_bias = nn.Embedding(NUM_BUCKETS, 1)

    def forward(self, length: int) -> Float[Tensor, "i j"]:
        """Return the bias between all positions of a window of ``length``: one number for each distance."""
        offsets = torch.arange(1 - length, length, device=self.relative_attention_bias.weight.device)
        by_distance = self.relative_attention_bias(compute_t5_buckets(offsets, self.causal)).squeeze(-1) * self.scale
        return by_distance.unfold(0, length, 1).flip(0)  # row i starts at the distance of key 0, which is -i


def spread_bias(by_distance: Float[Tensor, " 2m-1"]) -> Float[Tensor, "m m"]:
    """Return the bias of each query and key: element ``m - 1 + key - query`` of a learned vector."""
    count = (len(by_distance) + 1) // 2
    positions = torch.arange(count, device=by_distance.device)
    return by_distance[count - 1 + positions[None, :] - positions[:, None]]


def shift_tokens(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Delay the first half of the channels by one position, with zeros at position 0."""
    shifted, passed = x.chunk(2, dim=-1)
    return torch.cat((F.pad(shifted, (0, 0, 1, -1)), passed), dim=-1)
