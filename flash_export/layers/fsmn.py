"""Feedforward sequential memory networks: a memory of the positions around, without recurrence.

Source: deep FSMN, arXiv 1803.05030; with a dilated memory MossFormer2, arXiv 2312.11825. Both in the dialect of
clearvoice 0.1.2: ``UniDeepFsmn`` and ``UniDeepFsmn_dilated``.

Axes: b batch, n sequence, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.layers.convolution import DepthwiseConv

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

DENSE_DEPTH = 2  # convolutions of a dilated memory


class PlainMemory(nn.Module):
    """``x + conv(x)``."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        """Create a memory of ``kernel_size`` positions, an odd number."""
        super().__init__()
        self.conv = DepthwiseConv(dim, kernel_size)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Add what is around each position."""
        return x + self.conv(x)


class DilatedStage(nn.Module):
    """One convolution of a dilated memory, its norm over time and its activation."""

    def __init__(self, dim: int, kernel_size: int, index: int) -> None:
        """Create the stage behind ``index`` others, which reads as many channels for each of its own, and its input."""
        super().__init__()
        self.conv = DepthwiseConv(dim, kernel_size, channels_each=index + 1, dilation=2**index)
        self.norm = nn.InstanceNorm1d(dim, affine=True)
        self.prelu = nn.PReLU(dim)

    def forward(self, x: Float[Tensor, "b n i"]) -> Float[Tensor, "b n d"]:
        """Return the channels, each with mean 0 and variance 1 over the sequence before its affine map.

        Raises:
            ValueError: The sequence has one position, which has no variance.
        """
        return self.prelu(self.norm(self.conv(x).mT)).mT


class DilatedMemory(nn.Module):
    """Stages each of which reads the output of all before it, the last in front, and the input behind them.

    Channel c of stage i reads the ``i + 1`` channels from ``c * (i + 1)`` on of what stands there. Those are neighbours
    in one output, not channel c of each: clearvoice groups its convolution like this, and models are trained so.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        """Create a memory whose kernels have ``kernel_size`` positions, an odd number."""
        super().__init__()
        self.stages = nn.ModuleList(DilatedStage(dim, kernel_size, index) for index in range(DENSE_DEPTH))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return the output of the last stage; nothing is added to it."""
        known = out = x
        for stage in self.stages:
            out = stage(known)
            known = torch.cat((out, known), dim=-1)
        return out


PLAIN, DILATED = "plain", "dilated"
MEMORIES: dict[str, type[PlainMemory | DilatedMemory]] = {PLAIN: PlainMemory, DILATED: DilatedMemory}


class Fsmn(nn.Module):
    """``x + memory(project(relu(linear(x))))``."""

    def __init__(self, memory: str, dim: int, kernel_size: int) -> None:
        """Create the network of width ``dim`` with a ``plain`` or ``dilated`` memory."""
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.project = nn.Linear(dim, dim, bias=False)
        self.memory = MEMORIES[memory](dim, kernel_size)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Add what is remembered of the sequence."""
        return x + self.memory(self.project(F.relu(self.linear(x))))
