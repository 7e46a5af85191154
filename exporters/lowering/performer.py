"""The export form of family ``performer``.

Features and what is made of them are fp32 in every precision: they are exponentials of squares.

Axes: b batch, p token of all chunks, g chunk, h head, c position in a chunk, s head width, m features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from flash_export.exporters.lowering.multihead import LoweredAttention, describe_lowering
from flash_export.exporters.lowering.precision import widen
from flash_export.exporters.spelling import find_largest, reshape, sum_earlier_chunks
from flash_export.models.performer import CAUSAL_CHUNK, FEATURE_EPS

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.exporters.lowering.multihead import Layout
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.multihead import MultiheadLayer
    from flash_export.models.performer import FeatureAttention, PerformerConfig

# Of the weights of a row: only where all of it is padding is a sum below it, which is 0.
SMALLEST_SUM = torch.finfo(torch.float32).tiny


class LoweredFeatureAttention(LoweredAttention):
    """Attention by random features."""

    def __init__(self, config: PerformerConfig, attention: FeatureAttention, precision: Precision) -> None:
        """Take the features; ``s**-0.25`` is in the weights of queries and keys."""
        super().__init__(config, precision)
        self.query_scale = self.key_scale = config.head_dim**-0.25
        self.projection = nn.Buffer(attention.projection.mT.contiguous())
        self.triangle = nn.Buffer(torch.ones(CAUSAL_CHUNK, CAUSAL_CHUNK).tril()) if config.causal else None

    def compute_features(self, x: Float[Tensor, "*b s"], *, largest: bool) -> Float[Tensor, "*b m"]:
        """Return the features times ``sqrt(m)``, which the quotient does not depend on."""
        x = widen(x)
        exponents = x @ self.projection - (x * x).sum(dim=-1, keepdim=True) * 0.5
        if largest:
            exponents = exponents - find_largest(exponents)
        return exponents.exp() + FEATURE_EPS

    def forward(
        self, q: Float[Tensor, "b p h s"], k: Float[Tensor, "b p h s"], v: Float[Tensor, "b p h s"], layout: Layout
    ) -> Float[Tensor, "b p d"]:
        """Attend; the sum of the weights is a product with a sum of keys, or of weights."""
        precision = self.precision
        features = self.compute_features(k, largest=False)
        if layout.valid is not None:
            features = features * layout.valid.unsqueeze(-1).unsqueeze(-1)
        queries = self.compute_features(q, largest=True)
        if self.triangle is not None:
            queries, features, v = (self.cut(x) for x in (queries, features, widen(v)))
            return precision.narrow(self.join(self._mix_causal(queries, features, v, self.triangle)), "mixed")
        queries, features, v = (x.transpose(1, 2) for x in (queries, features, widen(v)))
        sums = queries @ features.sum(dim=2, keepdim=True).mT
        mixed = queries @ (features.mT @ v) / sums.clamp(min=SMALLEST_SUM)
        return precision.narrow(reshape(mixed.transpose(1, 2), [0, -1, self.config.dim]), "mixed")

    @staticmethod
    def _mix_causal(
        q: Float[Tensor, "b g h c m"],
        k: Float[Tensor, "b g h c m"],
        v: Float[Tensor, "b g h c s"],
        triangle: Float[Tensor, "c c"],
    ) -> Float[Tensor, "b g h c s"]:
        """Return ``q_i Σ_{j ≤ i} k_j^T v_j / q_i Σ_{j ≤ i} k_j``: inside a chunk, and over all earlier ones."""
        weights = q @ k.mT * triangle
        before = sum_earlier_chunks(k.mT @ v)
        keys_before = sum_earlier_chunks(k.sum(dim=3, keepdim=True))
        sums = weights.sum(dim=-1, keepdim=True) + q @ keys_before.mT
        return (weights @ v + q @ before) / sums.clamp(min=SMALLEST_SUM)


def _make(layer: MultiheadLayer, precision: Precision) -> LoweredAttention:
    attention = cast("FeatureAttention", layer.attention)
    return LoweredFeatureAttention(cast("PerformerConfig", layer.config), attention, precision)


PERFORMER = describe_lowering(_make)
