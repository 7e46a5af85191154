"""Every step of the lowering taken back, one at a time, by putting something else in the place of its one name.

What a step is replaced by is the cheapest spelling we know that keeps all the other steps, so that a gain is not made
larger than it is. Models are those of ``harness.models``: relu², ScaleNorm and token shift.

Axes: b batch, g chunk, c position in a chunk, d model, e hidden, s query/key, r rotated width.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn

from flash_export.exporters.lowering import flash, fold, shared_modules
from flash_export.exporters.lowering.flash import LinearAttention, LoweredFlash, LoweredFlashLayer, QuadraticAttention
from flash_export.exporters.lowering.heads import Heads, Rotary, Turns
from flash_export.exporters.spelling import reshape, sum_earlier_chunks
from flash_export.layers.attention import build_causal_mask
from flash_export.layers.position import shift_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jaxtyping import Float
    from torch import Tensor

    from flash_export import FlashConfig, FlashModel

    # Owner and name of what is replaced, and what by.
    Replacements = Mapping[tuple[Any, str], Any]


@dataclass(frozen=True)
class Step:
    """One step of the lowering, and how to do without it."""

    name: str  # what the step does
    replace: Callable[[FlashConfig], Replacements] = lambda _: {}  # what stands in its place, for a model of a config
    prepare: Callable[[nn.Module], None] = lambda _: None  # what is done to the lowered model
    causal: bool | None = None  # the attention that it is a step for; None: both
    mask: bool | None = None  # whether the graph without it takes a mask; None: as always
    keep_shapes: bool = False  # whether the shapes of intermediate values stay declared

    @contextlib.contextmanager
    def take_back(self, model: FlashModel) -> Iterator[LoweredFlash]:
        """Lower a model without the step; it is to be run or traced within the block."""
        with replace_names(self.replace(model.config)):
            lowered = LoweredFlash(model)
            self.prepare(lowered)
            yield lowered


@contextlib.contextmanager
def replace_names(replacements: Replacements) -> Iterator[None]:
    """Put something else in the place of names meanwhile."""
    with contextlib.ExitStack() as stack:
        for (owner, name), replacement in replacements.items():
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def mask_scores(_: FlashConfig) -> Replacements:
    """Mask the weights of the quadratic branch and the keys of the linear one; values of padding stay as they are."""
    mix = LoweredFlashLayer.forward

    def forward(self: LoweredFlashLayer, x: Tensor, turns: Turns, valid: Tensor, *rest: Any) -> Tensor:
        weigh, attend = QuadraticAttention.weigh, LinearAttention.forward
        masked: Replacements = {
            (QuadraticAttention, "weigh"): lambda *args: weigh(*args) * valid.mT,
            (LinearAttention, "forward"): lambda own, q, k, *args: attend(own, q, k * valid, *args),
        }
        with replace_names(masked):
            return mix(self, x, turns, None, *rest)

    return {(LoweredFlashLayer, "forward"): forward}


def unfold_factors(config: FlashConfig) -> Replacements:
    """Leave divisors, the norm's gain and ``dim**0.5`` to the graph."""

    def weigh(self: QuadraticAttention, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        return shared_modules.apply_attention_fn(q @ k.mT / config.chunk_size + bias, self.attention_fn)

    return {
        (flash, "lower_norm"): lambda norm, _: norm,
        (fold, "fold_norm_gain"): lambda weight, _: weight,
        (flash, "list_head_factors"): lambda config, _: dict.fromkeys(config.heads, 1.0),
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

    def shift(x: Float[Tensor, "b g 1 c d"], _places: Tensor, _before: Tensor) -> Float[Tensor, "b g 1 c d"]:
        return reshape(shift_tokens(reshape(x, [0, -1, x.shape[-1]])), [0, -1, 1, *x.shape[3:]])

    return {
        (flash, "order_channels"): lambda dim, _: fold.ChannelOrder(torch.arange(dim)),
        (flash, "shift_half_token"): shift,
    }


def slice_rotary(_: FlashConfig) -> Replacements:
    """Cut out the channels that turn, and join them with the others again."""

    def turn(self: Rotary, positions: Tensor, *_: Any) -> Turns:
        angles = positions * self.sin_freqs
        return Turns(angles.cos(), angles.sin(), None)

    def rotate(self: Heads, z: Tensor, turns: Turns, gamma: Tensor, beta: Tensor) -> Tensor:
        qk_dim, rotary_dim = self.crossing.shape
        half = rotary_dim // 2
        even, odd, rest = (z * gamma + beta).split([half, half, qk_dim - rotary_dim], dim=-1)
        turning, crossed = torch.cat((even, odd), dim=-1), torch.cat((-odd, even), dim=-1)
        return torch.cat((turning * turns.cos + crossed * turns.sin, rest), dim=-1)

    return {(Rotary, "_turn"): turn, (Heads, "_rotate"): rotate}


def project_apart(_: FlashConfig) -> Replacements:
    """Multiply by the parts of the weights one by one."""

    def forward(self: Any, x: Float[Tensor, "b g 1 c d"]) -> tuple[Tensor, ...]:
        return tuple(shared_modules.apply_silu(x @ w + b) for w, b in zip(self.weights, self.biases, strict=True))

    return {(shared_modules.InputProjection, "forward"): forward}


def separate_weights(lowered: nn.Module) -> None:
    """Cut weights and biases into those of values, gates, and what queries and keys are made of."""
    for module in lowered.modules():
        if isinstance(module, shared_modules.InputProjection):
            assert module.bias is not None
            assert module.value_bias is not None
            widths = module.widths[1:]
            weights = (module.value_weight, *module.weight.split(widths, dim=-1))
            biases = (module.value_bias, *module.bias.split(widths))
            module.weights = nn.ParameterList(weight.contiguous() for weight in weights)
            module.biases = nn.ParameterList(bias.clone() for bias in biases)
            del module.value_weight, module.value_bias, module.weight, module.bias


_PROJECTION = shared_modules.InputProjection
STEPS = (
    Step("none: the noise"),
    Step("values of padding zeroed, not scores masked", mask_scores, causal=False),
    Step("no mask where padding is in the future", causal=True, mask=True),
    Step("divisors and norm gain in the weights", unfold_factors),
    Step("bias table hides the future", mask_future, causal=True),
    Step("queries and keys in the product of the gates", project_apart, separate_weights),
    Step("values in a product of their own", lambda _: {(_PROJECTION, "forward"): _PROJECTION.project_few}),
    Step("rotary without cutting channels out", slice_rotary),
    Step("token shift by half a token", shift_halves),
    Step("CumSum, not a triangular product", multiply_chunks, causal=True),
    Step("inner shapes not declared", keep_shapes=True),
)
