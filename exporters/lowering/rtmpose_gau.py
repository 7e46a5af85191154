"""The export form of family ``rtmpose_gau``: RTMPose's gated attention unit, alone or in its SimCC head.

The number of keypoints is fixed, so that whatever depends on positions is a constant, and no node asks for a shape.

Axes: b batch, k keypoint, d model width, e hidden, s query/key, m pixel of a feature map.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.base import LoweredModel, Lowering
from flash_export.exporters.lowering.fold import compute_norm_gain
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import RESIDUAL, LoweredScaleNorm, apply_attention_fn, apply_silu
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import reshape
from flash_export.layers.position import spread_bias
from flash_export.models.rtmpose_gau import compute_turns

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.norm import ScaleNorm
    from flash_export.models.rtmpose_gau import RtmccBlock, RtmposeGauConfig, RtmposeGauModel


class LoweredBlock(nn.Module):
    """The gated attention unit in export form."""

    def __init__(self, block: RtmccBlock, precision: Precision = FP32) -> None:
        """Fold the weights of the reference block.

        The gain of the norm goes into the projection, the scores' divisor into the queries and the relative bias.
        """
        super().__init__()
        config, self.precision = block.config, precision
        self.act_fn, self.rotary = config.act_fn, config.rotary
        self.query_gain = math.sqrt(config.qk_dim)
        self.norm, self.norm_gain = LoweredScaleNorm(block.ln), compute_norm_gain(block.ln)
        self.widths = [config.hidden_dim, config.hidden_dim, config.qk_dim]
        rows = torch.arange(sum(self.widths))
        if config.rotary:  # the halves of z swapped stand beside it, so that turning needs no gather
            self.widths.append(config.qk_dim)
            rows = torch.cat((rows, rows[-config.qk_dim :].roll(config.qk_dim // 2)))
        weight = block.uv.weight[rows].mT * self.norm_gain
        self.projection_weight = nn.Buffer(precision.narrow(weight, "projection").contiguous())
        self.projection_bias = _narrow_bias(block.uv.bias, precision, "projection", rows)
        gamma, swapped_gamma, beta = self._fold_heads(block)
        self.gamma, self.beta = (nn.Buffer(precision.narrow(x, "heads").contiguous()) for x in (gamma, beta))
        if swapped_gamma is not None:
            self.swapped_gamma = nn.Buffer(precision.narrow(swapped_gamma, "heads").contiguous())
        score_bias = None if block.w is None else spread_bias(block.w) / self.query_gain
        self.score_bias = None if score_bias is None else nn.Buffer(precision.narrow(score_bias, "scores"))
        self.out_weight = nn.Buffer(precision.narrow(block.o.weight.mT, "update").contiguous())
        self.out_bias = None if block.o.bias is None else nn.Buffer(block.o.bias.clone())
        self.res_scale = None if block.res_scale is None else nn.Buffer(block.res_scale.scale.clone())

    def _fold_heads(self, block: RtmccBlock) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return what makes queries and keys of ``z``: factors, those of ``z`` with its halves swapped, and offsets.

        Where they are turned, each keypoint has its own.
        ``(z * gamma + beta)`` turned is ``z * gamma cos -+ swapped z * swapped gamma sin + turned beta``.
        """
        divisors = torch.tensor([[1 / self.query_gain], [1.0]])
        gamma, beta = block.gamma * divisors, block.beta * divisors  # (2, s)
        if not self.rotary:
            return gamma, None, beta
        half = gamma.shape[-1] // 2
        cos, sin = compute_turns(block.config.num_keypoints, 2 * half)  # (k, s/2)
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        gamma, beta = gamma[:, None], beta[:, None]  # (2, 1, s)
        swapped_gamma, swapped_beta = (x.roll(half, dims=-1) for x in (gamma, beta))
        return gamma * cos, swapped_gamma * sin, beta * cos + swapped_beta * sin

    def forward(self, x: Float[Tensor, "b k d"]) -> Float[Tensor, "b k out"]:
        """Mix the keypoints."""
        precision = self.precision
        normed = mark(precision.narrow(self.norm(x), "normed"), "normed", self.norm_gain)
        gate, value, *z = self._project(normed)
        gate, value = mark(gate, "gate"), mark(value, "value")
        q, k = (self._make_head(index, *z) for index in range(2))
        q, k = mark(q, "q", self.query_gain), mark(k, "k")
        scores = precision.multiply(q, k.mT, "scores")
        if self.score_bias is not None:
            scores = precision.combine(torch.add, scores, self.score_bias, "scores")
        weights = mark(apply_attention_fn(scores, "relu2", precision), "weights")
        mixed = mark(precision.multiply(weights, value, "mixed"), "mixed")
        gated = precision.combine(torch.mul, gate, mixed, "gated")
        update = widen(precision.multiply(gated, self.out_weight, "update"))
        if self.out_bias is not None:
            update = update + self.out_bias
        if self.res_scale is not None:
            update = widen(x) * self.res_scale + update
        return mark(precision.narrow(update, RESIDUAL), "out")

    def _project(self, normed: Float[Tensor, "b k d"]) -> tuple[Tensor, ...]:
        """Return gates, values, and what queries and keys are made of: one product, as keypoints are few."""
        projected = self.precision.multiply(normed, self.projection_weight, "projection")
        if self.projection_bias is not None:
            projected = self.precision.combine(torch.add, projected, self.projection_bias, "projection")
        activated = apply_silu(projected) if self.act_fn == "silu" else torch.relu(projected)
        return activated.split(self.widths, dim=-1)

    def _make_head(
        self, head: int, z: Float[Tensor, "b k s"], swapped: Float[Tensor, "b k s"] | None = None
    ) -> Float[Tensor, "b k s"]:
        """Return queries (0) or keys (1)."""
        precision = self.precision
        made = precision.combine(torch.mul, z, self.gamma[head], "heads")
        if swapped is not None:
            turned = precision.combine(torch.mul, swapped, self.swapped_gamma[head], "heads")
            made = precision.combine(torch.add, made, turned, "heads")
        return precision.combine(torch.add, made, self.beta[head], "heads")


class LoweredRtmposeGau(LoweredModel):
    """The unit, or the head, in export form: ``forward(features) -> hidden``, or ``-> simcc_x, simcc_y``."""

    def __init__(self, model: RtmposeGauModel, precision: Precision = FP32) -> None:
        """Fold the weights of the reference model."""
        super().__init__()
        self.config: RtmposeGauConfig = model.config
        self.orders = {}  # all are the reference's
        self.precision = precision
        if model.config.head is not None:
            self.maps = KeypointMaps(model, precision)
            self.classifiers = Classifiers(model)
        self.layers = nn.ModuleList([LoweredBlock(model.gau, precision.enter_block(0))])

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b k out"] | tuple[Tensor, ...]:
        """Return what the unit makes of vectors, or the scores along the two axes of an image."""
        if self.config.head is None:
            return widen(self.layers[0](features))
        return self.classifiers(self.layers[0](self.maps(features)))


class KeypointMaps(nn.Module):
    """From the features of an image to a vector a keypoint: convolution, norm and product.

    The convolution of a bf16 graph is in fp32: ONNX has none of bfloat16 before opset 22.
    """

    def __init__(self, model: RtmposeGauModel, precision: Precision) -> None:
        """Fold the gain of the norm into the product."""
        super().__init__()
        self.precision, self.conv_precision = precision, FP32 if precision.name == "bf16" else precision
        norm, linear = cast("ScaleNorm", model.mlp[0]), cast("nn.Linear", model.mlp[1])
        self.padding = model.final_layer.padding
        self.conv_weight = nn.Buffer(self.conv_precision.narrow(model.final_layer.weight, "maps").clone())
        self.conv_bias = nn.Buffer(self.conv_precision.narrow(cast("Tensor", model.final_layer.bias), "maps").clone())
        self.norm = LoweredScaleNorm(norm)
        self.weight = nn.Buffer(precision.narrow(linear.weight.mT * compute_norm_gain(norm), RESIDUAL).contiguous())

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k d"]:
        """Return the vectors."""
        precision, outer = self.precision, self.conv_precision
        maps = outer.combine(self._convolve, outer.narrow(features, "features"), self.conv_weight, "maps")
        normed = precision.narrow(self.norm(mark(reshape(maps, [0, 0, -1]), "maps")), "normed")
        return mark(precision.multiply(normed, self.weight, RESIDUAL), "embedding")

    def _convolve(self, features: Tensor, weight: Tensor) -> Tensor:
        bias: Tensor = self.conv_bias
        if bias.dtype != weight.dtype:  # else it would lose its name in the graph
            bias = bias.to(weight.dtype)
        return F.conv2d(features, weight, bias, padding=self.padding)


class Classifiers(nn.Module):
    """From the vector of a keypoint to the scores along both axes of the image, in fp32 in every precision.

    A keypoint is where an axis scores highest, and next to a peak the scores of two bins differ by less than a step of
    half precision: rounded, they tie, and the first wins.
    """

    def __init__(self, model: RtmposeGauModel) -> None:
        """Store the projections transposed, as one product wants them."""
        super().__init__()
        self.x_weight, self.y_weight = (
            nn.Buffer(linear.weight.mT.contiguous().clone()) for linear in (model.cls_x, model.cls_y)
        )

    def forward(self, hidden: Float[Tensor, "b k out"]) -> tuple[Tensor, Tensor]:
        """Return the scores along the width and along the height."""
        hidden = widen(hidden)
        return hidden @ self.x_weight, hidden @ self.y_weight


def _narrow_bias(bias: Tensor | None, precision: Precision, name: str, rows: Tensor) -> nn.Buffer | None:
    return None if bias is None else nn.Buffer(precision.narrow(bias[rows], name).clone())


# The number of keypoints is fixed, so that no value grows with it. What rounds is the unit, and what it is given; the
# convolution, most of the work, loses little.
_BLOCK_VALUES = ("normed", "projection", "heads", "scores", "weights", "mixed", "gated", "update", RESIDUAL)
RTMPOSE_GAU = Lowering(
    LoweredRtmposeGau,
    growing=_BLOCK_VALUES,
    growing_around=lambda config: () if config.head is None else ("normed", RESIDUAL),
    bounded=frozenset({*_BLOCK_VALUES, "features", "maps"}),
)
