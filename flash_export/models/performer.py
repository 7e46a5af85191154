"""Family ``performer``: softmax attention estimated by positive random features (FAVOR+, arXiv 2009.14794).

With the features ``φ(x) = (exp(W x - |x|²/2) + eps) / sqrt(m)`` of ``x / s^(1/4)``, attention is
``φ(q) Σ φ(k)^T v / φ(q) Σ φ(k)``, linear in the length. W is drawn once, orthogonal in blocks, and is part of the
weights. Features of a query are divided by their largest, which leaves the quotient as it is but for eps. Those of keys
are not: performer-pytorch divides them by the largest of *all* keys, so that by eps every token depends on all others,
padding included, in causal models too. ``exp(W k - |k|²/2)`` is at most ``exp(|W|²/2)``.

Axes: b batch, h head, n sequence, g chunk, c position in a chunk, s head width, m features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from flash_export.layers.attention import build_causal_mask, split_into_chunks
from flash_export.models.multihead import MultiheadConfig, MultiheadModel

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.models.multihead import Tokens

FEATURE_EPS = 1e-4
CAUSAL_CHUNK = 128  # sums are kept for chunks of so many tokens, which changes nothing but the order of addition


@dataclass(frozen=True)
class PerformerConfig(MultiheadConfig):
    """Hyper-parameters of a Performer.

    Attributes:
        num_features: Random features m of a head.
        feature_seed: Seed of the features of a new model; a trained one has them in its weights.
    """

    model_type: ClassVar[str] = "performer"

    num_features: int = 64
    feature_seed: int = 1

    @property
    def window(self) -> int:
        """A causal model adds up in chunks."""
        return CAUSAL_CHUNK if self.causal else 1

    def count_attention_macs(self, seq_len: int) -> int:
        """Count the features, and the sums of keys and values."""
        padded_len = seq_len + -seq_len % self.window
        inside = CAUSAL_CHUNK * (self.num_heads * self.num_features + self.dim) if self.causal else 0
        return padded_len * (4 * self.dim * self.num_features + inside)

    def count_attention_values(self, seq_len: int) -> int:
        """Count the features, and in causal models the weights and sums of all chunks."""
        values = 4 * seq_len * self.num_heads * self.num_features
        if self.causal:
            num_chunks = -(-seq_len // CAUSAL_CHUNK)
            values += num_chunks * self.num_heads * (CAUSAL_CHUNK**2 + 2 * self.num_features * self.head_dim)
        return values


def draw_features(num_features: int, width: int, seed: int) -> Float[Tensor, "m s"]:
    """Return orthogonal directions, in blocks of as many as there are channels, with the lengths of normal vectors."""
    random = np.random.default_rng(seed)
    blocks = [
        np.linalg.qr(random.standard_normal((width, width)))[0].T[: num_features - start]
        for start in range(0, num_features, width)
    ]
    lengths = np.linalg.norm(random.standard_normal((num_features, width)), axis=1, keepdims=True)
    return torch.from_numpy((np.concatenate(blocks) * lengths).astype(np.float32))


class FeatureAttention(nn.Module):
    """Attention by random features."""

    def __init__(self, config: PerformerConfig, index: int) -> None:
        """Draw the features of a block of a new model."""
        super().__init__()
        self.config = config
        self.projection = nn.Buffer(draw_features(config.num_features, config.head_dim, config.feature_seed + index))

    def compute_features(self, x: Float[Tensor, "b h n s"], largest: bool) -> Float[Tensor, "b h n m"]:
        """Return the features, as fractions of the largest of their token if so wanted."""
        x = x * x.shape[-1] ** -0.25
        exponents = x @ self.projection.to(x).mT - x.square().sum(dim=-1, keepdim=True) / 2
        if largest:
            exponents = exponents - exponents.amax(dim=-1, keepdim=True)
        return (exponents.exp() + FEATURE_EPS) / math.sqrt(self.config.num_features)

    def forward(
        self, q: Float[Tensor, "b h n s"], k: Float[Tensor, "b h n s"], v: Float[Tensor, "b h n s"], tokens: Tokens
    ) -> Float[Tensor, "b h n s"]:
        """Attend. The sum of the weights is that of a channel of ones beside the values."""
        q, k = self.compute_features(q, largest=True), self.compute_features(k, largest=False)
        valid = tokens.valid[:, None, :, None]
        v = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1) * valid
        mixed = self._mix_causal(q, k, v) if self.config.causal else q @ (k.mT @ v)
        return mixed[..., :-1] / mixed[..., -1:].clamp(min=torch.finfo(torch.float32).tiny)

    @staticmethod
    def _mix_causal(
        q: Float[Tensor, "b h n m"], k: Float[Tensor, "b h n m"], v: Float[Tensor, "b h n v"]
    ) -> Float[Tensor, "b h n v"]:
        """Return ``q_i Σ_{j ≤ i} k_j^T v_j``."""
        seq_len = q.shape[2]
        q, k, v = (split_into_chunks(x, CAUSAL_CHUNK) for x in (q, k, v))
        inside = (q @ k.mT) * build_causal_mask(CAUSAL_CHUNK, q.device) @ v
        sums = k.mT @ v
        earlier = sums.cumsum(dim=2) - sums
        return (inside + q @ earlier).flatten(2, 3)[:, :, :seq_len]


class PerformerModel(MultiheadModel):
    """A Performer."""

    config: PerformerConfig

    def build_attention(self, index: int) -> nn.Module:
        """Create the attention of a block."""
        return FeatureAttention(self.config, index)
