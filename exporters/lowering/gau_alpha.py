"""The export form of family ``gau_alpha``: gated attention units with a softmax.

The attention is over the whole sequence, so nothing is padded. The embedding, its token type and the norm after both
are one table. What scores are multiplied by, ``log(length) / log(512) / sqrt(s)``, is in the turns of the queries.

Axes: b batch, n sequence, d model, e hidden, s query/key.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.base import LoweredModel, Lowering
from flash_export.exporters.lowering.fold import HIDDEN_SCORE, order_rotary_columns
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import LOGITS, RESIDUAL, TABLE, WEIGHTS, InputProjection
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import reshape
from flash_export.models.gau_alpha import NORM_EPS, TRAINED_LEN, compute_frequencies, normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.gau_alpha import GauAlphaConfig, GauAlphaLayer, GauAlphaModel

    Turns = tuple[Float[Tensor, "#b n s"], Float[Tensor, "#b n s"]]  # cosines and sines


def lower_norm(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Divide by the root mean square, in fp32: squares leave the range of fp16 for values above 256."""
    return x / ((x * x).mean(dim=-1, keepdim=True) + NORM_EPS).sqrt()


class LoweredGauAlphaLayer(nn.Module):
    """One gated attention unit in export form."""

    def __init__(self, layer: GauAlphaLayer, precision: Precision = FP32) -> None:
        """Order the columns of the projection as values, gates, first and crossed channels of queries and keys."""
        super().__init__()
        config, self.precision = layer.config, precision
        gate, value, z = layer.i_dense.weight.split([config.hidden_dim, config.hidden_dim, config.qk_dim])
        columns, signs = order_rotary_columns(config.qk_dim, config.qk_dim)
        widths = [config.hidden_dim, config.hidden_dim, config.qk_dim, config.qk_dim]
        self.projection = InputProjection(torch.cat((value, gate, z[columns])).mT, None, widths, precision)
        self.query, self.key = (RotaryHead(gamma, columns, signs, precision) for gamma in layer.gamma)
        self.out_weight = nn.Buffer(precision.narrow(layer.o_dense.weight.mT, "update").contiguous())

    def forward(
        self, x: Float[Tensor, "b n d"], query_turns: Turns, key_turns: Turns, hidden: Float[Tensor, "b 1 n"] | None
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens; ``hidden`` is added to scores, None where all keys are visible.

        Scores are summed and the softmax is taken in fp32: weights go by differences of scores, and half precision has
        steps of some per cent of a weight where scores are large.
        """
        precision = self.precision
        value, gate, *z = self.projection(x)
        value, gate = mark(value, "value"), mark(gate, "gate")
        q, k = mark(self.query(z, query_turns), "q"), mark(self.key(z, key_turns), "k")
        scores = widen(precision.multiply(q, k.mT, "scores"))
        if hidden is not None:
            scores = scores + hidden
        weights = mark(precision.narrow(scores.softmax(dim=-1), WEIGHTS), "weights")
        mixed = mark(precision.multiply(weights, value, "mixed"), "mixed")
        gated = precision.combine(torch.mul, gate, mixed, "gated")
        update = widen(precision.multiply(gated, self.out_weight, "update"))
        normed = lower_norm(mark(widen(x) + update, "sum"))
        return mark(precision.narrow(normed, RESIDUAL), "out")


class RotaryHead(nn.Module):
    """Queries or keys: the shared projection times factors of its own, turned by position.

    Turning is ``first * cos + crossed * sin``, see :func:`order_rotary_columns`. Factors are multiplied by cosine and
    sine, which without a mask are those of one row, and not by the projection.
    """

    def __init__(
        self, gamma: Float[Tensor, " s"], columns: Int[Tensor, " q"], signs: Float[Tensor, " q"], precision: Precision
    ) -> None:
        """Take the factors in the order of the projection's columns."""
        super().__init__()
        self.precision = precision
        first, crossed = (gamma[columns] * signs).split(len(gamma))
        self.gamma, self.crossed_gamma = nn.Buffer(first.clone()), nn.Buffer(crossed.clone())

    def forward(self, z: Sequence[Float[Tensor, "b n s"]], turns: Turns) -> Float[Tensor, "b n s"]:
        """Return the head of the first and the crossed channels."""
        precision, (first, crossed), (cos, sin) = self.precision, z, turns
        first_factor = precision.narrow(cos * self.gamma, "heads")
        crossed_factor = precision.narrow(sin * self.crossed_gamma, "heads")
        return precision.combine(
            torch.add,
            precision.combine(torch.mul, first, first_factor, "heads"),
            precision.combine(torch.mul, crossed, crossed_factor, "heads"),
            "heads",
        )


class TokenTable(nn.Module):
    """The embedding of tokens of the first type, normalised beforehand."""

    def __init__(self, model: GauAlphaModel, precision: Precision) -> None:
        """Add the token type to every row of the table, and normalise it."""
        super().__init__()
        table = normalise(model.token_emb.weight + model.token_type_emb.weight[0])
        self.table = nn.Buffer(precision.narrow(table, TABLE).clone())
        self.precision = precision

    def forward(self, input_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Embed each token."""
        return self.precision.narrow(F.embedding(input_ids, self.table), RESIDUAL)


class Decoder(nn.Module):
    """The token embedding as a projection to the vocabulary."""

    def __init__(self, model: GauAlphaModel, precision: Precision) -> None:
        """Store it transposed, as one product wants it."""
        super().__init__()
        self.precision = precision
        self.weight = nn.Buffer(precision.narrow(model.token_emb.weight.mT, LOGITS).contiguous())

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n vocab"]:
        """Return the logits, in fp32."""
        return widen(self.precision.multiply(x, self.weight, LOGITS))


class LoweredGauAlpha(LoweredModel):
    """A GAU-alpha model in export form: ``forward(input_ids[, attention_mask]) -> logits``."""

    def __init__(self, model: GauAlphaModel, precision: Precision = FP32) -> None:
        """Fold the weights of the reference model."""
        super().__init__()
        self.config: GauAlphaConfig = model.config
        self.orders = {}  # the reference turns pairs into the same order
        self.embedding = TokenTable(model, precision)
        self.freqs = nn.Buffer(compute_frequencies(model.config.qk_dim).repeat(2))  # (s,)
        self.layers = nn.ModuleList(
            LoweredGauAlphaLayer(cast("GauAlphaLayer", layer), precision.enter_block(index))
            for index, layer in enumerate(model.layers)
        )
        self.head = Decoder(model, precision)

    def forward(
        self, input_ids: Int[Tensor, "b seq"], attention_mask: Int[Tensor, "b seq"] | None = None
    ) -> Float[Tensor, "b seq vocab"]:
        """Return the logits of every position."""
        positions = torch.arange(input_ids.shape[1], dtype=torch.float32)
        scale, hidden = self._scale_scores(attention_mask, positions)
        angles = reshape(positions, [1, -1, 1]) * self.freqs
        key_turns = angles.cos(), angles.sin()  # (1, n, s)
        query_turns = key_turns[0] * scale, key_turns[1] * scale
        x = mark(self.embedding(input_ids), "embedding")
        for layer in self.layers:
            x = layer(x, query_turns, key_turns, hidden)
        return self.head(x)

    def _scale_scores(
        self, attention_mask: Tensor | None, positions: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "#b 1 1"], Float[Tensor, "b 1 n"] | None]:
        """Return what scores are multiplied by, and what is added to hide masked keys.

        A row of padding alone sees all of it, so that it stays finite: an attention over nothing is none.
        """
        dialect = self.config.dialect
        unit = 1 / (math.log(TRAINED_LEN) * math.sqrt(self.config.qk_dim))
        if attention_mask is None:
            length = torch.zeros(1, 1, 1) + positions.shape[0]
            return length.clamp(min=dialect.min_len).log() * unit, None
        valid = attention_mask.bool().float().unsqueeze(1)  # (b, 1, n)
        count = valid.sum(dim=-1, keepdim=True)  # (b, 1, 1)
        log_length = count.clamp(min=dialect.min_len).log()
        is_visible = torch.maximum(valid, 1 - count) > 0
        if dialect.is_exact:
            return log_length * unit, torch.where(is_visible, 0.0, HIDDEN_SCORE)
        return log_length * unit, torch.where(
            is_visible, 0.0, log_length * (dialect.hidden_score / math.log(TRAINED_LEN))
        )


# What a norm or a softmax bounds. Queries and scores are bounded too, but for the logarithm of the length.
GAU_ALPHA = Lowering(
    LoweredGauAlpha,
    growing=("heads", "scores", "weights", "mixed", "gated", "update", RESIDUAL),
    growing_around=lambda _: (RESIDUAL, LOGITS),
    bounded=frozenset(
        {TABLE, RESIDUAL, "value", "gate", "heads", "scores", WEIGHTS, "mixed", "gated", "update", LOGITS}
    ),
)
