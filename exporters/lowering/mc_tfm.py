"""The export form of family ``mc_tfm``.

Axes: b batch, p token of all chunks, g chunk, h head, c position in a chunk, s head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from flash_export.exporters.lowering.multihead import LoweredAttention, describe_lowering, hide_future
from flash_export.exporters.lowering.precision import widen
from flash_export.exporters.spelling import reshape, sum_earlier_chunks

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.exporters.lowering.multihead import Layout
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.mc_tfm import McTfmConfig, MixedChunkAttention
    from flash_export.models.multihead import MultiheadLayer

# The sum over a whole sequence of unscaled keys and values leaves fp16. A power of two.
FP16_KEY_DIVISOR = 256.0


class LoweredMixedChunkAttention(LoweredAttention):
    """Softmax inside a chunk, and a linear sum over the others."""

    def __init__(self, config: McTfmConfig, attention: MixedChunkAttention, precision: Precision) -> None:
        """Fold the scale of the queries, and the divisor of the keys, into the affine maps."""
        super().__init__(config, precision)
        is_half = precision.name == "fp16"
        self.key_divisor = config.chunk_size if config.causal else FP16_KEY_DIVISOR if is_half else 1.0
        (query_gamma, key_gamma), (query_beta, key_beta) = attention.gamma, attention.beta
        # Each of its own: what is cut out of a buffer has no name in the graph.
        self.query_gamma, self.query_beta, self.key_gamma, self.key_beta = (
            nn.Buffer(precision.narrow(one, "heads").clone())
            for one in (
                query_gamma / self.query_scale,
                query_beta,
                key_gamma / self.key_divisor,
                key_beta / self.key_divisor,
            )
        )
        self.future = nn.Buffer(hide_future(config.chunk_size)) if config.causal else None

    def forward(
        self, q: Float[Tensor, "b p h s"], k: Float[Tensor, "b p h s"], v: Float[Tensor, "b p h s"], layout: Layout
    ) -> Float[Tensor, "b p d"]:
        """Attend."""
        precision = self.precision
        lin_q, lin_k = (
            precision.narrow(precision.combine(torch.mul, x, gamma, "heads") + beta, "heads")
            for x, gamma, beta in ((q, self.query_gamma, self.query_beta), (k, self.key_gamma, self.key_beta))
        )
        if layout.valid is not None:
            valid = precision.narrow(layout.valid, "valid").unsqueeze(-1).unsqueeze(-1)
            v = precision.combine(torch.mul, v, valid, "value")
        q, k, v, lin_q, lin_k = (self.cut(x) for x in (q, k, v, lin_q, lin_k))
        hidden = layout.hide()
        if hidden is not None:
            hidden = reshape(hidden, [0, -1, 1, 1, self.config.window])
        local = precision.multiply(self.weigh(q, k, hidden, self.future), v, "mixed")
        kv = precision.narrow(self.sum_products(lin_k, v, layout), "kv")
        return self.join(precision.combine(torch.add, local, precision.multiply(lin_q, kv, "linear"), "mixed"))

    def sum_products(
        self, k: Float[Tensor, "b g h c s"], v: Float[Tensor, "b g h c s"], layout: Layout
    ) -> Float[Tensor, "b _ h s s"]:
        """Return ``k^T v`` of the chunks that each chunk sees, in fp32."""
        kv = widen(self.precision.multiply(k.mT, v, "products"))
        if self.config.causal:  # a mask, if one was asked for, zeroes values alone
            return sum_earlier_chunks(kv)
        if layout.valid is None:  # chunks of one token, none of which is padding
            return kv.mean(dim=1, keepdim=True) * self.key_divisor
        length = layout.valid.sum(dim=1, keepdim=True).clamp(min=1).unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)
        return kv.sum(dim=1, keepdim=True) * (self.key_divisor / length)


def _make(layer: MultiheadLayer, precision: Precision) -> LoweredAttention:
    attention = cast("MixedChunkAttention", layer.attention)
    return LoweredMixedChunkAttention(cast("McTfmConfig", layer.config), attention, precision)


MC_TFM = describe_lowering(_make, growing=("products", "kv", "linear", "mixed"))
