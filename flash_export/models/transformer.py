"""Family ``transformer``: the standard multi-head Transformer, with softmax attention over the whole sequence.

Source of the maths: arXiv 1706.03762, with the norms before each part. With ``ff_type`` a gated linear unit and
``positions`` rotary it is the Transformer++ of arXiv 2202.10447.

Axes: b batch, h head, n sequence, s head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from flash_export.layers.attention import build_causal_mask
from flash_export.models.multihead import MultiheadConfig, MultiheadModel, attend

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.models.multihead import Tokens


@dataclass(frozen=True)
class TransformerConfig(MultiheadConfig):
    """Hyper-parameters of a Transformer."""

    model_type: ClassVar[str] = "transformer"

    @property
    def state_refusal(self) -> str | None:
        """Keys and values are carried where no token changes those before it."""
        return None if self.causal else super().state_refusal

    def count_attention_macs(self, seq_len: int) -> int:
        """Count both products, over the whole square in causal models too."""
        return 2 * seq_len**2 * self.dim

    def count_attention_values(self, seq_len: int) -> int:
        """Count the scores."""
        return self.num_heads * seq_len**2


class FullAttention(nn.Module):
    """Every token attends to all, or to itself and all earlier ones."""

    def __init__(self, config: TransformerConfig) -> None:
        """Create the attention of a model with this config."""
        super().__init__()
        self.causal = config.causal

    def forward(
        self, q: Float[Tensor, "b h n s"], k: Float[Tensor, "b h n s"], v: Float[Tensor, "b h n s"], tokens: Tokens
    ) -> Float[Tensor, "b h n s"]:
        """Attend."""
        visible = tokens.valid[:, None, None, :]
        if self.causal:
            visible = visible & build_causal_mask(q.shape[2], q.device)
        return attend(q, k, v, visible)


class TransformerModel(MultiheadModel):
    """A Transformer."""

    config: TransformerConfig

    def build_attention(self, index: int) -> nn.Module:
        """Create the attention of a block."""
        return FullAttention(self.config)
