"""Family ``mc_tfm``: mixed chunk attention in a multi-head Transformer (MC-TFM++ of arXiv 2202.10447, section 5.3).

The paper gives no formula. Here each head is what the paper's FLASH is to its own quadratic attention: softmax
attention inside a chunk, and beside it linear attention, whose queries and keys are affine maps of those of the
softmax, over all earlier chunks (causal) or over everything, without normalisation. With ``positions`` rotary and a
gated linear unit it is MC-TFM++.

Axes: b batch, h head, n sequence, g chunk, c position in a chunk, s head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from flash_export.layers.attention import build_causal_mask, split_into_chunks, sum_kv_causal, sum_kv_global
from flash_export.models.multihead import MultiheadConfig, MultiheadModel, attend

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.models.multihead import Tokens


@dataclass(frozen=True)
class McTfmConfig(MultiheadConfig):
    """Hyper-parameters of a Transformer with mixed chunk attention.

    Attributes:
        chunk_size: Tokens a chunk, C.
    """

    model_type: ClassVar[str] = "mc_tfm"

    chunk_size: int = 128

    @property
    def window(self) -> int:
        """Sequences are padded to whole chunks."""
        return self.chunk_size

    def count_attention_macs(self, seq_len: int) -> int:
        """Count softmax and linear attention, on the length padded to whole chunks."""
        padded_len = seq_len + -seq_len % self.chunk_size
        return 2 * padded_len * self.dim * (self.chunk_size + self.head_dim)

    def count_attention_values(self, seq_len: int) -> int:
        """Count the scores, and the sums of all chunks."""
        num_chunks = -(-seq_len // self.chunk_size)
        return num_chunks * self.num_heads * (self.chunk_size**2 + 2 * self.head_dim**2)


class MixedChunkAttention(nn.Module):
    """Softmax inside a chunk, and a linear sum over the others."""

    def __init__(self, config: McTfmConfig) -> None:
        """Create the attention of a model with this config."""
        super().__init__()
        self.config = config
        # Of the linear queries and keys, for each head.
        self.gamma = nn.Parameter(torch.ones(2, config.num_heads, config.head_dim))
        self.beta = nn.Parameter(torch.zeros(2, config.num_heads, config.head_dim))

    def forward(
        self, q: Float[Tensor, "b h n s"], k: Float[Tensor, "b h n s"], v: Float[Tensor, "b h n s"], tokens: Tokens
    ) -> Float[Tensor, "b h n s"]:
        """Attend."""
        seq_len, config = q.shape[2], self.config
        valid = tokens.valid[:, None, :, None].to(q)
        lin_q, lin_k = (
            x * gamma[:, None] + beta[:, None] for x, gamma, beta in zip((q, k), self.gamma, self.beta, strict=True)
        )
        q, k, v, lin_q, lin_k, valid = (
            split_into_chunks(x, config.chunk_size) for x in (q, k, v * valid, lin_q, lin_k, valid)
        )
        visible = valid.bool().mT  # (b, 1, g, 1, c)
        if config.causal:
            visible = visible & build_causal_mask(config.chunk_size, q.device)
            kv = sum_kv_causal(lin_k, v)
        else:
            kv = sum_kv_global(lin_k, v, length=tokens.length[:, None, None, None], sum_over_chunks=True)
        mixed = attend(q, k, v, visible) + lin_q @ kv
        return mixed.flatten(2, 3)[:, :, :seq_len]


class McTfmModel(MultiheadModel):
    """A Transformer with mixed chunk attention."""

    config: McTfmConfig

    def build_attention(self, index: int) -> nn.Module:
        """Create the attention of a block."""
        return MixedChunkAttention(self.config)
