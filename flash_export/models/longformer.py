"""Family ``longformer``: softmax attention in a sliding window (arXiv 2004.05150).

A token attends to ``reach`` tokens on each side and to itself; in causal models to those before it. There are no global
tokens: a language model has none. Sequences are cut into chunks of ``reach`` tokens, each of which sees its neighbours.

Axes: b batch, h head, n sequence, g chunk, c position in a chunk, j key of the chunks that are seen, s head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.layers.attention import split_into_chunks
from flash_export.models.multihead import MultiheadConfig, MultiheadModel, attend

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from flash_export.models.multihead import Tokens


@dataclass(frozen=True)
class LongformerConfig(MultiheadConfig):
    """Hyper-parameters of a Longformer.

    Attributes:
        reach: Tokens on each side that a token attends to: half of transformers' ``attention_window``.
    """

    model_type: ClassVar[str] = "longformer"

    reach: int = 128

    @property
    def window(self) -> int:
        """Sequences are padded to whole chunks."""
        return self.reach

    @property
    def num_seen(self) -> int:
        """Chunks that a chunk sees: the one before it, itself and, unless the model is causal, the next."""
        return 2 if self.causal else 3

    def count_attention_macs(self, seq_len: int) -> int:
        """Count both products, on the length padded to whole chunks."""
        padded_len = seq_len + -seq_len % self.reach
        return 2 * padded_len * self.num_seen * self.reach * self.dim

    def count_attention_values(self, seq_len: int) -> int:
        """Count the scores, and the keys and values of the chunks that each sees."""
        padded_len = seq_len + -seq_len % self.reach
        return padded_len * self.num_seen * (self.num_heads * self.reach + 2 * self.dim)


def list_neighbours(x: Float[Tensor, "b h g c w"], num_seen: int) -> Float[Tensor, "b h g j w"]:
    """Return the chunks that each chunk sees, one behind the other; zeros where there is none."""
    num_chunks = x.shape[2]
    padded = F.pad(x, (0, 0, 0, 0, 1, num_seen - 2))
    return torch.cat([padded[:, :, first : first + num_chunks] for first in range(num_seen)], dim=3)


def build_window(reach: int, num_seen: int, device: torch.device) -> Bool[Tensor, "c j"]:
    """Return which keys of the chunks that it sees lie in the window of each token of a chunk."""
    queries = torch.arange(reach, device=device)[:, None]
    offsets = torch.arange(-reach, (num_seen - 1) * reach, device=device) - queries
    return (offsets >= -reach) & (offsets <= (0 if num_seen == 2 else reach))


class WindowAttention(nn.Module):
    """Attention in a sliding window."""

    def __init__(self, config: LongformerConfig) -> None:
        """Create the attention of a model with this config."""
        super().__init__()
        self.config = config

    def forward(
        self, q: Float[Tensor, "b h n s"], k: Float[Tensor, "b h n s"], v: Float[Tensor, "b h n s"], tokens: Tokens
    ) -> Float[Tensor, "b h n s"]:
        """Attend."""
        seq_len, reach, num_seen = q.shape[2], self.config.reach, self.config.num_seen
        valid = tokens.valid[:, None, :, None].to(q)
        q, k, v, valid = (split_into_chunks(x, reach) for x in (q, k, v, valid))
        k, v, valid = (list_neighbours(x, num_seen) for x in (k, v, valid))
        visible = valid.bool().mT & build_window(reach, num_seen, q.device)
        return attend(q, k, v, visible).flatten(2, 3)[:, :, :seq_len]


class LongformerModel(MultiheadModel):
    """A Longformer."""

    config: LongformerConfig

    def build_attention(self, index: int) -> nn.Module:
        """Create the attention of a block."""
        return WindowAttention(self.config)
