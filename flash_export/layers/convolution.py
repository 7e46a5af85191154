"""Convolutions over time in which every channel stays alone, and the feed-forward layer that ends in one.

Axes: b batch, n sequence, d width, i width of the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class DepthwiseConv(nn.Conv1d):
    """A convolution over time that keeps the length, with zeros around the sequence and no bias."""

    def __init__(self, dim: int, kernel_size: int, *, channels_each: int = 1, dilation: int = 1) -> None:
        """Create the convolution.

        Args:
            dim: Channels of the output.
            kernel_size: Positions that one output reads, an odd number.
            channels_each: Neighbouring channels of the input that one of the output reads.
            dilation: Distance of those positions.
        """
        padding = dilation * (kernel_size // 2)
        super().__init__(
            dim * channels_each, dim, kernel_size, padding=padding, dilation=dilation, groups=dim, bias=False
        )

    def forward(self, x: Float[Tensor, "b n i"]) -> Float[Tensor, "b n d"]:
        """Convolve each channel along the sequence."""
        return super().forward(x.mT).mT


class FeedForwardConv(nn.Module):
    """``h + conv(h)`` of ``h = silu(linear(norm(x)))``: MossFormer2's ``FFConvM`` (arXiv 2312.11825)."""

    def __init__(self, norm: nn.Module, in_dim: int, dim: int, kernel_size: int) -> None:
        """Create the layer behind a norm of vectors of width ``in_dim``."""
        super().__init__()
        self.norm = norm
        self.linear = nn.Linear(in_dim, dim)
        self.conv = DepthwiseConv(dim, kernel_size)

    def forward(self, x: Float[Tensor, "b n i"]) -> Float[Tensor, "b n d"]:
        """Return the features of each position and of those around it."""
        hidden = F.silu(self.linear(self.norm(x)))
        return hidden + self.conv(hidden)
