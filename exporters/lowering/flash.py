"""The export form of family ``flash``.

What differs from the reference, each step preserving the function: tokens are padded to whole chunks and cut into them
once; padded and masked tokens have their values zeroed; divisors, norm gains and RoPE's permutation are in the weights;
the relative bias is a table that also hides the future.

Everything between the embedding and the head has five axes, so that chunks and heads need no reshapes of their own.

Axes: b batch, g chunk, h head, c position in a chunk, p token of all chunks, d model, e hidden, s query/key, r rotated
width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from flash_export.exporters.lowering.base import LoweredModel
from flash_export.exporters.lowering.chunks import (
    begin_shift,
    count_half_tokens,
    cut_end,
    cut_into_chunks,
    find_earlier_chunks,
)
from flash_export.exporters.lowering.fold import (
    compute_norm_gain,
    hide_future,
    order_channels,
)
from flash_export.exporters.lowering.heads import Heads, Rotary, order_rotary_pairs
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import (
    RESIDUAL,
    WEIGHTS,
    Head,
    InputProjection,
    TokenEmbedding,
    apply_attention_fn,
    get_attention_factor,
    get_score_line,
    lower_norm,
)
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import gather, reshape, shift_half_token, sum_earlier_chunks
from flash_export.models.flash import GLOBAL, LOCAL

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.heads import Turns
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.flash import FlashConfig, FlashLayer, FlashModel

# The sum over a whole sequence of unscaled keys and values leaves fp16. The square root of 65,536, a power of two.
FP16_KEY_DIVISOR = 256.0


def list_head_factors(config: FlashConfig, precision: Precision) -> dict[str, float]:
    """Return what goes into each head: divisors of scores and sums, and what makes up for what Laplace leaves out."""
    slope, _ = get_score_line(config.attention_fn)
    restored = 1 / get_attention_factor(config.attention_fn)
    key_divisor = config.chunk_size if config.causal else get_key_divisor(config, precision)
    factors = {"quad_q": slope / config.chunk_size, "lin_q": restored, "quad_k": 1.0, "lin_k": 1 / key_divisor}
    return {name: factors[name] for name in config.heads}


class QuadraticAttention(nn.Module):
    """``attention_fn(q k^T + bias) v`` inside each chunk."""

    def __init__(self, layer: FlashLayer, precision: Precision = FP32) -> None:
        """Bake the relative bias, with hidden future positions, into one table."""
        super().__init__()
        config, self.precision = layer.config, precision
        self.attention_fn = config.attention_fn
        slope, shift = get_score_line(config.attention_fn)
        bias = precision.narrow(layer.rel_pos_bias(config.chunk_size) * slope - shift, "scores")
        self.bias = nn.Buffer(hide_future(bias) if config.causal else bias)

    def forward(
        self, q: Float[Tensor, "b g 1 c s"], k: Float[Tensor, "b g 1 c s"], v: Float[Tensor, "b g 1 c e"]
    ) -> Float[Tensor, "b g 1 c e"]:
        """Attend; the score divisor is in q."""
        weights = mark(self.weigh(q, k, self.bias), "weights", get_attention_factor(self.attention_fn))
        return self.precision.multiply(weights, v, "quadratic")

    def weigh(
        self, q: Float[Tensor, "*b c s"], k: Float[Tensor, "*b k s"], bias: Float[Tensor, "*b c k"]
    ) -> Float[Tensor, "*b c k"]:
        """Return the weight of each key for each query."""
        return apply_attention_fn(self.precision.multiply(q, k.mT, "scores") + bias, self.attention_fn, self.precision)


class LinearAttention(nn.Module):
    """The linear branch: over earlier chunks, over everything, or inside each chunk."""

    def __init__(self, key_divisor: float, *, sum_over_chunks: bool, precision: Precision = FP32) -> None:
        """Take what keys were divided by, and over what a sum that is not causal goes."""
        super().__init__()
        self.precision, self.key_divisor = precision, key_divisor
        self.sum_over_chunks = sum_over_chunks

    def forward(
        self,
        q: Float[Tensor, "b g 1 c s"],
        k: Float[Tensor, "b g 1 c s"],
        v: Float[Tensor, "b g 1 c e"],
        inverse_length: Float[Tensor, "#b 1 1 1 1"] | None,
        earlier: Float[Tensor, "g g"] | None = None,
        quantity: str = "kv",
    ) -> Float[Tensor, "b g 1 c e"]:
        """Attend; the causal divisor is in k, so that ``inverse_length`` is None there alone.

        The causal sum is one product with ``earlier``, see :func:`find_earlier_chunks`, where that is given: a product
        in bf16 adds up in fp32, and OpenVINO takes a tenth of the time for it (docs/adr/0003-cumsum-over-chunks.md).
        """
        if inverse_length is None:
            kv = self._sum_earlier(self.precision.multiply(k.mT, v, "products"), earlier)
        else:
            kv = self._sum_all(k, v, inverse_length)
        kv = self.precision.narrow(kv, "kv")
        return self.precision.multiply(q, mark(kv, quantity, order="heads", axis=-2), "linear")

    def _sum_earlier(
        self, products: Float[Tensor, "b g 1 s e"], earlier: Float[Tensor, "g g"] | None
    ) -> Float[Tensor, "b g 1 s e"]:
        if earlier is None:
            return sum_earlier_chunks(widen(products))
        *_, width, value_width = products.shape
        kv = self.precision.multiply(earlier, reshape(products, [0, -1, width * value_width]), "kv")
        return reshape(kv, [0, -1, 1, width, value_width])

    def _sum_all(
        self, k: Float[Tensor, "b g 1 c s"], v: Float[Tensor, "b g 1 c e"], inverse_length: Float[Tensor, "#b 1 1 1 1"]
    ) -> Float[Tensor, "b _ 1 s e"]:
        if self.sum_over_chunks:
            k, v = (reshape(x, [0, 1, 1, -1, x.shape[-1]]) for x in (k, v))  # one chunk of all
        # What the keys were divided by belongs to the divisor, which is no value of a token and so stays in fp32.
        scale = inverse_length if self.key_divisor == 1 else inverse_length * self.key_divisor
        return widen(self.precision.multiply(k.mT, v, "products")) * scale


class GatedOutput(nn.Module):
    """What every form of a layer ends with."""

    precision: Precision
    out_weight: Tensor
    out_bias: Tensor

    def apply_gate(self, gate: Float[Tensor, "*b e"], mixed: Float[Tensor, "*b e"]) -> Float[Tensor, "*b e"]:
        """Gate what was attended to."""
        return self.precision.combine(torch.mul, gate, mixed, "gated")

    def project_out(self, x: Float[Tensor, "*b d"], gated: Float[Tensor, "*b e"]) -> Float[Tensor, "*b d"]:
        """Project what passed the gate, add the residual."""
        update = widen(self.precision.multiply(gated, self.out_weight, "update")) + self.out_bias
        return self.precision.narrow(widen(x) + update, RESIDUAL)


class LoweredFlashLayer(GatedOutput):
    """One FLASH layer in export form."""

    def __init__(
        self, layer: FlashLayer, rotary_dim: int, channels: Int[Tensor, " d"], precision: Precision = FP32
    ) -> None:
        """Fold the weights of the reference layer, for a residual stream whose channels are in this order."""
        super().__init__()
        config, self.precision = layer.config, precision
        order = order_rotary_pairs(config.qk_dim, rotary_dim)
        self.norm, self.norm_gain = lower_norm(layer.norm, channels), compute_norm_gain(layer.norm)
        self.projection = InputProjection.fold(layer, order.columns, precision)
        self.head_factors = list_head_factors(config, precision)
        self.heads = Heads(layer.qk_offset_scale, list(self.head_factors.values()), order, precision)
        if config.branches != GLOBAL:
            self.quadratic = QuadraticAttention(layer, precision)
        key_divisor = get_key_divisor(config, precision)
        if config.branches != LOCAL:
            self.linear = LinearAttention(key_divisor, sum_over_chunks=config.sum_over_chunks, precision=precision)
        self.factor = get_attention_factor(config.attention_fn)
        out_weight = layer.to_out.weight[channels].mT * self.factor
        self.out_weight = nn.Buffer(precision.narrow(out_weight, "update").contiguous())
        self.out_bias = nn.Buffer(layer.to_out.bias[channels])
        self.shift_tokens, self.branches = config.shift_tokens, config.branches

    def forward(
        self,
        x: Float[Tensor, "b g 1 c d"],
        turns: Turns,
        valid: Float[Tensor, "#b g 1 c 1"] | None,
        inverse_length: Float[Tensor, "#b 1 1 1 1"] | None,
        earlier: Float[Tensor, "g g"] | None,
        places: Int[Tensor, " 2p"],
        before: Float[Tensor, "b 1 d/2"],
    ) -> Float[Tensor, "b g 1 c d"]:
        """Mix the tokens; ``valid`` is None where padding cannot be seen, ``earlier`` where nothing needs it.

        Half tokens have the numbers ``places``, and ``before`` is what stands before the first.
        """
        normed = self.precision.narrow(self.norm(x), "normed")
        if self.shift_tokens:
            normed = shift_half_token(normed, places, self.precision.narrow(before, "normed"))
        normed = mark(normed, "normed", self.norm_gain)
        value, gate, z = self.projection(normed)
        heads = {
            name: mark(head, name, 1 / factor, order="heads")
            for head, (name, factor) in zip(
                self.heads(z, turns).split(1, dim=2), self.head_factors.items(), strict=True
            )
        }
        if valid is not None:
            value = self.precision.combine(torch.mul, value, valid, "value")
        value, gate = mark(value, "value"), mark(gate, "gate")
        branches: list[Tensor] = []
        if self.branches != GLOBAL:
            quadratic = self.quadratic(heads["quad_q"], heads["quad_k"], value)
            branches.append(mark(quadratic, "quadratic", self.factor))
        if self.branches != LOCAL:
            linear = self.linear(heads["lin_q"], heads["lin_k"], value, inverse_length, earlier)
            branches.append(mark(linear, "linear", self.factor))
            if self.precision.watch is not None:
                # Decode weighs linear keys one by one; here they are only shown, for the ranges of that graph.
                self.precision.multiply(heads["lin_q"], heads["lin_k"].mT, WEIGHTS)
        mixed, *other = branches
        for branch in other:
            mixed = self.precision.combine(torch.add, mixed, branch, "mixed")
        return mark(self.project_out(x, self.apply_gate(gate, mixed)), "out", order="channels")


class LoweredFlash(LoweredModel):
    """A FLASH model in export form: ``forward(input_ids[, attention_mask]) -> logits``."""

    def __init__(self, model: FlashModel, precision: Precision = FP32) -> None:
        """Fold the weights of the reference model."""
        super().__init__()
        self.config: FlashConfig = model.config
        self.precision = precision
        rotary = model.rotary_pos_emb
        channels, swaps_halves = order_channels(model.config.dim, model.config.shift_tokens)
        rotary_dim = 2 * len(rotary.freqs)
        order = order_rotary_pairs(model.config.qk_dim, rotary_dim)
        self.orders = {"channels": channels.tolist(), "heads": order.columns.tolist()}
        self.embedding = TokenEmbedding(
            model.token_emb, model.abs_pos_emb, channels, precision, swaps_halves=swaps_halves
        )
        self.rotary = Rotary(rotary.freqs, model.config.qk_dim, len(model.config.heads), precision)
        layers = cast("list[FlashLayer]", model.layers)
        self.layers = nn.ModuleList(
            LoweredFlashLayer(layer, rotary_dim, channels, precision.enter_block(index))
            for index, layer in enumerate(layers)
        )
        self.head = Head(model.to_logits, channels, precision)

    def forward(
        self, input_ids: Int[Tensor, "b seq"], attention_mask: Int[Tensor, "b seq"] | None = None
    ) -> Float[Tensor, "b seq vocab"]:
        """Return the logits of every position."""
        seq_len, chunk_size = input_ids.shape[1], self.config.chunk_size
        chunks = cut_into_chunks(seq_len, chunk_size)
        tokens = reshape(chunks.tokens, [-1, 1, chunk_size])
        numbers = reshape(chunks.numbers, [1, -1, 1, chunk_size, 1])  # (1, g, 1, c, 1)
        positions = numbers.float()
        valid, inverse_length = self._weigh_tokens(attention_mask, numbers, seq_len, tokens)
        x = mark(self.embedding(gather(input_ids, tokens, axis=1), positions), "embedding", order="channels")
        turns = self.rotary(positions, x)
        places, before = count_half_tokens(numbers), begin_shift(x)
        earlier = None
        if self.config.causal and self.precision.name == "bf16":
            earlier = find_earlier_chunks(chunks.numbers, chunk_size).to(self.precision.dtype)
        for layer in self.layers:
            x = layer(x, turns, valid, inverse_length, earlier, places, before)
        return self.head(cut_end(reshape(x, [0, -1, self.config.dim]), seq_len))

    def _weigh_tokens(
        self, attention_mask: Tensor | None, numbers: Tensor, seq_len: int, tokens: Int[Tensor, "g 1 c"]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what zeroes the values of padding, and the divisor of the non-causal sum."""
        if attention_mask is None and self.config.causal:
            return None, None  # padding lies in the future of every token
        valid = within = (numbers < seq_len).float()
        if attention_mask is not None:
            valid = gather(attention_mask, tokens, axis=1).bool().float().unsqueeze(-1) * within
        if self.config.mask_divisor == "padded":
            length = within.sum(dim=(1, 3), keepdim=True)
        else:
            length = valid.sum(dim=(1, 3), keepdim=True).clamp(min=1)
        return self.precision.narrow(valid, "valid"), None if self.config.causal else 1 / length


def get_key_divisor(config: FlashConfig, precision: Precision) -> float:
    """Return what the keys of a sum over the whole sequence are divided by, so that it fits."""
    return FP16_KEY_DIVISOR if precision.name == "fp16" and config.sum_over_chunks and not config.causal else 1.0
