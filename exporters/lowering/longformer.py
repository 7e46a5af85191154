"""The export form of family ``longformer``.

The chunks that a chunk sees are one Gather, by an index of chunk and neighbour.

Axes: b batch, p token of all chunks, g chunk, h head, c position in a chunk, t chunk that is seen, j key of those, s
head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn

from flash_export.exporters.lowering.multihead import LoweredAttention, describe_lowering
from flash_export.exporters.spelling import gather, reshape
from flash_export.models.longformer import build_window
from flash_export.models.multihead import HIDDEN_SCORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.multihead import Layout
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.longformer import LongformerConfig
    from flash_export.models.multihead import MultiheadLayer


class Neighbours(NamedTuple):
    """The chunks that each chunk sees.

    Attributes:
        chunks: Their numbers; some chunk where there is none.
        hidden: What is added to the scores of those that are not there.
    """

    chunks: Int[Tensor, "g t"]
    hidden: Float[Tensor, "g t"]


class LoweredWindowAttention(LoweredAttention):
    """Attention in a sliding window."""

    config: LongformerConfig

    def __init__(self, config: LongformerConfig, precision: Precision) -> None:
        """Make the table of the window."""
        super().__init__(config, precision)
        is_seen = build_window(config.reach, config.num_seen, torch.device("cpu"))
        self.window = nn.Buffer(torch.zeros(is_seen.shape).masked_fill(~is_seen, HIDDEN_SCORE))
        self.offsets = nn.Buffer(torch.arange(config.num_seen, dtype=torch.float32) - 1)

    def forward(
        self, q: Float[Tensor, "b p h s"], k: Float[Tensor, "b p h s"], v: Float[Tensor, "b p h s"], layout: Layout
    ) -> Float[Tensor, "b p d"]:
        """Attend."""
        seen = self.find_neighbours(layout)
        q, k, v = (self.cut(x) for x in (q, k, v))
        near_k, near_v = (self.gather_keys(x, seen.chunks) for x in (k, v))
        hidden = seen.hidden.unsqueeze(-1)  # (g, t, 1)
        if layout.valid is None:
            hidden = hidden + torch.zeros(self.config.reach)
        else:
            by_chunk = reshape(layout.hide(), [0, -1, self.config.reach])
            hidden = gather(by_chunk, seen.chunks, axis=1) + hidden  # (b, g, t, c)
        sizes = [-1, 1, 1, self.config.num_seen * self.config.reach]
        hidden = reshape(hidden, sizes if layout.valid is None else [0, *sizes])
        return self.join(self.precision.multiply(self.weigh(q, near_k, hidden, self.window), near_v, "mixed"))

    def find_neighbours(self, layout: Layout) -> Neighbours:
        """Return the neighbours of each chunk."""
        wanted = layout.chunks.unsqueeze(-1) + self.offsets  # (g, t)
        chunks = wanted.clamp(min=0).clamp(max=layout.num_chunks - 1)
        return Neighbours(chunks.int(), (chunks != wanted).float() * HIDDEN_SCORE)

    def gather_keys(self, x: Float[Tensor, "b g h c s"], chunks: Int[Tensor, "g t"]) -> Float[Tensor, "b g h j s"]:
        """Return the keys or values of the chunks that each sees."""
        near = gather(x, chunks, axis=1).transpose(2, 3)  # (b, g, h, t, c, s)
        return reshape(near, [0, -1, self.config.num_heads, self.config.num_seen * self.config.reach, x.shape[-1]])


def _make(layer: MultiheadLayer, precision: Precision) -> LoweredAttention:
    return LoweredWindowAttention(cast("LongformerConfig", layer.config), precision)


LONGFORMER = describe_lowering(_make)
