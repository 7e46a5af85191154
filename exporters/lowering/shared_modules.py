"""Pieces that the lowered models share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.fold import compute_norm_floor, fold_input_projection
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.layers.activation import LAPLACE_MEAN, LAPLACE_STDS, RELU2
from flash_export.layers.norm import ScaleNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor
    from typing_extensions import Self

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.position import ScaledSinusoid
    from flash_export.models.flash import FlashLayer
    from flash_export.models.gau import GauLayer

# Laplace is 0.5 * (1 + erf(x * slope - shift)): slope and shift go into the scores, the factor into what follows.
LAPLACE_FACTOR = 0.5

# Names of values that may be islands and that belong to no block, or to several files.
TABLE, RESIDUAL, LOGITS = "table", "residual", "logits"
WEIGHTS = "weights"


class LoweredScaleNorm(nn.Module):
    """``x / max(||x||, floor)``: the gain and ``dim**0.5`` are in the projection that follows."""

    def __init__(self, norm: ScaleNorm) -> None:
        """Take the floor of the reference norm."""
        super().__init__()
        self.floor = compute_norm_floor(norm)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Normalise the last axis, in fp32: squares leave the range of fp16 for values above 256.

        The norm is not ReduceL2, for which onnxruntime's symbolic shape inference has no shape.
        """
        x = widen(x)
        return x / (x * x).sum(dim=-1, keepdim=True).clamp(min=self.floor**2).sqrt()


class LoweredLayerNorm(nn.LayerNorm):
    """LayerNorm in fp32, whatever it is given."""

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Normalise the last axis."""
        return super().forward(widen(x))


def lower_norm(norm: nn.Module, channels: Int[Tensor, " d"]) -> nn.Module:
    """Return the export form of a norm over channels in this order."""
    if isinstance(norm, ScaleNorm):
        return LoweredScaleNorm(norm)
    layer_norm = cast("nn.LayerNorm", norm)
    ordered = LoweredLayerNorm(layer_norm.normalized_shape, eps=layer_norm.eps)
    ordered.load_state_dict({name: tensor[channels] for name, tensor in layer_norm.state_dict().items()})
    return ordered


class InputProjection(nn.Module):
    """``silu(x W + b)``, as the values, the gates and what queries and keys are made of.

    The values have a product of their own: a Split copies what it splits, and they are as wide as the gates.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d w"],
        bias: Float[Tensor, " w"] | None,
        widths: Sequence[int],
        precision: Precision = FP32,
    ) -> None:
        """Take the weights of one product.

        Args:
            weight: To be multiplied from the right.
            bias: None: there is none.
            widths: Of what the columns are: values, gates, and all that queries and keys are made of.
            precision: What the parts are computed in.
        """
        super().__init__()
        self.precision, self.widths = precision, list(widths)
        value_width, *rest = self.widths
        value_weight, weight = weight.split([value_width, sum(rest)], dim=1)
        value_bias, bias = (None, None) if bias is None else bias.split([value_width, sum(rest)])
        self.value_weight = nn.Buffer(precision.narrow(value_weight, "value").contiguous())
        self.value_bias = None if value_bias is None else nn.Buffer(precision.narrow(value_bias, "value").clone())
        self.weight = nn.Buffer(precision.narrow(weight, "gate").contiguous())
        self.bias = None if bias is None else nn.Buffer(precision.narrow(bias, "gate").clone())

    @classmethod
    def fold(cls, layer: FlashLayer | GauLayer, columns: Int[Tensor, " q"], precision: Precision = FP32) -> Self:
        """Fold the weights of a layer of flash-pytorch, its query/key columns in this order."""
        weight, bias = fold_input_projection(layer.norm, layer.to_hidden, layer.to_qk, columns)
        hidden_dim = layer.config.hidden_dim
        return cls(weight, bias, [hidden_dim, hidden_dim, len(columns)], precision)

    def forward(self, x: Float[Tensor, "*b d"]) -> tuple[Tensor, ...]:
        """Return the parts: values, gates, and what queries and keys are made of."""
        return self._split(self._project_apart(x))

    def project_few(self, x: Float[Tensor, "b *n d"]) -> tuple[Tensor, ...]:
        """Return the same, ``(b, n, w)``, by one product where the precisions allow it.

        For few tokens it is the number of operations that counts. Runtimes join the weights when they load the graph. A
        single token has no axis of its own in x.
        """
        is_mixed = self.value_weight.dtype != self.weight.dtype
        parts = self._project_apart(x) if is_mixed else self._project_all(x)
        return self._split([part.unsqueeze(1) if part.ndim == 2 else part for part in parts])

    def _project_apart(self, x: Tensor) -> list[Tensor]:
        """Return the values, and the others as one."""
        value = self._project(x, self.value_weight, self.value_bias, "value")
        return [apply_silu(value), apply_silu(self._project(x, self.weight, self.bias, "gate"))]

    def _project(self, x: Tensor, weight: Tensor, bias: Tensor | None, name: str) -> Tensor:
        """Return the product and sum, both of which are to fit."""
        product = self.precision.multiply(x, weight, name)
        return product if bias is None else self.precision.narrow(product + bias, name)

    def _project_all(self, x: Tensor) -> list[Tensor]:
        """Return all as one."""
        weight = torch.cat((self.value_weight, self.weight), dim=1)
        bias = None if self.value_bias is None or self.bias is None else torch.cat((self.value_bias, self.bias))
        product = self.precision.multiply(x, weight, "value")
        return [apply_silu(product if bias is None else product + bias)]

    def _split(self, parts: list[Tensor]) -> tuple[Tensor, ...]:
        """Return all of two products, or of one."""
        *value, rest = parts
        return (*value, *rest.split(self.widths[1:] if value else self.widths, dim=-1))


class TokenEmbedding(nn.Module):
    """Token embedding plus scaled sinusoid, the angles computed in fp32."""

    def __init__(
        self,
        token_emb: nn.Embedding,
        sinusoid: ScaledSinusoid,
        channels: Int[Tensor, " d"],
        precision: Precision = FP32,
        *,
        swaps_halves: bool = False,
    ) -> None:
        """Take the tables with their channels in this order; the sinusoid has those of sines and cosines in halves."""
        super().__init__()
        self.precision = precision
        self.table = nn.Buffer(precision.narrow(token_emb.weight[:, channels], TABLE))
        self.inv_freq = nn.Buffer(sinusoid.inv_freq.clone())
        self.scale = nn.Buffer(sinusoid.scale.clone())
        self.swaps_halves = swaps_halves

    def forward(self, input_ids: Int[Tensor, "*b"], positions: Float[Tensor, "*b 1"]) -> Float[Tensor, "*b d"]:
        """Embed each token at its position."""
        angles = positions * self.inv_freq
        halves = (angles.cos(), angles.sin()) if self.swaps_halves else (angles.sin(), angles.cos())
        tokens = widen(F.embedding(input_ids, self.table))
        return self.precision.narrow(tokens + torch.cat(halves, dim=-1) * self.scale, RESIDUAL)


class Head(nn.Module):
    """Final LayerNorm and projection to the vocabulary."""

    def __init__(self, to_logits: nn.Sequential, channels: Int[Tensor, " d"], precision: Precision = FP32) -> None:
        """Store the projection transposed, as one product wants it, for channels in this order."""
        super().__init__()
        self.precision = precision
        projection = cast("nn.Linear", to_logits[1])
        self.norm = lower_norm(to_logits[0], channels)
        self.weight = nn.Buffer(precision.narrow(projection.weight.mT[channels], LOGITS).contiguous())
        self.bias = nn.Buffer(projection.bias.clone())

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n vocab"]:
        """Return the logits, in fp32."""
        normed = self.precision.narrow(self.norm(x), "normed")
        return widen(self.precision.multiply(normed, self.weight, LOGITS)) + self.bias


def apply_silu(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return ``x * sigmoid(x)``, spelled as the two nodes that runtimes fuse."""
    return x * torch.sigmoid(x)


def get_attention_factor(attention_fn: str) -> float:
    """Return the factor that :func:`apply_attention_fn` leaves out."""
    return 1.0 if attention_fn == RELU2 else LAPLACE_FACTOR


def get_score_line(attention_fn: str) -> tuple[float, float]:
    """Return slope and shift: :func:`apply_attention_fn` takes ``scores * slope - shift``."""
    if attention_fn == RELU2:
        return 1.0, 0.0
    slope = 1 / (LAPLACE_STDS[attention_fn] * math.sqrt(2))
    return slope, LAPLACE_MEAN * slope


def apply_attention_fn(
    scores: Float[Tensor, ...], attention_fn: str, precision: Precision = FP32
) -> Float[Tensor, ...]:
    """Apply relu², or Laplace without its factor to scores that already carry its slope and shift.

    Laplace is summed in fp32: most keys weigh little, and next to -1 an error function in half precision has steps of
    some per cent of that.
    """
    if attention_fn == RELU2:
        positive = torch.relu(scores)
        if precision.get_dtype(WEIGHTS) == torch.float32:
            positive = widen(positive)
        return precision.narrow(positive * positive, WEIGHTS)
    return precision.narrow(torch.erf(widen(scores)) + 1, WEIGHTS)
