"""The export form of family ``transformer``.

Axes: b batch, n token, h head, s head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.exporters.lowering.multihead import LoweredAttention, describe_lowering
from flash_export.exporters.spelling import reshape
from flash_export.models.multihead import HIDDEN_SCORE

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.exporters.lowering.multihead import Layout
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.multihead import MultiheadLayer


class LoweredFullAttention(LoweredAttention):
    """Softmax attention over the whole sequence, decomposed."""

    def forward(
        self, q: Float[Tensor, "b n h s"], k: Float[Tensor, "b n h s"], v: Float[Tensor, "b n h s"], layout: Layout
    ) -> Float[Tensor, "b n d"]:
        """Attend."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        hidden, future = layout.hide(), None
        if hidden is not None:
            hidden = hidden.unsqueeze(1).unsqueeze(1)
        if self.config.causal:
            later = layout.positions > layout.positions.unsqueeze(-1)
            future = later.float() * HIDDEN_SCORE
        mixed = self.precision.multiply(self.weigh(q, k, hidden, future), v, "mixed")
        return reshape(mixed.transpose(1, 2), [0, -1, self.config.dim])


def _make(layer: MultiheadLayer, precision: Precision) -> LoweredAttention:
    return LoweredFullAttention(layer.config, precision)


TRANSFORMER = describe_lowering(_make)
