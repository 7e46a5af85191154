"""Convolutions over time in export form, for values whose frames stand between an axis of 1 and their channels.

Axes: b batch, n frame, d width, w wider width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.fold import fold_norm_gain
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.lowering.shared_modules import apply_silu

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.convolution import FeedForwardConv


def add_identity(kernel: Float[Tensor, "w 1 k"]) -> Float[Tensor, "w 1 k"]:
    """Return a kernel that also adds its input: 1 more in the middle."""
    added = kernel.clone()
    added[:, 0, kernel.shape[2] // 2] += 1
    return added


class TimeConv(nn.Module):
    """A convolution over time in which every channel stays alone.

    It is one over a plane of a single line: onnxruntime has a kernel for depthwise convolutions of planes whose
    channels stand last, which takes a third of the time of one over a sequence. In a bf16 graph it is in fp32: ONNX has
    none of bfloat16 before opset 22.
    """

    def __init__(self, kernel: Float[Tensor, "w 1 k"], precision: Precision, name: str) -> None:
        """Take a kernel of odd size; ``name`` is what precision calls the result."""
        super().__init__()
        self.precision = FP32 if precision.name == "bf16" else precision
        self.name, self.outer = name, precision
        self.kernel = nn.Buffer(self.precision.narrow(kernel, name).unsqueeze(2).clone())

    def forward(self, x: Float[Tensor, "b 1 n w"]) -> Float[Tensor, "b 1 n w"]:
        """Convolve each channel along the frames."""
        convolved = self.precision.combine(self._convolve, x.permute(0, 3, 1, 2), self.kernel, self.name)
        return self.outer.narrow(convolved.permute(0, 2, 3, 1), self.name)

    def _convolve(self, x: Float[Tensor, "b w 1 n"], kernel: Float[Tensor, "w 1 1 k"]) -> Float[Tensor, "b w 1 n"]:
        return F.conv2d(x, kernel, padding=(0, kernel.shape[3] // 2), groups=len(kernel))


class ConvolvedProjection(nn.Module):
    """``h + conv(h)`` of ``h = silu(x W + b)``: a feed-forward layer of MossFormer2 behind its norm."""

    def __init__(
        self,
        weight: Float[Tensor, "w d"],
        bias: Float[Tensor, " w"],
        kernel: Float[Tensor, "w 1 k"],
        precision: Precision,
        name: str,
    ) -> None:
        """Take the weights, what the norm before it learned folded into them; ``name`` is what precision calls all."""
        super().__init__()
        self.precision, self.name = precision, name
        self.weight = nn.Buffer(precision.narrow(weight.mT, name).contiguous())
        self.bias = nn.Buffer(precision.narrow(bias, name).clone())
        self.conv = TimeConv(kernel, precision, name)

    def forward(self, x: Float[Tensor, "b 1 n d"]) -> Float[Tensor, "b 1 n w"]:
        """Return the features."""
        product = self.precision.multiply(x, self.weight, self.name)
        return self.conv(apply_silu(self.precision.combine(torch.add, product, self.bias, self.name)))


def fold_feed_forward(
    layer: FeedForwardConv, precision: Precision, name: str, channels: Int[Tensor, " w"] | None = None
) -> ConvolvedProjection:
    """Return a layer with what its norm learned folded into the projection, and only that it norms left to be done.

    Args:
        layer: Of the reference, behind a scale norm or a layer norm.
        precision: What all is computed in.
        name: What it calls the result.
        channels: Which of its outputs, repetitions allowed, in the order in which they are wanted; None: all.
    """
    weight, bias = fold_norm(layer.norm, layer.linear)
    kernel = add_identity(layer.conv.weight)
    if channels is not None:
        weight, bias, kernel = weight[channels], bias[channels], kernel[channels]
    return ConvolvedProjection(weight, bias, kernel, precision, name)


def fold_norm(norm: nn.Module, linear: nn.Linear) -> tuple[Float[Tensor, "o i"], Float[Tensor, " o"]]:
    """Return weight and bias of a projection with what the norm before it learned."""
    if isinstance(norm, nn.LayerNorm):
        return linear.weight * norm.weight, linear.weight @ norm.bias + linear.bias
    return fold_norm_gain(linear.weight, norm), linear.bias
