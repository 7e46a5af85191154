"""Family ``linformer``: keys and values projected from the sequence to a fixed number (arXiv 2006.04768).

``softmax(q (E k)^T / sqrt(s)) (F v)``: E and F have a row for each position up to the longest, of which a shorter
sequence uses the first. What is masked adds nothing to the projected keys and values, so that padding is exact. There
is no causal form: a projected key holds all positions.

Axes: b batch, h head, n sequence, p projected keys, s head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from flash_export.errors import ConfigError
from flash_export.models.multihead import MultiheadConfig, MultiheadModel

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.models.multihead import Tokens


@dataclass(frozen=True)
class LinformerConfig(MultiheadConfig):
    """Hyper-parameters of a Linformer.

    Attributes:
        num_projected: Keys p that the sequence is projected to.
        shares_kv: Whether keys and values are projected by one matrix.
    """

    model_type: ClassVar[str] = "linformer"

    num_projected: int = 64
    shares_kv: bool = False

    def __post_init__(self) -> None:
        """Check the fields, and that nobody wants a causal one."""
        super().__post_init__()
        if self.causal:
            raise ConfigError(
                "causal=True is not usable: a projected key of a Linformer holds all positions, later ones too; "
                "use false, or family performer"
            )

    @property
    def has_max_len(self) -> bool:
        """The projection has a row for each position."""
        return True

    def count_attention_macs(self, seq_len: int) -> int:
        """Count the two projections and the two products."""
        return 4 * seq_len * self.dim * self.num_projected

    def count_attention_values(self, seq_len: int) -> int:
        """Count the scores."""
        return self.num_heads * seq_len * self.num_projected


class ProjectedAttention(nn.Module):
    """Attention to projected keys."""

    def __init__(self, config: LinformerConfig) -> None:
        """Create the attention of a model with this config."""
        super().__init__()
        shape, std = (config.max_positions, config.num_projected), config.num_projected**-0.5
        self.proj_k = nn.Parameter(torch.randn(shape) * std)
        self.proj_v = None if config.shares_kv else nn.Parameter(torch.randn(shape) * std)

    def forward(
        self, q: Float[Tensor, "b h n s"], k: Float[Tensor, "b h n s"], v: Float[Tensor, "b h n s"], tokens: Tokens
    ) -> Float[Tensor, "b h n s"]:
        """Attend."""
        seq_len, valid = q.shape[2], tokens.valid[:, None, :, None]
        keys, values = (
            (self.proj_k if matrix is None else matrix)[:seq_len].mT @ (x * valid)
            for x, matrix in ((k, self.proj_k), (v, self.proj_v))
        )
        return (q @ keys.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ values


class LinformerModel(MultiheadModel):
    """A Linformer."""

    config: LinformerConfig

    def build_attention(self, index: int) -> nn.Module:
        """Create the attention of a block."""
        return ProjectedAttention(self.config)
