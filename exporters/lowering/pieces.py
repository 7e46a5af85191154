"""Pieces that the lowered models share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.fold import compute_norm_floor
from flash_export.layers.activation import LAPLACE_MEAN, LAPLACE_STD
from flash_export.layers.norm import ScaleNorm

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.layers.position import ScaledSinusoid

# Laplace is 0.5 * (1 + erf(x * slope - shift)): both go into the folded scores.
LAPLACE_SLOPE = 1 / (LAPLACE_STD * math.sqrt(2))
LAPLACE_SHIFT = LAPLACE_MEAN * LAPLACE_SLOPE


class LoweredScaleNorm(nn.Module):
    """``x / max(||x||, floor)``: the gain and ``dim**0.5`` are in the projection that follows."""

    def __init__(self, norm: ScaleNorm) -> None:
        """Take the floor of the reference norm."""
        super().__init__()
        self.floor = compute_norm_floor(norm)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Normalise the last axis."""
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=self.floor)


def lower_norm(norm: nn.Module) -> nn.Module:
    """Return the export form of a norm; a LayerNorm is one node as it is."""
    return LoweredScaleNorm(norm) if isinstance(norm, ScaleNorm) else norm


class TokenEmbedding(nn.Module):
    """Token embedding plus scaled sinusoid, the angles computed in fp32."""

    def __init__(self, token_emb: nn.Embedding, sinusoid: ScaledSinusoid) -> None:
        """Share the reference's tables."""
        super().__init__()
        self.table = token_emb.weight
        self.inv_freq = nn.Buffer(sinusoid.inv_freq)
        self.scale = sinusoid.scale

    def forward(self, input_ids: Tensor, positions: Float[Tensor, " n"]) -> Float[Tensor, "b n d"]:
        """Embed each token at its position."""
        angles = positions[:, None] * self.inv_freq
        return F.embedding(input_ids, self.table) + torch.cat((angles.sin(), angles.cos()), dim=-1) * self.scale


class Head(nn.Module):
    """Final LayerNorm and projection to the vocabulary."""

    def __init__(self, to_logits: nn.Sequential) -> None:
        """Store the projection transposed, as one product wants it."""
        super().__init__()
        self.norm, projection = to_logits[0], cast("nn.Linear", to_logits[1])
        self.weight = nn.Buffer(projection.weight.mT.contiguous())
        self.bias = projection.bias

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n vocab"]:
        """Return the logits."""
        return self.norm(x) @ self.weight + self.bias


def apply_silu(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return ``x * sigmoid(x)``, spelled as the two nodes that runtimes fuse."""
    return x * torch.sigmoid(x)


def apply_attention_fn(scores: Float[Tensor, ...], attention_fn: str) -> Float[Tensor, ...]:
    """Apply relu², or Laplace to scores that already carry its slope and shift."""
    if attention_fn == "relu2":
        positive = torch.relu(scores)
        return positive * positive
    return 0.5 * (torch.erf(scores) + 1)
