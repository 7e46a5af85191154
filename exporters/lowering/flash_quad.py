"""The export form of family ``flash_quad``: JunnYu's FLASH-Quad.

The attention is over the whole sequence, so nothing is padded. Positions are at most a few hundred, so that their
embedding and the turns of queries and keys are constants of which a graph takes as many rows as there are tokens; no
angle is computed. The bias of scores is looked up by distance. What scores are divided by is in the queries.

Axes: b batch, n sequence, m all positions, d model, e hidden, s query/key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.base import LoweredModel, Lowering
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import (
    LOGITS,
    RESIDUAL,
    TABLE,
    WEIGHTS,
    InputProjection,
    LoweredLayerNorm,
    apply_attention_fn,
    apply_silu,
)
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import gather
from flash_export.layers.activation import RELU2
from flash_export.models.flash_quad import RmsScaleNorm, compute_angles, compute_sinusoid

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.flash_quad import FlashQuadConfig, FlashQuadLayer, FlashQuadModel

    Turns = tuple[Float[Tensor, "1 n s"], Float[Tensor, "1 n s"]]  # cosines and sines


class LoweredNorm(nn.Module):
    """The root mean square's norm without its gain, ``x / sqrt(mean(x²) + eps)``, in fp32.

    Squares leave the range of fp16 for values above 256.
    """

    def __init__(self, norm: RmsScaleNorm) -> None:
        """Take the epsilon of the reference norm."""
        super().__init__()
        self.eps = norm.eps

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Normalise the last axis."""
        x = widen(x)
        return x / ((x * x).mean(dim=-1, keepdim=True) + self.eps).sqrt()


def lower_norm(norm: nn.Module) -> tuple[nn.Module, float]:
    """Return the export form of a norm, and the gain that is left to what reads it."""
    if isinstance(norm, RmsScaleNorm):
        return LoweredNorm(norm), float(norm.g)
    layer_norm = cast("nn.LayerNorm", norm)
    lowered = LoweredLayerNorm(layer_norm.normalized_shape, eps=layer_norm.eps)
    lowered.load_state_dict(layer_norm.state_dict())
    return lowered, 1.0


class Head(nn.Module):
    """Queries or keys: the shared projection times factors plus offsets, turned by position.

    Turning ``[first | second]`` is ``[first | second] * cos + [-second | first] * sin``. The projection gives the
    halves in both orders; the sign is in the factors and offsets of the second.
    """

    def __init__(
        self, gamma: Float[Tensor, " s"], beta: Float[Tensor, " s"], precision: Precision, factor: float = 1.0
    ) -> None:
        """Take factors and offsets, times a factor."""
        super().__init__()
        self.precision, half = precision, len(gamma) // 2
        signs = torch.ones_like(gamma)
        signs[:half] = -1
        gammas, betas = ((x * factor, x.roll(half) * signs * factor) for x in (gamma, beta))
        self.gamma, self.crossed_gamma = (nn.Buffer(self._store(x)) for x in gammas)
        self.beta, self.crossed_beta = (nn.Buffer(self._store(x)) for x in betas)

    def _store(self, x: Float[Tensor, " s"]) -> Float[Tensor, "1 1 s"]:
        """Return a weight with as many axes as what it meets: TensorRT adds layers for every axis that is missing."""
        return self.precision.narrow(x, "heads").reshape(1, 1, -1).clone()

    def forward(
        self, halves: Float[Tensor, "b n s"], crossed: Float[Tensor, "b n s"], turns: Turns
    ) -> Float[Tensor, "b n s"]:
        """Return the head of the shared projection, whose halves are in order and the other way round."""
        combine, (cos, sin) = self.precision.combine, turns
        halves = combine(torch.mul, halves, self.gamma, "heads")
        halves = combine(torch.add, halves, self.beta, "heads")
        crossed = combine(torch.mul, crossed, self.crossed_gamma, "heads")
        crossed = combine(torch.add, crossed, self.crossed_beta, "heads")
        turned = combine(torch.mul, halves, cos, "heads")
        return combine(torch.add, turned, combine(torch.mul, crossed, sin, "heads"), "heads")


class LoweredFlashQuadLayer(nn.Module):
    """One gated attention unit in export form."""

    def __init__(self, layer: FlashQuadLayer, precision: Precision = FP32) -> None:
        """Order the columns of the projection as values, gates, and halves of queries and keys in both orders."""
        super().__init__()
        config, self.precision = layer.config, precision
        self.norm, self.norm_gain = lower_norm(layer.norm)
        self.query_divisor = float(config.max_positions)
        half, rows = config.qk_dim // 2, torch.arange(2 * config.hidden_dim + config.qk_dim)
        gate, value, z = rows.split([config.hidden_dim, config.hidden_dim, config.qk_dim])
        rows = torch.cat((value, gate, z, z.roll(half)))
        widths = [config.hidden_dim, config.hidden_dim, config.qk_dim, config.qk_dim]
        weight = (layer.uv.weight[rows] * self.norm_gain).mT
        self.projection = InputProjection(weight, layer.uv.bias[rows], widths, precision)
        (query_gamma, key_gamma), (query_beta, key_beta) = layer.gamma, layer.beta
        self.query = Head(query_gamma, query_beta, precision, 1 / self.query_divisor)
        self.key = Head(key_gamma, key_beta, precision)
        self.bias_by_distance = nn.Buffer(precision.narrow(layer.w, "scores").clone())
        self.out_weight = nn.Buffer(precision.narrow(layer.o.weight.mT, "update").contiguous())
        self.out_bias = nn.Buffer(layer.o.bias.clone())

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        turns: Turns,
        distances: Int[Tensor, "1 n n"],
        valid: Float[Tensor, "b n 1"] | None,
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens; ``valid`` zeroes the values of masked ones, None where there are none."""
        precision = self.precision
        normed = mark(precision.narrow(self.norm(x), "normed"), "normed", self.norm_gain)
        value, gate, *z = self.projection(normed)
        value, gate = mark(value, "value"), mark(gate, "gate")
        q = mark(self.query(*z, turns), "q", self.query_divisor)
        k = mark(self.key(*z, turns), "k")
        if valid is not None:
            value = precision.combine(torch.mul, value, valid, "value")
        bias = gather(self.bias_by_distance, distances)
        scores = precision.combine(torch.add, precision.multiply(q, k.mT, "scores"), bias, "scores")
        weights = mark(apply_attention_fn(scores, RELU2, precision), "weights")
        mixed = mark(precision.multiply(weights, value, "mixed"), "mixed")
        gated = precision.combine(torch.mul, gate, mixed, "gated")
        update = widen(precision.multiply(gated, self.out_weight, "update")) + self.out_bias
        return mark(precision.narrow(widen(x) + update, RESIDUAL), "out")


class Embedding(nn.Module):
    """The embedding of tokens of the first type and of their positions, and the norm of both."""

    def __init__(self, model: FlashQuadModel, precision: Precision) -> None:
        """Add the token type to every row of the table of tokens, and scale that of positions."""
        super().__init__()
        config, self.precision = model.config, precision
        table = model.token_emb.weight + model.token_type_emb.weight[0]
        self.table = nn.Buffer(precision.narrow(table, TABLE).clone())
        self.positions = nn.Buffer(compute_sinusoid(config.max_positions, config.dim) * model.position_scale)
        self.norm, gain = lower_norm(model.embedding_norm)
        self.gain = None if gain == 1 else nn.Buffer(torch.tensor(gain))

    def forward(self, input_ids: Int[Tensor, "b n"], positions: Int[Tensor, "1 n"]) -> Float[Tensor, "b n d"]:
        """Embed each token at its position, in fp32 before the norm."""
        tokens = widen(F.embedding(input_ids, self.table))
        normed = self.norm(tokens + F.embedding(positions, self.positions))
        return self.precision.narrow(normed if self.gain is None else normed * self.gain, RESIDUAL)


class Decoder(nn.Module):
    """Projection, norm, and the token embedding as a projection to the vocabulary."""

    def __init__(self, model: FlashQuadModel, precision: Precision) -> None:
        """Store the projections transposed, as one product wants them; the gain of the norm is in the second."""
        super().__init__()
        self.precision = precision
        self.norm, gain = lower_norm(model.transform_norm)
        self.transform_weight = nn.Buffer(precision.narrow(model.transform.weight.mT, "transform").contiguous())
        self.transform_bias = nn.Buffer(precision.narrow(model.transform.bias, "transform").clone())
        self.weight = nn.Buffer(precision.narrow(model.token_emb.weight.mT * gain, LOGITS).contiguous())
        self.bias = nn.Buffer(model.logit_bias.clone())

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n vocab"]:
        """Return the logits, in fp32."""
        precision = self.precision
        projected = precision.multiply(x, self.transform_weight, "transform")
        hidden = apply_silu(precision.combine(torch.add, projected, self.transform_bias, "transform"))
        normed = precision.narrow(self.norm(mark(hidden, "transform")), "normed")
        return widen(precision.multiply(normed, self.weight, LOGITS)) + self.bias


class LoweredFlashQuad(LoweredModel):
    """A FLASH-Quad model of JunnYu's in export form: ``forward(input_ids[, attention_mask]) -> logits``."""

    def __init__(self, model: FlashQuadModel, precision: Precision = FP32) -> None:
        """Fold the weights of the reference model."""
        super().__init__()
        self.config: FlashQuadConfig = model.config
        self.precision, self.orders = precision, {}  # all are the reference's
        self.embedding = Embedding(model, precision)
        angles = compute_angles(model.config.max_positions, model.config.qk_dim).repeat(1, 2)  # (m, s)
        self.cos, self.sin = (nn.Buffer(precision.narrow(x, "turns")) for x in (angles.cos(), angles.sin()))
        self.layers = nn.ModuleList(
            LoweredFlashQuadLayer(cast("FlashQuadLayer", layer), precision.enter_block(index))
            for index, layer in enumerate(model.layers)
        )
        self.head = Decoder(model, precision)

    def forward(
        self, input_ids: Int[Tensor, "b seq"], attention_mask: Int[Tensor, "b seq"] | None = None
    ) -> Float[Tensor, "b seq vocab"]:
        """Return the logits of every position; those of masked ones have no meaning."""
        positions = torch.arange(input_ids.shape[1], dtype=torch.int32).unsqueeze(0)  # (1, n)
        # Of each query and key, (1, n, n), counted from the largest there can be.
        distances = positions.unsqueeze(1) - positions.unsqueeze(2) + (self.config.max_positions - 1)
        valid = None
        if attention_mask is not None:
            valid = self.precision.narrow(attention_mask.bool().float().unsqueeze(-1), "valid")
        turns = F.embedding(positions, self.cos), F.embedding(positions, self.sin)
        x = mark(self.embedding(input_ids, positions), "embedding")
        for layer in self.layers:
            x = layer(x, turns, distances, valid)
        return self.head(x)


# What a norm bounds, or a table. Weights are bounded one by one, and their sums grow with the number of keys.
FLASH_QUAD = Lowering(
    LoweredFlashQuad,
    growing=(WEIGHTS, "mixed", "gated", "update", RESIDUAL),
    growing_around=lambda _: (RESIDUAL, "transform", LOGITS),
    bounded=frozenset({TABLE, "turns", "valid", "normed", "value", "gate", "heads", "scores", WEIGHTS, LOGITS}),
)
