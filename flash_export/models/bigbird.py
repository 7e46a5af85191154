"""Family ``bigbird``: block-sparse softmax attention: a window, global and fixed random blocks (arXiv 2007.14062).

The sequence is cut into blocks. A block of queries attends to itself and its neighbours, to the global blocks, and to
some that were drawn once and are part of the weights. Global are the first block of a row and, unless the model is
causal, its last one; they attend to all. Drawn blocks that a row does not have are not seen. Each block is seen once.

So a row gives the same whatever it is padded to: transformers takes the last block of the batch for the last of a row,
and below ``5 + 2 r`` blocks uses full attention.

Axes: b batch, h head, n sequence, g block, c position in a block, t blocks that a block sees, s head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from flash_export.errors import CheckpointError, ConfigError
from flash_export.layers.attention import build_causal_mask, split_into_chunks
from flash_export.models.multihead import MultiheadConfig, MultiheadModel, attend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from flash_export.models.multihead import Tokens

NO_BLOCK = -1
# The first of these blocks draw from at least as many, however short the sequence is.
MIN_DRAWN_FROM = 8


@dataclass(frozen=True)
class BigBirdConfig(MultiheadConfig):
    """Hyper-parameters of a BigBird.

    Attributes:
        block_size: Tokens a block.
        num_random: Drawn blocks r that a block of queries sees.
        block_seed: Seed of the drawn blocks of a new model; a trained one has them in its weights.
    """

    model_type: ClassVar[str] = "bigbird"

    block_size: int = 64
    num_random: int = 2
    block_seed: int = 1

    def __post_init__(self) -> None:
        """Check the fields, and that positions are whole blocks."""
        super().__post_init__()
        if self.max_positions % self.block_size:
            raise ConfigError(
                f"max_positions={self.max_positions} is no multiple of block_size={self.block_size}; use one"
            )

    @property
    def window(self) -> int:
        """Sequences are padded to whole blocks."""
        return self.block_size

    @property
    def has_max_len(self) -> bool:
        """Blocks are drawn for each block that there can be."""
        return True

    @property
    def full_chunks(self) -> int:
        """In fewer blocks, those that were drawn are global ones, neighbours or not there."""
        return MIN_DRAWN_FROM

    @property
    def max_blocks(self) -> int:
        """Blocks of the longest sequence."""
        return self.max_positions // self.block_size

    @property
    def num_seen(self) -> int:
        """Blocks that a block sees: a window of 2 or 3, global ones, and those that were drawn."""
        return (3 if self.causal else 5) + self.num_random

    def count_attention_macs(self, seq_len: int) -> int:
        """Count both products, and those of the global blocks that attend to all."""
        padded_len = seq_len + -seq_len % self.block_size
        seen = self.num_seen + (0 if self.causal else 2)
        return 2 * padded_len * seen * self.block_size * self.dim

    def count_attention_values(self, seq_len: int) -> int:
        """Count the scores, and the keys and values of the blocks that each sees."""
        padded_len = seq_len + -seq_len % self.block_size
        return padded_len * (self.num_seen + 2) * (self.num_heads * self.block_size + 2 * self.dim)


def draw_blocks(config: BigBirdConfig, seed: int) -> Float[Tensor, "g r"]:
    """Return the drawn blocks of each block, ``NO_BLOCK`` where there are not as many.

    They are none of the window and not the first. In causal models they are earlier ones; else they are below the next
    power of two, so that a short sequence has most of them.
    """
    random = np.random.default_rng(seed)
    table = np.full((config.max_blocks, config.num_random), NO_BLOCK)
    for block in range(config.max_blocks):
        end = block - 1 if config.causal else min(max(MIN_DRAWN_FROM, 1 << (block + 1).bit_length()), config.max_blocks)
        choice = [other for other in range(1, end) if abs(other - block) > 1]
        drawn = random.permutation(choice)[: config.num_random]
        table[block, : len(drawn)] = np.sort(drawn)
    return torch.from_numpy(table).float()


def check_drawn(config: BigBirdConfig, table: Float[Tensor, "g r"]) -> None:
    """Check drawn blocks that were read: numbers of blocks, in causal models of earlier ones.

    Raises:
        CheckpointError: They are not; of a causal model with a later block, answers would depend on what comes later.
    """
    ends = torch.arange(len(table))[:, None] if config.causal else config.max_blocks
    odd = (table != table.round()) | (table < NO_BLOCK) | (table >= ends)
    if odd.any():
        block, place = odd.nonzero()[0].tolist()
        allowed = "earlier ones, as the model is causal" if config.causal else f"0 to {config.max_blocks - 1}"
        raise CheckpointError(
            f"random_blocks has {table[block, place]:g} for block {block}, wanted {allowed}, or {NO_BLOCK} for none; "
            "train with the config that the weights are exported with"
        )


class BlockSparseAttention(nn.Module):
    """Attention to some blocks."""

    def __init__(self, config: BigBirdConfig, index: int) -> None:
        """Draw the blocks of a layer of a new model."""
        super().__init__()
        self.config = config
        self.random_blocks = nn.Buffer(draw_blocks(config, config.block_seed + index))

    def list_seen(self, last: Int[Tensor, " b"], num_blocks: int) -> tuple[Int[Tensor, "b g t"], Bool[Tensor, "b g t"]]:
        """Return the blocks that each block of queries sees, and which of them are there and stand there once.

        Args:
            last: The last block of each row.
            num_blocks: Blocks of the longest row.
        """
        blocks = torch.arange(num_blocks, device=last.device)
        drawn = self.random_blocks[:num_blocks].long()
        first, before = torch.zeros_like(blocks), blocks - 1
        columns = [first, before, blocks] if self.config.causal else [first, before, blocks, blocks + 1]
        seen = torch.cat((torch.stack(columns, dim=1), drawn), dim=1).expand(len(last), -1, -1)
        if not self.config.causal:
            seen = torch.cat((seen, last[:, None, None].expand(-1, num_blocks, 1)), dim=2)
        is_seen = (seen >= 0) & (seen <= last[:, None, None])
        equal = seen[..., :, None] == seen[..., None, :]  # to one that stands before it
        is_repeated = (equal & torch.ones_like(equal).tril(-1)).any(dim=-1)
        return seen.clamp(0, num_blocks - 1), is_seen & ~is_repeated

    def forward(
        self, q: Float[Tensor, "b h n s"], k: Float[Tensor, "b h n s"], v: Float[Tensor, "b h n s"], tokens: Tokens
    ) -> Float[Tensor, "b h n s"]:
        """Attend."""
        config, seq_len, size = self.config, q.shape[2], self.config.block_size
        last = (tokens.length[:, 0] - 1) // size
        q, k, v, valid = (split_into_chunks(x, size) for x in (q, k, v, tokens.valid[:, None, :, None].to(q)))
        num_blocks = q.shape[2]
        seen, is_seen = self.list_seen(last, num_blocks)
        rows = torch.arange(len(last), device=last.device)[:, None, None]
        near_k, near_v = (x.transpose(1, 2)[rows, seen].movedim(3, 1).flatten(3, 4) for x in (k, v))  # (b, h, g, tc, s)
        visible = valid[:, 0, :, :, 0].bool()[rows, seen] & is_seen[..., None]  # (b, g, t, c)
        visible = visible.flatten(2)[:, None, :, None, :]
        if config.causal:
            own = torch.zeros(config.num_seen, dtype=torch.bool, device=last.device)
            own[2] = True
            # The first block sees itself as the global one.
            is_own = own | ((torch.arange(num_blocks, device=last.device) == 0)[:, None])  # (g, t)
            triangle = build_causal_mask(size, q.device)[:, None, :] | ~is_own[:, None, :, None]  # (g, c, t, c)
            visible = visible & triangle.flatten(2)
        mixed = attend(q, near_k, near_v, visible)
        if not config.causal:
            all_k, all_v, all_valid = (x.flatten(2, 3) for x in (k, v, valid))
            rows, blocks = rows[:, 0, 0], torch.arange(num_blocks, device=last.device)
            for block in (last, torch.zeros_like(last)):
                full = attend(q[rows, :, block], all_k, all_v, all_valid.bool().mT)
                is_global = (blocks == block[:, None])[:, None, :, None, None]  # (b, 1, g, 1, 1)
                mixed = torch.where(is_global, full.unsqueeze(2), mixed)
        return mixed.flatten(2, 3)[:, :, :seq_len]


class BigBirdModel(MultiheadModel):
    """A BigBird."""

    config: BigBirdConfig

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; see :func:`check_drawn`, and PyTorch's method of the name."""
        for name, table in state_dict.items():
            if name.endswith(".random_blocks"):
                check_drawn(self.config, table)
        return super().load_state_dict(state_dict, strict, assign)

    def build_attention(self, index: int) -> nn.Module:
        """Create the attention of a block."""
        return BlockSparseAttention(self.config, index)
