"""Every step of the lowering taken back, one at a time, by putting something else in the place of its one name.

What a step is replaced by is the cheapest spelling we know that keeps all the other steps, so that a gain is not made
larger than it is. Models are those of ``peers``: relu², ScaleNorm and token shift.

Axes: b batch, g chunk, c position in a chunk, d model, e hidden, s query/key, r rotated width.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn

from flash_export.exporters.lowering import flash, fold
from flash_export.exporters.lowering.flash import (
    Heads,
    LinearAttention,
    LoweredFlash,
    LoweredFlashLayer,
    QuadraticAttention,
)
from flash_export.exporters.lowering.fold import ChannelOrder, order_rotary_columns
from flash_export.exporters.lowering.pieces import InputProjection, apply_attention_fn, apply_silu
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.primitives import reshape, sum_earlier_chunks
from flash_export.layers.attention import build_causal_mask
from flash_export.layers.position import shift_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.flash import FlashConfig, FlashLayer, FlashModel

    # Owner and name of what is replaced, and what by.
    Replacements = Mapping[tuple[Any, str], Any]


@dataclass(frozen=True)
class Step:
    """One step of the lowering, and how to do without it.

    Attributes:
        name: What the step does.
        replace: What stands in its place, for a model of a config.
        causal: The attention that it is a step for; None: both.
        mask: Whether the graph without it takes a mask; None: as always.
        keep_shapes: Whether the shapes of intermediate values stay declared.
    """

    name: str
    replace: Callable[[FlashConfig], Replacements] = lambda _: {}
    causal: bool | None = None
    mask: bool | None = None
    keep_shapes: bool = False

    @contextlib.contextmanager
    def take_back(self, model: FlashModel) -> Iterator[LoweredFlash]:
        """Lower a model without the step; it is to be run or traced within the block."""
        with contextlib.ExitStack() as stack:
            for (owner, name), replacement in self.replace(model.config).items():
                stack.enter_context(mock.patch.object(owner, name, replacement))
            yield LoweredFlash(model)


def mask_scores(_: FlashConfig) -> Replacements:
    """Mask the weights of the quadratic branch and the keys of the linear one; values of padding stay as they are."""
    mix = LoweredFlashLayer.forward

    def forward(self: LoweredFlashLayer, x: Tensor, cos: Tensor, sin: Tensor, valid: Tensor, *rest: Any) -> Tensor:
        weigh, attend = QuadraticAttention.weigh, LinearAttention.forward
        with (
            mock.patch.object(QuadraticAttention, "weigh", lambda *args: weigh(*args) * valid.mT),
            mock.patch.object(LinearAttention, "forward", lambda own, q, k, *args: attend(own, q, k * valid, *args)),
        ):
            return mix(self, x, cos, sin, None, *rest)

    return {(LoweredFlashLayer, "forward"): forward}


def unfold_factors(config: FlashConfig) -> Replacements:
    """Leave divisors, the norm's gain and ``dim**0.5`` to the graph."""

    def weigh(self: QuadraticAttention, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        return apply_attention_fn(q @ k.mT / config.chunk_size + bias, self.attention_fn)

    return {
        (flash, "lower_norm"): lambda norm, _: norm,
        (fold, "fold_norm_gain"): lambda weight, _: weight,
        (flash, "list_head_factors"): lambda *_: [1.0] * 4,
        (QuadraticAttention, "weigh"): weigh,
        (flash, "sum_earlier_chunks"): lambda kv: sum_earlier_chunks(kv / config.chunk_size),
    }


def mask_future(config: FlashConfig) -> Replacements:
    """Hide the future by a mask of its own; the table of the bias knows nothing of it."""
    weigh = QuadraticAttention.weigh
    visible = build_causal_mask(config.chunk_size, torch.device("cpu")).float()
    return {
        (flash, "hide_future"): lambda bias: bias,
        (QuadraticAttention, "weigh"): lambda *args: weigh(*args) * visible,
    }


def multiply_chunks(_: FlashConfig) -> Replacements:
    """Sum over chunks by a product with a strictly triangular matrix."""

    def sum_chunks(kv: Float[Tensor, "b g 1 s e"]) -> Float[Tensor, "b g 1 s e"]:
        chunks = torch.arange(kv.shape[1], dtype=torch.float32)
        earlier = (chunks[:, None] > chunks).float()
        return (earlier @ kv.flatten(2)).unflatten(-1, kv.shape[2:])

    return {(flash, "sum_earlier_chunks"): sum_chunks}


def shift_halves(_: FlashConfig) -> Replacements:
    """Shift tokens as the reference does it: split the channels, pad one half, join them."""

    def shift(x: Float[Tensor, "b g 1 c d"], _places: Tensor) -> Float[Tensor, "b g 1 c d"]:
        return reshape(shift_tokens(reshape(x, [0, -1, x.shape[-1]])), [0, -1, 1, *x.shape[3:]])

    return {
        (flash, "order_channels"): lambda dim, _: ChannelOrder(torch.arange(dim)),
        (flash, "shift_half_token"): shift,
    }


def slice_rotary(_: FlashConfig) -> Replacements:
    """Rotate without columns for the crossed terms."""

    def order(qk_dim: int, rotary_dim: int) -> tuple[Tensor, Tensor]:
        return order_rotary_columns(qk_dim, rotary_dim)[0][:qk_dim], torch.ones(qk_dim)

    return {
        (flash, "order_rotary_columns"): order,
        (flash, "repeat_frequencies"): lambda freqs: freqs,
        (flash, "Heads"): SlicingHeads,
    }


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

    def forward(self, x: Float[Tensor, "b g 1 c d"]) -> tuple[Tensor, ...]:
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

    def __init__(self, layer: FlashLayer, columns: Int[Tensor, " s"], *rest: Any) -> None:
        """Fold what is folded otherwise, for columns ``[even | odd | rest]``."""
        super().__init__(layer, columns, *rest)
        rotary_dim, passing, _ = self.widths
        self.widths = [rotary_dim // 2, rotary_dim // 2, passing]

    def forward(
        self, z: Float[Tensor, "b g 1 c s"], cos: Float[Tensor, "1 g 1 c r/2"], sin: Float[Tensor, "1 g 1 c r/2"]
    ) -> tuple[Float[Tensor, "b g 1 c s"], ...]:
        """Apply the affine maps and RoPE to all heads at once."""
        heads = z * self.gamma + self.beta  # (b, g, 4, c, s)
        even, odd, rest = heads.split(self.widths, dim=-1)
        rotated = torch.cat((even * cos - odd * sin, odd * cos + even * sin, rest), dim=-1)
        return rotated.split(1, dim=2)


STEPS = (
    Step("none: the noise"),
    Step("values of padding zeroed, not scores masked", mask_scores, causal=False),
    Step("no mask where padding is in the future", causal=True, mask=True),
    Step("divisors and norm gain in the weights", unfold_factors),
    Step("bias table hides the future", mask_future, causal=True),
    Step("queries and keys in the product of the gates", lambda _: {(flash, "InputProjection"): SeparateProjection}),
    Step("values in a product of their own", lambda _: {(flash, "InputProjection"): JoinedProjection}),
    Step("rotary by crossed columns", slice_rotary),
    Step("token shift by half a token", shift_halves),
    Step("CumSum, not a triangular product", multiply_chunks, causal=True),
    Step("inner shapes not declared", keep_shapes=True),
)
