"""The memory of a MossFormer2 block in export form.

Axes: b batch, n frame, d model width, f width of the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import lower_norm
from flash_export.exporters.lowering.time_conv import TimeConv, add_identity, fold_feed_forward, fold_norm
from flash_export.exporters.marks import mark
from flash_export.layers.fsmn import DilatedMemory

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.fsmn import DilatedStage, Fsmn
    from flash_export.models.mossformer2_layer import Mossformer2Layer


class LoweredMemory(nn.Module):
    """``expand(v * fsmn(u) + reduced)``, u and v being one projection of ``reduced``, normed again."""

    def __init__(self, layer: Mossformer2Layer, channels: Int[Tensor, " d"], precision: Precision = FP32) -> None:
        """Fold the weights of the reference block, whose input and output have their channels in this order."""
        super().__init__()
        self.precision = precision
        linear, prelu = cast("nn.Linear", layer.reduce[0]), cast("nn.PReLU", layer.reduce[1])
        self.norm = lower_norm(layer.reduce[2], torch.arange(layer.config.fsmn_dim))
        self.reduce_weight = nn.Buffer(precision.narrow(linear.weight.mT[channels], "reduction").contiguous())
        self.reduce_bias = nn.Buffer(precision.narrow(linear.bias, "reduction").clone())
        self.slope = float(prelu.weight)
        self.to_u, self.to_v = (fold_feed_forward(one, precision, "features") for one in (layer.to_u, layer.to_v))
        self.fsmn = LoweredFsmn(layer.fsmn, precision)
        self.eps = cast("nn.LayerNorm", layer.to_u.norm).eps
        weight, bias = fold_norm(layer.expand[0], cast("nn.Linear", layer.expand[1]))
        self.expand_weight = nn.Buffer(precision.narrow(weight.mT[:, channels], "expansion").contiguous())
        self.expand_bias = nn.Buffer(bias[channels].clone())

    def forward(self, x: Float[Tensor, "b 1 n d"]) -> Float[Tensor, "b 1 n d"]:
        """Return what is added to the frames, in fp32."""
        precision = self.precision
        product = precision.multiply(x, self.reduce_weight, "reduction")
        product = precision.combine(torch.add, product, self.reduce_bias, "reduction")
        reduced = mark(precision.narrow(self.norm(F.leaky_relu(product, self.slope)), "reduced"), "reduced")
        features_in = precision.narrow(self._normalise(reduced), "features_in")
        remembered = mark(self.fsmn(self.to_u(features_in)), "remembered")
        recalled = precision.combine(torch.mul, self.to_v(features_in), remembered, "recalled")
        recalled = precision.combine(torch.add, recalled, reduced, "recalled")
        normed = precision.narrow(self._normalise(recalled), "expansion_in")
        return widen(precision.multiply(normed, self.expand_weight, "expansion")) + self.expand_bias

    def _normalise(self, x: Float[Tensor, "b 1 n f"]) -> Float[Tensor, "b 1 n f"]:
        return F.layer_norm(widen(x), x.shape[-1:], eps=self.eps)


class LoweredFsmn(nn.Module):
    """``x + memory(project(relu(linear(x))))``."""

    def __init__(self, fsmn: Fsmn, precision: Precision) -> None:
        """Take the weights of the reference network."""
        super().__init__()
        self.precision = precision
        self.weight = nn.Buffer(precision.narrow(fsmn.linear.weight.mT, "memory_in").contiguous())
        self.bias = nn.Buffer(precision.narrow(fsmn.linear.bias, "memory_in").clone())
        self.project_weight = nn.Buffer(precision.narrow(fsmn.project.weight.mT, "memory").contiguous())
        self.memory: nn.Module
        if isinstance(fsmn.memory, DilatedMemory):
            self.memory = LoweredDilatedMemory(fsmn.memory, precision)
        else:
            kernel = fsmn.memory.conv.weight
            self.memory = TimeConv(add_identity(kernel), precision, "memory")

    def forward(self, x: Float[Tensor, "b 1 n f"]) -> Float[Tensor, "b 1 n f"]:
        """Add what is remembered."""
        precision = self.precision
        product = precision.multiply(x, self.weight, "memory_in")
        hidden = torch.relu(precision.combine(torch.add, product, self.bias, "memory_in"))
        projected = precision.multiply(hidden, self.project_weight, "memory")
        return precision.combine(torch.add, x, self.memory(projected), "remembered")


class LoweredDilatedMemory(nn.Module):
    """Two dense stages, each a convolution, a norm over time and PReLU, with channels before frames."""

    def __init__(self, memory: DilatedMemory, precision: Precision) -> None:
        """Take the stages of the reference memory."""
        super().__init__()
        self.stages = nn.ModuleList(LoweredStage(cast("DilatedStage", stage), precision) for stage in memory.stages)

    def forward(self, x: Float[Tensor, "b 1 n f"]) -> Float[Tensor, "b 1 n f"]:
        """Return the output of the last stage."""
        known = out = x.permute(0, 3, 1, 2)
        for index, stage in enumerate(self.stages):
            if index:
                known = torch.cat((out, known), dim=1)
            out = stage(known)
        return out.permute(0, 2, 3, 1)


class LoweredStage(nn.Module):
    """A convolution, of fp32 in a bf16 graph as in :class:`TimeConv`; a norm over time in fp32; and PReLU."""

    def __init__(self, stage: DilatedStage, precision: Precision) -> None:
        """Take the weights of the reference stage."""
        super().__init__()
        self.precision, self.conv_precision = precision, FP32 if precision.name == "bf16" else precision
        conv, norm = stage.conv, stage.norm
        self.dilation, self.padding, self.eps = conv.dilation[0], cast("tuple[int]", conv.padding)[0], norm.eps
        self.kernel = nn.Buffer(self.conv_precision.narrow(conv.weight, "memory").unsqueeze(2).clone())
        self.gain, self.bias = (nn.Buffer(values.reshape(-1, 1, 1).clone()) for values in (norm.weight, norm.bias))
        self.slope = nn.Buffer(stage.prelu.weight.clone())

    def forward(self, x: Float[Tensor, "b i 1 n"]) -> Float[Tensor, "b f 1 n"]:
        """Return the channels of the stage."""
        heard = widen(self.conv_precision.combine(self._convolve, x, self.kernel, "memory"))
        centred = heard - heard.mean(dim=-1, keepdim=True)
        variance = (centred * centred).mean(dim=-1, keepdim=True)
        normed = centred * (self.gain / (variance + self.eps).sqrt()) + self.bias
        return self.precision.narrow(F.prelu(normed, self.slope), "memory")

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        padding, dilation = (0, self.padding), (1, self.dilation)
        return F.conv2d(x, kernel, padding=padding, dilation=dilation, groups=len(kernel))
