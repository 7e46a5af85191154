"""Every step of the lowering taken back, one at a time: the lowered model that does without it.

What a step is replaced by is the cheapest spelling we know that keeps all the other steps, so that a gain is not made
larger than it is. Models are those of ``peers``: relu², ScaleNorm and token shift.

Axes: b batch, g chunk, c position in a chunk, d model, e hidden, s query/key, r rotated width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from flash_export.exporters.lowering.flash import (
    Heads,
    LinearAttention,
    LoweredFlash,
    LoweredFlashLayer,
    QuadraticAttention,
)
from flash_export.exporters.lowering.fold import order_channels, order_rotary_columns
from flash_export.exporters.lowering.pieces import (
    Head,
    InputProjection,
    TokenEmbedding,
    apply_attention_fn,
    apply_silu,
)
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.primitives import reshape, shift_half_token, sum_earlier_chunks
from flash_export.layers.attention import build_causal_mask
from flash_export.layers.position import shift_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.norm import ScaleNorm
    from flash_export.models.flash import FlashConfig, FlashLayer, FlashModel

    Projected = tuple[Float[Tensor, "b g 1 c e"], Float[Tensor, "b g 1 c e"], Float[Tensor, "b g 1 c q"]]


class ScoreMaskingLayer(LoweredFlashLayer):
    """Padding is hidden by masking the weights of the quadratic branch and the keys of the linear one."""

    def forward(
        self,
        x: Float[Tensor, "b g 1 c d"],
        cos: Float[Tensor, "1 g 1 c r"],
        sin: Float[Tensor, "1 g 1 c r"],
        valid: Float[Tensor, "#b g 1 c 1"] | None,
        inverse_length: Float[Tensor, "#b 1 1 1 1"] | None,
        places: Int[Tensor, " p"],
    ) -> Float[Tensor, "b g 1 c d"]:
        """Mix the tokens; values of padding stay as they are."""
        normed = self.norm(x)
        if self.shift_tokens:
            normed = shift_half_token(normed, places)
        value, gate, z = self.projection(normed)
        quad_q, lin_q, quad_k, lin_k = self.heads(z, cos, sin)
        weights = self.quadratic.weigh(quad_q, quad_k, self.quadratic.bias)  # (b, g, 1, c, c)
        if valid is not None:
            weights = weights * valid.mT
            lin_k = lin_k * valid
        linear = self.linear(lin_q, lin_k, value, inverse_length)
        return x + (gate * (weights @ value + linear) @ self.out_weight + self.out_bias)


class DividingQuadraticAttention(QuadraticAttention):
    """The scores are divided by the chunk size in the graph."""

    def __init__(self, layer: FlashLayer) -> None:
        """Remember the divisor."""
        super().__init__(layer)
        self.chunk_size = layer.config.chunk_size

    def weigh(
        self, q: Float[Tensor, "*b c s"], k: Float[Tensor, "*b k s"], bias: Float[Tensor, "*b c k"]
    ) -> Float[Tensor, "*b c k"]:
        """Return the weight of each key for each query."""
        return apply_attention_fn(q @ k.mT / self.chunk_size + bias, self.attention_fn)


class MaskingQuadraticAttention(QuadraticAttention):
    """The future is hidden by a mask of its own; the bias table knows nothing of it."""

    def __init__(self, layer: FlashLayer) -> None:
        """Make a table of the bias and one of what is visible."""
        super().__init__(layer)
        bias = layer.rel_pos_bias(layer.config.chunk_size)
        self.bias = nn.Buffer(bias)
        self.visible = nn.Buffer(build_causal_mask(len(bias), bias.device).float())

    def weigh(
        self, q: Float[Tensor, "*b c s"], k: Float[Tensor, "*b k s"], bias: Float[Tensor, "*b c k"]
    ) -> Float[Tensor, "*b c k"]:
        """Return the weight of each key for each query."""
        return super().weigh(q, k, bias) * self.visible


class CausalLinearAttention(LinearAttention):
    """A linear branch whose causal sum can be spelled in another way."""

    def sum_products(
        self, k: Float[Tensor, "b g 1 c s"], v: Float[Tensor, "b g 1 c e"], inverse_length: Tensor | None
    ) -> Float[Tensor, "b _ 1 s e"]:
        """Return ``k^T v`` of the chunks that each chunk sees; what is not causal is as it was."""
        return self.sum_chunks(k.mT @ v) if inverse_length is None else super().sum_products(k, v, inverse_length)

    def sum_chunks(self, kv: Float[Tensor, "b g 1 s e"]) -> Float[Tensor, "b g 1 s e"]:
        """Return the sum over all earlier chunks."""
        raise NotImplementedError


class DividingLinearAttention(CausalLinearAttention):
    """The causal sum is divided by the chunk size in the graph."""

    def __init__(self, config: FlashConfig) -> None:
        """Remember the divisor."""
        super().__init__(config)
        self.chunk_size = config.chunk_size

    def sum_chunks(self, kv: Float[Tensor, "b g 1 s e"]) -> Float[Tensor, "b g 1 s e"]:
        """Return the mean's part of each chunk, summed over all earlier ones."""
        return sum_earlier_chunks(kv / self.chunk_size)


class TriangularLinearAttention(CausalLinearAttention):
    """The causal sum is a product with a strictly triangular matrix."""

    def sum_chunks(self, kv: Float[Tensor, "b g 1 s e"]) -> Float[Tensor, "b g 1 s e"]:
        """Return the sum over all earlier chunks."""
        chunks = torch.arange(kv.shape[1], dtype=torch.float32)
        earlier = (chunks[:, None] > chunks).float()
        return (earlier @ kv.flatten(2)).unflatten(-1, kv.shape[2:])


class SeparateProjection(InputProjection):
    """Gates, and what queries and keys are made of, have a product each."""

    def __init__(self, weight: Tensor, bias: Tensor, widths: Sequence[int], precision: Precision = FP32) -> None:
        """Split the weights where the graph would split the product."""
        super().__init__(weight, bias, widths, precision)
        weights = self.weight.split(self.widths[1:], dim=1)
        self.gate_weight, self.qk_weight = (nn.Buffer(weight.contiguous()) for weight in weights)
        self.gate_bias, self.qk_bias = (
            nn.Buffer(part.clone()) for part in bias[self.widths[0] :].split(self.widths[1:])
        )
        del self.weight, self.bias

    def forward(self, x: Float[Tensor, "b g 1 c d"]) -> Projected:
        """Return values, gates and the query/key projection."""
        value = apply_silu(self._project(x, self.value_weight, self.value_bias, "value"))
        gate = apply_silu(x @ self.gate_weight + self.gate_bias)
        return value, gate, apply_silu(x @ self.qk_weight + self.qk_bias)


class JoinedProjection(InputProjection):
    """One product for all three, and one Split."""

    def __init__(self, weight: Tensor, bias: Tensor, widths: Sequence[int], precision: Precision = FP32) -> None:
        """Join the weights."""
        super().__init__(weight, bias, widths, precision)
        self.join()


class SlicingHeads(Heads):
    """RoPE from halves of the rotated columns, with no columns of their own for the crossed terms."""

    def __init__(self, layer: FlashLayer, columns: Int[Tensor, " s"], rotary_dim: int) -> None:
        """Fold what is folded otherwise, for columns ``[even | odd | rest]``."""
        super().__init__(layer, columns, torch.ones(len(columns)), rotary_dim)
        self.widths = [rotary_dim // 2, rotary_dim // 2, len(columns) - rotary_dim]

    def forward(
        self, z: Float[Tensor, "b g 1 c s"], cos: Float[Tensor, "1 g 1 c r/2"], sin: Float[Tensor, "1 g 1 c r/2"]
    ) -> tuple[Float[Tensor, "b g 1 c s"], ...]:
        """Apply the affine maps and RoPE to all heads at once."""
        heads = z * self.gamma + self.beta  # (b, g, 4, c, s)
        even, odd, rest = heads.split(self.widths, dim=-1)
        rotated = torch.cat((even * cos - odd * sin, odd * cos + even * sin, rest), dim=-1)
        return rotated.split(1, dim=2)


class HalvesShift(nn.Module):
    """The token shift as the reference does it: split the channels, pad one half, join them."""

    def __init__(self, chunk_size: int) -> None:
        """Remember how tokens are cut into chunks."""
        super().__init__()
        self.chunk_size = chunk_size

    def forward(self, x: Float[Tensor, "b g 1 c d"]) -> Float[Tensor, "b g 1 c d"]:
        """Delay the first half of the channels by one token."""
        return reshape(shift_tokens(reshape(x, [0, -1, x.shape[-1]])), [0, -1, 1, self.chunk_size, x.shape[-1]])


@dataclass(frozen=True)
class Step:
    """One step of the lowering, and how to do without it.

    Attributes:
        name: What the step does.
        undo: Lowers a model without it.
        causal: The attention that it is a step for; None: both.
        mask: Whether the graph without it takes a mask; None: as always.
        keep_shapes: Whether the shapes of intermediate values stay declared.
    """

    name: str
    undo: Callable[[FlashModel], LoweredFlash]
    causal: bool | None = None
    mask: bool | None = None
    keep_shapes: bool = False


def lower_fully(model: FlashModel) -> LoweredFlash:
    """Lower a model with all steps."""
    return LoweredFlash(model)


def mask_scores(model: FlashModel) -> LoweredFlash:
    """Lower without zeroing the values of padding."""
    lowered = LoweredFlash(model)
    rotary_dim, channels = len(lowered.freqs), order_channels(model.config.dim, model.config.shift_tokens)
    layers = cast("list[FlashLayer]", model.layers)
    lowered.layers = nn.ModuleList(ScoreMaskingLayer(layer, rotary_dim, channels) for layer in layers)
    return lowered


def unfold_factors(model: FlashModel) -> LoweredFlash:
    """Lower without divisors, norm gain and ``dim**0.5`` in the weights."""
    lowered = LoweredFlash(model)
    chunk_size = model.config.chunk_size
    divisors = torch.tensor([chunk_size, 1, 1, chunk_size if model.config.causal else 1])[:, None, None]
    for layer, reference in _pair_layers(lowered, model):
        norm = cast("ScaleNorm", reference.norm)
        gain = norm.g * norm.dim**0.5
        projection = layer.projection
        projection.value_weight = nn.Buffer(projection.value_weight / gain)
        projection.weight = nn.Buffer(projection.weight / gain)
        layer.norm = norm
        layer.heads.gamma = nn.Buffer(layer.heads.gamma * divisors)
        layer.heads.beta = nn.Buffer(layer.heads.beta * divisors)
        layer.quadratic = DividingQuadraticAttention(reference)
        layer.linear = DividingLinearAttention(model.config)
    return lowered


def mask_future(model: FlashModel) -> LoweredFlash:
    """Lower without hiding the future in the table of the bias."""
    lowered = LoweredFlash(model)
    for layer, reference in _pair_layers(lowered, model):
        layer.quadratic = MaskingQuadraticAttention(reference)
    return lowered


def separate_query_keys(model: FlashModel) -> LoweredFlash:
    """Lower without projecting queries and keys together with the gates."""
    return _replace_projection(model, SeparateProjection)


def join_values(model: FlashModel) -> LoweredFlash:
    """Lower without a product of their own for the values."""
    return _replace_projection(model, JoinedProjection)


def slice_rotary(model: FlashModel) -> LoweredFlash:
    """Lower without columns for the crossed terms of RoPE."""
    lowered = LoweredFlash(model)
    qk_dim, rotary_dim = model.config.qk_dim, len(lowered.freqs)
    columns = order_rotary_columns(qk_dim, rotary_dim)[0][:qk_dim]
    for layer, reference in _pair_layers(lowered, model):
        layer.projection = InputProjection.fold(reference, columns)
        layer.heads = SlicingHeads(reference, columns, rotary_dim)
    lowered.freqs = nn.Buffer(lowered.freqs[: rotary_dim // 2].clone())
    return lowered


def shift_halves(model: FlashModel) -> LoweredFlash:
    """Lower without the order of channels that makes the token shift a move by half a token."""
    lowered = LoweredFlash(model)
    channels = order_channels(model.config.dim, shift_tokens=False)
    lowered.embedding = TokenEmbedding(model.token_emb, model.abs_pos_emb, channels)
    lowered.head = Head(model.to_logits, channels)
    layers = [
        LoweredFlashLayer(layer, len(lowered.freqs), channels) for layer in cast("list[FlashLayer]", model.layers)
    ]
    for layer in layers:
        layer.norm, layer.shift_tokens = nn.Sequential(layer.norm, HalvesShift(model.config.chunk_size)), False
    lowered.layers = nn.ModuleList(layers)
    return lowered


def multiply_chunks(model: FlashModel) -> LoweredFlash:
    """Lower without CumSum."""
    lowered = LoweredFlash(model)
    for layer, _ in _pair_layers(lowered, model):
        layer.linear = TriangularLinearAttention(model.config)
    return lowered


STEPS = (
    Step("none: the noise", lower_fully),
    Step("values of padding zeroed, not scores masked", mask_scores, causal=False),
    Step("no mask where padding is in the future", lower_fully, causal=True, mask=True),
    Step("divisors and norm gain in the weights", unfold_factors),
    Step("bias table hides the future", mask_future, causal=True),
    Step("queries and keys in the product of the gates", separate_query_keys),
    Step("values in a product of their own", join_values),
    Step("rotary by crossed columns", slice_rotary),
    Step("token shift by half a token", shift_halves),
    Step("CumSum, not a triangular product", multiply_chunks, causal=True),
    Step("inner shapes not declared", lower_fully, keep_shapes=True),
)


def _replace_projection(model: FlashModel, kind: type[InputProjection]) -> LoweredFlash:
    lowered = LoweredFlash(model)
    columns, _ = order_rotary_columns(model.config.qk_dim, len(lowered.freqs))
    for layer, reference in _pair_layers(lowered, model):
        layer.projection = kind.fold(reference, columns)
    return lowered


def _pair_layers(lowered: LoweredFlash, model: FlashModel) -> Iterator[tuple[LoweredFlashLayer, FlashLayer]]:
    layers = cast("list[LoweredFlashLayer]", lowered.layers)
    return zip(layers, cast("list[FlashLayer]", model.layers), strict=True)
