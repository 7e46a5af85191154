"""Weights rewritten once so that the graph need not compute at run time.

Axes: d model width, e hidden width, s query/key width, r rotated width, h heads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from flash_export.layers.attention import build_causal_mask
from flash_export.layers.norm import ScaleNorm

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from flash_export.layers.attention import OffsetScale

# relu² and Laplace of it are exactly 0, whatever finite score is added.
HIDDEN_SCORE = -math.inf


def fold_input_projection(
    norm: nn.Module, to_hidden: nn.Sequential, to_qk: nn.Sequential, qk_columns: Int[Tensor, " q"]
) -> tuple[Float[Tensor, "d w"], Float[Tensor, " w"]]:
    """Merge the two projections of one input into one matrix ``[value | gate | qk]``.

    The columns of ``to_qk`` are taken in the order ``qk_columns``, repetitions allowed. The gain of a ScaleNorm, one
    scalar that commutes with the token shift, goes into the matrix.

    Returns:
        Weight ``(d, 2e + len(qk_columns))``, to be multiplied from the right, and bias.
    """
    hidden, qk = get_linear(to_hidden), get_linear(to_qk)
    weight = torch.cat((hidden.weight, qk.weight[qk_columns]))
    bias = torch.cat((hidden.bias, qk.bias[qk_columns]))
    return fold_norm_gain(weight, norm).mT.contiguous(), bias


def fold_norm_gain(weight: Float[Tensor, "w d"], norm: nn.Module) -> Float[Tensor, "w d"]:
    """Return a matrix that has the gain of the norm before it in it, and ``dim**0.5``."""
    return weight * (norm.g * norm.dim**0.5) if isinstance(norm, ScaleNorm) else weight


def compute_norm_gain(norm: nn.Module) -> float:
    """Return the factor of a norm's output that :func:`fold_norm_gain` moved into the matrix."""
    return float(norm.g.detach()) * norm.dim**0.5 if isinstance(norm, ScaleNorm) else 1.0


class ChannelOrder(NamedTuple):
    """An order of the residual stream's channels, and whether it is the two halves the other way round."""

    channels: Int[Tensor, " d"]
    swaps_halves: bool = False


def order_channels(dim: int, shift_tokens: bool) -> ChannelOrder:
    """Return the order of the residual stream's channels: the passing half first where tokens are shifted.

    The shifted channels of token i - 1 then lie right before the passing channels of token i, so that the token shift
    is a move by half a token, and gives the channels in their original order.
    """
    channels = torch.arange(dim)
    return ChannelOrder(channels.roll(dim // 2), swaps_halves=True) if shift_tokens else ChannelOrder(channels)


def hide_future(bias: Float[Tensor, "c c"]) -> Float[Tensor, "c c"]:
    """Return a table ``(query, key)`` of what is added to scores, by which no later key is seen."""
    return bias.masked_fill(~build_causal_mask(len(bias), bias.device), HIDDEN_SCORE)


def get_linear(projection: nn.Sequential) -> nn.Linear:
    """Return the linear layer that a projection starts with."""
    return cast("nn.Linear", projection[0])


def compute_norm_floor(norm: ScaleNorm) -> float:
    """Return the smallest divisor of a ScaleNorm whose ``dim**0.5`` was folded away."""
    return float(norm.eps * norm.dim**0.5)


def fold_heads(
    offset_scale: OffsetScale, columns: Int[Tensor, " s"], factors: list[float]
) -> tuple[Float[Tensor, "h s"], Float[Tensor, "h s"]]:
    """Reorder the affine maps to ``columns``, and multiply each head by its factor."""
    scale = torch.tensor(factors)[:, None]
    return offset_scale.gamma[:, columns] * scale, offset_scale.beta[:, columns] * scale


def order_rotary_columns(qk_dim: int, rotary_dim: int) -> tuple[Int[Tensor, " q"], Float[Tensor, " q"]]:
    """Return the column order and signs with which RoPE needs no gather, shuffle or negation.

    With interleaved pairs, ``even' = even cos - odd sin`` and ``odd' = odd cos + even sin``. The columns
    ``[even | odd | rest | -odd | even]`` hold both terms: ``[even' | odd']`` is the first r columns times the cosine
    plus the last r times the sine. Dot products do not change, as queries and keys are permuted alike.
    """
    even = torch.arange(0, rotary_dim, 2)
    odd = even + 1
    rest = torch.arange(rotary_dim, qk_dim)
    signs = torch.ones(qk_dim + rotary_dim)
    signs[qk_dim : qk_dim + len(odd)] = -1
    return torch.cat((even, odd, rest, odd, even)), signs
