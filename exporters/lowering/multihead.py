"""The export form of the multi-head models: everything but their attention.

Queries, keys and values are three products; the scale of the scores is in the weights of the queries, norm gains are in
those that follow. Where an attention works on chunks, tokens are padded to whole ones once, at the embedding, and an
attention cuts by a Reshape that computes no shape.

Axes: b batch, n token, p token of all chunks, g chunk, h head, c position in a chunk, d model, s head width, f
feed-forward width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.base import LoweredModel, Lowering
from flash_export.exporters.lowering.chunks import count_tokens, cut_end, cut_into_chunks
from flash_export.exporters.lowering.fold import compute_norm_gain, fold_norm_gain
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import (
    LOGITS,
    RESIDUAL,
    TABLE,
    WEIGHTS,
    Head,
    TokenEmbedding,
    apply_silu,
    lower_norm,
)
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import gather, gelu, reshape
from flash_export.models.multihead import GEGLU, HIDDEN_SCORE, MLP

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.chunks import Chunks
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.position import RotaryEmbedding
    from flash_export.models.multihead import FeedForward, MultiheadConfig, MultiheadLayer, MultiheadModel


class Layout(NamedTuple):
    """What an attention knows of the tokens.

    Attributes:
        positions: The numbers of all tokens, those of padding to whole chunks too, ``(p,)``.
        valid: 1 for the tokens of each row, 0 for padding, ``(b or 1, p)``; None where padding cannot be seen.
        turns: Cosines and sines that queries and keys are turned by, ``(p, s)``; None: they are not.
        chunks: The numbers of all whole chunks, ``(g,)``.
        num_chunks: How many there are.
    """

    positions: Float[Tensor, " p"]
    valid: Float[Tensor, "#b p"] | None
    turns: tuple[Tensor, Tensor] | None
    chunks: Float[Tensor, " g"]
    num_chunks: int

    def hide(self) -> Float[Tensor, "#b p"] | None:
        """Return what is added to the scores of each key; None: nothing."""
        return None if self.valid is None else (1 - widen(self.valid)) * HIDDEN_SCORE


class LoweredAttention(nn.Module):
    """Base of the attentions.

    ``forward`` takes queries, keys and values ``(b, p, h, s)`` and the layout, and returns ``(b, p, d)``.

    Attributes:
        query_scale: What queries are multiplied by beforehand, so that their weights carry it.
        key_scale: The same of the keys.
    """

    query_scale: float
    key_scale: float = 1.0

    def __init__(self, config: MultiheadConfig, precision: Precision) -> None:
        """Create the attention of a model with this config."""
        super().__init__()
        self.config, self.precision = config, precision
        self.query_scale = config.head_dim**-0.5

    def score(
        self, q: Float[Tensor, "*b i s"], k: Float[Tensor, "*b j s"], *hidden: Float[Tensor, "*#b #i j"] | None
    ) -> Float[Tensor, "*b i j"]:
        """Return the scores and what is added to them, in fp32.

        Weights go by differences of scores, and half precision has steps of some per cent of a weight where scores are
        large.
        """
        scores = widen(self.precision.multiply(q, k.mT, "scores"))
        for one in hidden:
            scores = scores if one is None else scores + one
        return scores

    def weigh(
        self, q: Float[Tensor, "*b i s"], k: Float[Tensor, "*b j s"], *hidden: Float[Tensor, "*#b #i j"] | None
    ) -> Float[Tensor, "*b i j"]:
        """Return the softmax of the scores and of what is added to them."""
        return self.precision.narrow(self.score(q, k, *hidden).softmax(dim=-1), WEIGHTS)

    def cut(self, x: Float[Tensor, "b p h s"]) -> Float[Tensor, "b g h c s"]:
        """Return the heads of each chunk."""
        chunks = reshape(x, [0, -1, self.config.window, self.config.num_heads, x.shape[-1]])
        return chunks.transpose(2, 3)

    def join(self, x: Float[Tensor, "b g h c s"]) -> Float[Tensor, "b p d"]:
        """Return the tokens of all chunks, with the heads side by side."""
        return reshape(x.transpose(2, 3), [0, -1, self.config.dim])


def hide_future(length: int) -> Float[Tensor, "c c"]:
    """Return a table ``(query, key)`` of what is added to the scores of a chunk, by which no later key is seen."""
    return torch.full((length, length), HIDDEN_SCORE).triu(1)


class Turner(nn.Module):
    """RoPE of whole heads: all channels times the cosine, plus those of the pair crossed over times the sine.

    To cross over is a product with a small matrix: see ``heads.py``.
    """

    def __init__(self, rotary: RotaryEmbedding, precision: Precision) -> None:
        """Take a frequency for each pair of channels."""
        super().__init__()
        self.precision = precision
        self.freqs = nn.Buffer(rotary.freqs.repeat_interleave(2))
        width = len(self.freqs)
        crossing, even = torch.zeros(width, width), torch.arange(0, width, 2)
        crossing[even + 1, even], crossing[even, even + 1] = -1, 1
        self.crossing = nn.Buffer(crossing.to(precision.get_dtype("heads")))

    def compute_turns(self, positions: Float[Tensor, "*b p"]) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, ``(*b, p, 1, s)``; the angles are fp32."""
        angles = positions.unsqueeze(-1).unsqueeze(-1) * self.freqs
        return self.precision.narrow(angles.cos(), "turns"), self.precision.narrow(angles.sin(), "turns")

    def forward(self, x: Float[Tensor, "b p h s"], turns: tuple[Tensor, Tensor]) -> Float[Tensor, "b p h s"]:
        """Turn all heads."""
        precision, (cos, sin) = self.precision, turns
        crossed = precision.combine(torch.mul, x @ self.crossing, sin, "heads")
        return precision.combine(torch.add, precision.combine(torch.mul, x, cos, "heads"), crossed, "heads")


class Product(nn.Module):
    """``x W + b``, with the gain of the norm before it and a factor in the weights."""

    def __init__(
        self, linear: nn.Linear, name: str, precision: Precision, *, norm: nn.Module | None = None, factor: float = 1.0
    ) -> None:
        """Take the weights, to be multiplied from the right, in the precision of the value that is computed."""
        super().__init__()
        self.name, self.precision = name, precision
        weight = linear.weight if norm is None else fold_norm_gain(linear.weight, norm)
        self.weight = nn.Buffer(precision.narrow(weight.mT * factor, name).contiguous())
        self.bias = nn.Buffer(precision.narrow(linear.bias * factor, name).clone())

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Return the product and sum, both of which are to fit."""
        return self.precision.narrow(self.precision.multiply(x, self.weight, self.name) + self.bias, self.name)

    def update(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Return what is added to the residual, in fp32."""
        return widen(self.precision.multiply(x, self.weight, self.name)) + widen(self.bias)


class LoweredFeedForward(nn.Module):
    """The feed-forward layer: hidden channels by one product, or by one for the values and one for the gates."""

    def __init__(self, layer: FeedForward, norm: nn.Module, precision: Precision) -> None:
        """Fold the weights of the reference layer."""
        super().__init__()
        self.ff_type, self.precision, self.gate = layer.ff_type, precision, None
        if layer.ff_type == MLP:
            self.value = Product(layer.to_hidden, "hidden", precision, norm=norm)
        else:
            self.value, self.gate = (
                Product(half, "hidden", precision, norm=norm) for half in _split_linear(layer.to_hidden)
            )
        self.out = Product(layer.to_out, "update", precision)

    def forward(self, x: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        """Return what is added to the residual, in fp32."""
        hidden = self.value(x)
        if self.gate is None:
            hidden = self.precision.narrow(gelu(hidden), "hidden")
        else:
            gate = self.gate(x)
            gate = gelu(gate) if self.ff_type == GEGLU else apply_silu(gate)
            hidden = self.precision.combine(torch.mul, hidden, gate, "gated")
        return self.out.update(mark(hidden, "hidden"))


def _split_linear(linear: nn.Linear) -> list[nn.Linear]:
    """Return the two halves of the outputs."""
    halves = []
    for weight, bias in zip(linear.weight.chunk(2), linear.bias.chunk(2), strict=True):
        half = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        half.weight, half.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        halves.append(half)
    return halves


class LoweredMultiheadLayer(nn.Module):
    """One block in export form."""

    def __init__(self, layer: MultiheadLayer, attention: LoweredAttention, turner: Turner | None) -> None:
        """Fold the weights of the reference layer."""
        super().__init__()
        config, precision = layer.config, attention.precision
        self.config, self.precision, self.attention = config, precision, attention
        channels = torch.arange(config.dim)
        self.norm, self.norm_gain = lower_norm(layer.norm, channels), compute_norm_gain(layer.norm)
        self.query = Product(layer.to_q, "heads", precision, norm=layer.norm, factor=attention.query_scale)
        self.key = Product(layer.to_k, "heads", precision, norm=layer.norm, factor=attention.key_scale)
        self.value = Product(layer.to_v, "value", precision, norm=layer.norm)
        self.turner = turner
        self.out = Product(layer.to_out, "update", precision)
        self.ff_norm, self.ff_norm_gain = lower_norm(layer.ff_norm, channels), compute_norm_gain(layer.ff_norm)
        self.feed_forward = LoweredFeedForward(layer.feed_forward, layer.ff_norm, precision)

    def forward(self, x: Float[Tensor, "b p d"], layout: Layout) -> Float[Tensor, "b p d"]:
        """Mix the tokens, and then the channels of each."""
        q, k, v = self.project(x, layout.turns)
        return self.finish(x, self.attention(q, k, v, layout))

    def project(
        self, x: Float[Tensor, "b p d"], turns: tuple[Tensor, Tensor] | None
    ) -> tuple[Float[Tensor, "b p h s"], ...]:
        """Return queries, keys and values, the first two turned."""
        precision, attention = self.precision, self.attention
        normed = mark(precision.narrow(self.norm(x), "normed"), "normed", self.norm_gain)
        v = mark(self.value(normed), "value")
        q, k, v = (
            reshape(one, [0, -1, self.config.num_heads, self.config.head_dim])
            for one in (self.query(normed), self.key(normed), v)
        )
        if self.turner is not None and turns is not None:
            q, k = self.turner(q, turns), self.turner(k, turns)
        return mark(q, "q", 1 / attention.query_scale), mark(k, "k", 1 / attention.key_scale), v

    def finish(self, x: Float[Tensor, "b p d"], mixed: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        """Add what was attended to, and then mix the channels of each token."""
        precision, mixed = self.precision, mark(mixed, "mixed")
        x = mark(precision.narrow(widen(x) + self.out.update(mixed), RESIDUAL), "attended")
        normed = mark(precision.narrow(self.ff_norm(x), "normed"), "ff_normed", self.ff_norm_gain)
        return mark(precision.narrow(widen(x) + self.feed_forward(normed), RESIDUAL), "out")


class PositionTable(nn.Module):
    """Token embedding plus a learnt one of each position."""

    def __init__(self, model: MultiheadModel, precision: Precision) -> None:
        """Take the tables; without learnt positions there is but one."""
        super().__init__()
        self.precision = precision
        self.table = nn.Buffer(precision.narrow(model.token_emb.weight, TABLE).clone())
        positions = model.pos_emb
        self.positions = None if positions is None else nn.Buffer(precision.narrow(positions.weight, TABLE).clone())

    def forward(self, input_ids: Int[Tensor, "b p"], positions: Float[Tensor, "*b p 1"]) -> Float[Tensor, "b p d"]:
        """Embed each token at its position; those of padding to whole chunks stand at the last."""
        tokens = widen(F.embedding(input_ids, self.table))
        if self.positions is not None:
            places = positions.squeeze(-1).int().clamp(max=self.positions.shape[0] - 1)
            tokens = tokens + widen(gather(self.positions, places))
        return self.precision.narrow(tokens, RESIDUAL)


class LoweredMultihead(LoweredModel):
    """A multi-head model in export form: ``forward(input_ids[, attention_mask]) -> logits``."""

    def __init__(
        self, model: MultiheadModel, make: Callable[[MultiheadLayer, Precision], LoweredAttention], precision: Precision
    ) -> None:
        """Fold the weights of the reference model; ``make`` returns the attention of a layer."""
        super().__init__()
        self.config: MultiheadConfig = model.config
        self.precision = precision
        self.orders = {}  # all are the reference's
        channels = torch.arange(model.config.dim)
        if model.abs_pos_emb is not None:
            self.embedding: nn.Module = TokenEmbedding(model.token_emb, model.abs_pos_emb, channels, precision)
        else:
            self.embedding = PositionTable(model, precision)
        self.turner = None if model.rotary_pos_emb is None else Turner(model.rotary_pos_emb, precision)
        layers = []
        for index, layer in enumerate(cast("list[MultiheadLayer]", model.layers)):
            inner = precision.enter_block(index)
            turner = None if model.rotary_pos_emb is None else Turner(model.rotary_pos_emb, inner)
            layers.append(LoweredMultiheadLayer(layer, make(layer, inner), turner))
        self.layers = nn.ModuleList(layers)
        self.head = Head(model.to_logits, channels, precision)

    def forward(
        self, input_ids: Int[Tensor, "b n"], attention_mask: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n vocab"]:
        """Return the logits of every position."""
        seq_len, window, chunks = input_ids.shape[1], self.config.window, None
        positions = count_tokens(seq_len)
        if window > 1:
            chunks = cut_into_chunks(seq_len, window)
            positions, input_ids = chunks.numbers.float(), gather(input_ids, chunks.tokens, axis=1)
        turns = None if self.turner is None else self.turner.compute_turns(positions)
        valid = self._find_valid(attention_mask, seq_len, chunks)
        num_chunks = (seq_len + (window - 1)) // window
        layout = Layout(positions, valid, turns, count_tokens(num_chunks), num_chunks)
        x = mark(self.embedding(input_ids, positions.unsqueeze(-1)), "embedding")
        for layer in self.layers:
            x = layer(x, layout)
        return self.head(x if chunks is None else cut_end(x, seq_len))

    def _find_valid(
        self, attention_mask: Tensor | None, seq_len: int, chunks: Chunks | None
    ) -> Float[Tensor, "#b p"] | None:
        """Return 1 for what is no padding; None where it cannot be seen."""
        if attention_mask is None:
            if self.config.causal or chunks is None:
                return None
            return (chunks.numbers < seq_len).float().unsqueeze(0)
        if chunks is None:
            return attention_mask.bool().float()
        return gather(attention_mask, chunks.tokens, axis=1).bool().float() * (chunks.numbers < seq_len).float()


def describe_lowering(
    make: Callable[[MultiheadLayer, Precision], LoweredAttention], *, growing: tuple[str, ...] = ()
) -> Lowering:
    """Return the record of a family, given what makes its attention and which of its values are sums over all tokens.

    A softmax is a mean, so that nothing else grows with the length.
    """

    def lower(model: MultiheadModel, precision: Precision = FP32) -> LoweredMultihead:
        return LoweredMultihead(model, make, precision)

    bounded = {
        *(TABLE, RESIDUAL, LOGITS, WEIGHTS, "turns", "valid", "normed", "value", "heads", "scores", "mixed"),
        *("update", "hidden", "gated"),
    }
    return Lowering(
        lower,
        growing=("heads", "scores", WEIGHTS, "mixed", "hidden", "gated", "update", RESIDUAL, *growing),
        growing_around=lambda _: (RESIDUAL, LOGITS),
        bounded=frozenset(bounded - set(growing)),
    )
