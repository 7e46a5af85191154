"""The export form of family ``bigbird``.

The blocks that a block of queries sees are one Gather, but for the last block of a row, which rows have at different
places: it is a second product, whose scores stand beside the others. Blocks that a row does not have are padding all
through, so that they are hidden with it.

Axes: b batch, p token of all blocks, g block, h head, c position in a block, t block that is seen, j key of those, s
head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn

from flash_export.exporters.lowering.multihead import LoweredAttention, describe_lowering, hide_future
from flash_export.exporters.lowering.shared_modules import WEIGHTS
from flash_export.exporters.spelling import gather, reshape, take_at
from flash_export.models.multihead import HIDDEN_SCORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.multihead import Layout
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.bigbird import BigBirdConfig, BlockSparseAttention
    from flash_export.models.multihead import MultiheadLayer

OWN = 2  # place of a block's own number among those that it sees: after the first block's and the one before


class SeenBlocks(NamedTuple):
    """The blocks that each block of queries sees, at the same places in all rows.

    Attributes:
        wanted: Their numbers, some of which do not exist.
        present: The same, some other block in the place of those.
        hidden: What is added to the scores of those that do not exist, or stand there before.
    """

    wanted: Float[Tensor, "g t"]
    present: Int[Tensor, "g t"]
    hidden: Float[Tensor, "g t"]


class LoweredBlockSparseAttention(LoweredAttention):
    """Attention to some blocks."""

    config: BigBirdConfig

    def __init__(self, config: BigBirdConfig, attention: BlockSparseAttention, precision: Precision) -> None:
        """Take the table of the drawn blocks."""
        super().__init__(config, precision)
        size, num_seen = config.block_size, config.num_seen - (0 if config.causal else 1)
        self.num_seen = num_seen
        self.random_blocks = nn.Buffer(attention.random_blocks.clone())
        self.earlier = nn.Buffer(torch.ones(num_seen, num_seen).tril(-1))
        self.window = nn.Buffer(torch.arange(2.0 if config.causal else 3.0) - 1)
        future, first_future = torch.zeros(2, size, num_seen, size)
        future[:, OWN], first_future[:, 0] = hide_future(size), hide_future(size)
        self.future = nn.Buffer(future.flatten(1)) if config.causal else None
        # The first block sees itself as the global one.
        self.first_future = nn.Buffer(first_future.flatten(1)) if config.causal else None

    def forward(
        self, q: Float[Tensor, "b p h s"], k: Float[Tensor, "b p h s"], v: Float[Tensor, "b p h s"], layout: Layout
    ) -> Float[Tensor, "b p d"]:
        """Attend."""
        size = self.config.block_size
        blocks = layout.chunks.unsqueeze(-1)  # (g, 1)
        seen = self.find_seen(blocks, layout.num_chunks)
        key_hidden = layout.hide()
        if key_hidden is None:
            key_hidden = (layout.positions * 0).unsqueeze(0)
        by_block = reshape(key_hidden, [0, -1, size])  # (b or 1, g, c)
        hidden = gather(by_block, seen.present, axis=1) + seen.hidden.unsqueeze(-1)
        hidden = reshape(hidden, [0, -1, 1, 1, self.num_seen * size])
        queries, near_k, near_v = self.cut(q), self.gather_keys(k, seen.present), self.gather_keys(v, seen.present)
        if self.future is not None and self.first_future is not None:
            is_first = (blocks == 0).float().unsqueeze(-1).unsqueeze(-1)  # (g, 1, 1, 1)
            weights = self.weigh(queries, near_k, hidden, self.future, is_first * self.first_future)
            return self.join(self.precision.multiply(weights, near_v, "mixed"))
        rows = torch.arange(q.shape[0], dtype=torch.float32)
        last = self.find_last(layout) + rows * 0  # (b)
        place = torch.stack((rows, last), dim=-1).long()
        last_hidden = take_at(by_block + rows.unsqueeze(-1).unsqueeze(-1) * 0, place).unsqueeze(1)  # (b, 1, c)
        repeated = (seen.wanted == last.unsqueeze(-1).unsqueeze(-1)).float().sum(dim=-1, keepdim=True)  # (b, g, 1)
        last_hidden = (last_hidden + repeated * HIDDEN_SCORE).unsqueeze(2).unsqueeze(2)  # (b, g, 1, 1, c)
        last_k, last_v = (take_at(self.cut(x), place).unsqueeze(1) for x in (k, v))
        scores = torch.cat((self.score(queries, near_k, hidden), self.score(queries, last_k, last_hidden)), dim=-1)
        weights = self.precision.narrow(scores.softmax(dim=-1), WEIGHTS)
        near_weights, last_weights = weights.split([self.num_seen * size, size], dim=-1)
        mixed = self.precision.combine(
            torch.add,
            self.precision.multiply(near_weights, near_v, "mixed"),
            self.precision.multiply(last_weights, last_v, "mixed"),
            "mixed",
        )
        all_k, all_v = k.transpose(1, 2), v.transpose(1, 2)  # (b, h, p, s)
        all_hidden = key_hidden.unsqueeze(1).unsqueeze(1)
        for block in (last, rows * 0):
            own = take_at(queries, torch.stack((rows, block), dim=-1).long())  # (b, h, c, s)
            full = self.precision.multiply(self.weigh(own, all_k, all_hidden), all_v, "mixed").unsqueeze(1)
            is_block = (blocks == block.unsqueeze(-1).unsqueeze(-1)).unsqueeze(-1).unsqueeze(-1)  # (b, g, 1, 1, 1)
            mixed = torch.where(is_block, full, mixed)
        return self.join(mixed)

    def find_seen(self, blocks: Float[Tensor, "g 1"], num_blocks: int) -> SeenBlocks:
        """Return what each block of queries sees: the first, itself and its neighbours, and those drawn for it."""
        drawn = gather(self.random_blocks, reshape(blocks, [-1]).int())
        wanted = torch.cat((blocks * 0, blocks + self.window, drawn), dim=1)
        present = wanted.clamp(min=0).clamp(max=num_blocks - 1)
        equal = (wanted.unsqueeze(-1) == wanted.unsqueeze(1)).float() * self.earlier
        times_hidden = (wanted != present).float() + equal.sum(dim=-1)
        return SeenBlocks(wanted, present.int(), times_hidden * HIDDEN_SCORE)

    def find_last(self, layout: Layout) -> Float[Tensor, "#b"]:
        """Return the number of each row's last block."""
        if layout.valid is None:
            return layout.positions[:1] * 0 + (layout.num_chunks - 1)
        return ((layout.valid.sum(dim=1) - 1).clamp(min=0) / self.config.block_size).floor()

    def gather_keys(self, x: Float[Tensor, "b p h s"], blocks: Int[Tensor, "g t"]) -> Float[Tensor, "b g h j s"]:
        """Return the keys or values of the blocks that each sees."""
        near = gather(self.cut(x), blocks, axis=1).transpose(2, 3)  # (b, g, h, t, c, s)
        return reshape(near, [0, -1, self.config.num_heads, self.num_seen * self.config.block_size, x.shape[-1]])


def _make(layer: MultiheadLayer, precision: Precision) -> LoweredAttention:
    attention = cast("BlockSparseAttention", layer.attention)
    return LoweredBlockSparseAttention(cast("BigBirdConfig", layer.config), attention, precision)


BIGBIRD = describe_lowering(_make)
