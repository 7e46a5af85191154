"""The export form of family ``linformer``.

Axes: b batch, n token, h head, p projected keys, s head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from flash_export.exporters.lowering.multihead import LoweredAttention, describe_lowering
from flash_export.exporters.spelling import gather, reshape

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.exporters.lowering.multihead import Layout
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.linformer import LinformerConfig, ProjectedAttention
    from flash_export.models.multihead import MultiheadLayer


class LoweredProjectedAttention(LoweredAttention):
    """Attention to projected keys."""

    def __init__(self, config: LinformerConfig, attention: ProjectedAttention, precision: Precision) -> None:
        """Take the projections."""
        super().__init__(config, precision)
        self.proj_k = nn.Buffer(precision.narrow(attention.proj_k, "projection").clone())
        proj_v = attention.proj_v
        self.proj_v = None if proj_v is None else nn.Buffer(precision.narrow(proj_v, "projection").clone())

    def forward(
        self, q: Float[Tensor, "b n h s"], k: Float[Tensor, "b n h s"], v: Float[Tensor, "b n h s"], layout: Layout
    ) -> Float[Tensor, "b n d"]:
        """Attend; what is masked has no part in the projected keys and values."""
        precision, places = self.precision, layout.positions.int()
        by_key = gather(self.proj_k, places).mT  # (p, n)
        by_value = by_key if self.proj_v is None else gather(self.proj_v, places).mT
        if layout.valid is not None:
            valid = precision.narrow(layout.valid, "valid").unsqueeze(-1).unsqueeze(-1)
            k, v = (precision.combine(torch.mul, x, valid, name) for x, name in ((k, "heads"), (v, "value")))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        keys = precision.multiply(by_key, k, "projected")
        values = precision.multiply(by_value, v, "projected")
        mixed = precision.multiply(self.weigh(q, keys), values, "mixed")
        return reshape(mixed.transpose(1, 2), [0, -1, self.config.dim])


def _make(layer: MultiheadLayer, precision: Precision) -> LoweredAttention:
    attention = cast("ProjectedAttention", layer.attention)
    return LoweredProjectedAttention(cast("LinformerConfig", layer.config), attention, precision)


# Sums over all tokens, and what is made of them.
LINFORMER = describe_lowering(_make, growing=("projected", "scores", "mixed"))
