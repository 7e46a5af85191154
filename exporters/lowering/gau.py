"""The export form of family ``gau`` (FLASH-Quad).

The attention is over the whole sequence, so nothing is padded. The relative bias depends on the distance alone and
saturates at ``MAX_DISTANCE``: it is looked up in a short table, which also hides the future of causal models.

Axes: b batch, n sequence, d model, e hidden, s query/key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from flash_export.exporters.lowering.base import LoweredModel, Lowering
from flash_export.exporters.lowering.fold import HIDDEN_SCORE, compute_norm_gain, fold_heads, get_linear
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import (
    RESIDUAL,
    Head,
    InputProjection,
    TokenEmbedding,
    apply_attention_fn,
    get_attention_factor,
    get_score_line,
    lower_norm,
)
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import gather
from flash_export.layers.activation import RELU2
from flash_export.layers.position import MAX_DISTANCE, compute_t5_buckets

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.gau import GauConfig, GauLayer, GauModel


# relu² of scores that are not divided yet leaves fp16 at 256, at 4,096 with this factor, a power of two.
HALF_SCORE_FACTOR = 1 / 16


def bake_bias_by_distance(layer: GauLayer, factor: float, precision: Precision) -> Float[Tensor, " t"]:
    """Return the bias of the offsets ``key - query`` from ``-MAX_DISTANCE`` to ``MAX_DISTANCE``, times a factor."""
    offsets = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
    bias = layer.rel_pos_bias
    table = bias.relative_attention_bias.weight[compute_t5_buckets(offsets, bias.causal), 0] * bias.scale
    table = precision.narrow(table if factor == 1 else table * factor, "scores")
    return table.masked_fill(offsets > 0, HIDDEN_SCORE) if bias.causal else table


class LoweredGauLayer(nn.Module):
    """One gated attention unit in export form."""

    def __init__(self, layer: GauLayer, precision: Precision = FP32) -> None:
        """Fold the weights of the reference layer."""
        super().__init__()
        config, self.precision = layer.config, precision
        columns = torch.arange(config.qk_dim)
        self.score_factor = HALF_SCORE_FACTOR if precision.is_half and config.attention_fn == RELU2 else 1.0
        gamma, beta = fold_heads(layer.offsetscale, columns, [self.score_factor, 1.0])
        self.norm, self.norm_gain = lower_norm(layer.norm, torch.arange(config.dim)), compute_norm_gain(layer.norm)
        self.projection = InputProjection.fold(layer, columns, precision)
        self.gamma, self.beta = (nn.Buffer(precision.narrow(x, "heads")) for x in (gamma, beta))
        self.bias_by_distance = nn.Buffer(bake_bias_by_distance(layer, self.score_factor, precision))
        to_out = get_linear(layer.to_out)
        self.factor = get_attention_factor(config.attention_fn)
        self.out_weight = nn.Buffer(precision.narrow(to_out.weight.mT * self.factor, "update").contiguous())
        self.out_bias = nn.Buffer(to_out.bias.clone())
        self.attention_fn = config.attention_fn

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        distance_index: Int[Tensor, "n n"],
        value_weight: Float[Tensor, "#b #n 1"] | None,
        inverse_length: Float[Tensor, "#b 1 1"],
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens; ``value_weight`` zeroes masked tokens and, with relu², carries the divisor squared."""
        precision = self.precision
        value, gate, z = self.projection(mark(precision.narrow(self.norm(x), "normed"), "normed", self.norm_gain))
        value, gate = mark(value, "value"), mark(gate, "gate")
        z = widen(z) if self.gamma.dtype == torch.float32 else z
        q, k = (precision.narrow(z * self.gamma[head] + self.beta[head], "heads") for head in range(2))
        q, k = mark(q, "q", 1 / self.score_factor), mark(k, "k")
        if value_weight is not None:
            value = precision.combine(torch.mul, value, value_weight, "value")
        scores = precision.multiply(q, k.mT, "scores") + gather(self.bias_by_distance, distance_index)
        if self.attention_fn != RELU2:
            slope, shift = get_score_line(self.attention_fn)
            scores = widen(scores) * (inverse_length * slope) - shift
        # The divisor of relu²'s scores is in the values, see LoweredGau.
        power, scale = (-2, self.score_factor**-2) if self.attention_fn == RELU2 else (0, self.factor)
        weights = apply_attention_fn(scores, self.attention_fn, precision)
        attended = self.attend(mark(weights, "weights", scale, length_power=power), value, inverse_length)
        gated = precision.combine(torch.mul, gate, mark(attended, "mixed", self.factor), "gated")
        update = widen(precision.multiply(gated, self.out_weight, "update")) + self.out_bias
        return mark(precision.narrow(widen(x) + update, RESIDUAL), "out")

    def attend(
        self, weights: Float[Tensor, "b n n"], value: Float[Tensor, "b n e"], inverse_length: Float[Tensor, "#b 1 1"]
    ) -> Float[Tensor, "b n e"]:
        """Weigh the values; in half precision relu²'s divisor, too small for it when squared, comes after."""
        precision = self.precision
        if self.attention_fn != RELU2 or not precision.is_half:
            return precision.multiply(weights, value, "mixed")
        attended = widen(precision.multiply(weights, value, "products"))
        scale = inverse_length * inverse_length * self.score_factor**-2
        return precision.narrow(attended * scale, "mixed")


class LoweredGau(LoweredModel):
    """A FLASH-Quad model in export form: ``forward(input_ids[, attention_mask]) -> logits``."""

    def __init__(self, model: GauModel, precision: Precision = FP32) -> None:
        """Fold the weights of the reference model."""
        super().__init__()
        self.config: GauConfig = model.config
        self.precision = precision
        channels = torch.arange(model.config.dim)
        self.orders = {}  # all are the reference's
        self.embedding = TokenEmbedding(model.token_emb, model.abs_pos_emb, channels, precision)
        self.layers = nn.ModuleList(
            LoweredGauLayer(cast("GauLayer", layer), precision.enter_block(index))
            for index, layer in enumerate(model.layers)
        )
        self.head = Head(model.to_logits, channels, precision)

    def forward(
        self, input_ids: Int[Tensor, "b seq"], attention_mask: Int[Tensor, "b seq"] | None = None
    ) -> Float[Tensor, "b seq vocab"]:
        """Return the logits of every position."""
        seq_len = input_ids.shape[1]
        positions = torch.arange(seq_len, dtype=torch.float32)
        column, numbers = positions.unsqueeze(-1), positions.int()
        distance_index = (numbers - numbers.unsqueeze(-1)).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE
        value_weight, inverse_length = self._weigh_tokens(attention_mask, positions)
        x = mark(self.embedding(input_ids, column), "embedding")
        for layer in self.layers:
            x = layer(x, distance_index, value_weight, inverse_length)
        return self.head(x)

    def _weigh_tokens(self, attention_mask: Tensor | None, positions: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the weight of each value, and the reciprocal of the scores' divisor."""
        length = torch.zeros(1, 1, 1) + positions.shape[0]
        valid = None
        if attention_mask is not None:
            valid = attention_mask.bool().float().unsqueeze(-1)
            if self.config.mask_divisor == "valid":
                length = valid.sum(dim=1, keepdim=True).clamp(min=1)
        inverse_length = 1 / length
        if self.config.attention_fn != RELU2 or self.precision.is_half:
            return None if valid is None else self.precision.narrow(valid, "valid"), inverse_length
        # relu²(scores / length) = relu²(scores) / length²: two numbers per token instead of one per score.
        weight = inverse_length * inverse_length
        return (weight if valid is None else valid * weight), inverse_length


GAU = Lowering(
    LoweredGau,
    growing=("weights", "products", "mixed", "gated", "update", "residual"),
    growing_around=lambda _: ("residual", "logits"),
    bounded=frozenset({"table", "turns", "valid", "normed", "value", "gate", "heads", "scores", "weights", "logits"}),
)
