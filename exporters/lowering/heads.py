"""Queries and keys of families ``flash`` and ``mossformer2``: four heads of one projection, turned by RoPE.

The heads keep all their channels together. To cut out those that turn, and join them again, would be a Split and a
Concat, and a dozen layers in which TensorRT computes the sizes of the parts. So all channels are multiplied by cosines,
1 for those at rest. What the sines are for is a product with a small matrix of ones and zeros, with zeros beside it.

Axes: b batch, c token, d model, h head, s query/key, r rotated width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from flash_export.exporters.lowering.fold import fold_heads
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.spelling import gather

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.attention import OffsetScale


class RotaryOrder(NamedTuple):
    """An order of the channels of queries and keys, and the matrix that turns those that RoPE turns by 90 degrees."""

    columns: Int[Tensor, " s"]
    crossing: Float[Tensor, "s r"]


def order_rotary_pairs(qk_dim: int, rotary_dim: int) -> RotaryOrder:
    """Return the order ``[even | odd | rest]`` of the channels, and what makes ``[-odd | even]`` of them.

    With interleaved pairs, ``even' = even cos - odd sin`` and ``odd' = odd cos + even sin``. Dot products do not
    change, as queries and keys are permuted alike.
    """
    even, rest = torch.arange(0, rotary_dim, 2), torch.arange(rotary_dim, qk_dim)
    half, crossing = torch.arange(rotary_dim // 2), torch.zeros(qk_dim, rotary_dim)
    crossing[len(half) + half, half] = -1
    crossing[half, len(half) + half] = 1
    return RotaryOrder(torch.cat((even, even + 1, rest)), crossing)


class Turns(NamedTuple):
    """What turns heads.

    Attributes:
        cos: Of every channel.
        sin: Of those that turn.
        rest: Zeros for the others; None: there are none.
    """

    cos: Float[Tensor, "*b c s"]
    sin: Float[Tensor, "*b c r"]
    rest: Float[Tensor, "*b h c s-r"] | None


class Rotary(nn.Module):
    """Computes the turns of all layers, the angles in fp32."""

    def __init__(self, freqs: Float[Tensor, " r/2"], qk_dim: int, num_heads: int, precision: Precision = FP32) -> None:
        """Take a frequency for each pair of channels."""
        super().__init__()
        self.precision, num_resting = precision, qk_dim - 2 * len(freqs)
        self.sin_freqs = nn.Buffer(freqs.repeat(2))
        self.cos_freqs = nn.Buffer(torch.cat((self.sin_freqs, freqs.new_zeros(num_resting))))
        self.rest = nn.Buffer(torch.zeros(num_heads, 1, num_resting)) if num_resting else None

    def forward(self, positions: Float[Tensor, "*b 1 c 1"], x: Float[Tensor, "*b 1 c d"]) -> Turns:
        """Return the turns at each position; x is anything of as many rows and tokens."""
        return self._turn(positions, x, self.rest)

    def turn_few(self, positions: Float[Tensor, "*b 1 1"], x: Float[Tensor, "*b 1 d"]) -> Turns:
        """Return the same for heads that lie on the axis before the channels."""
        return self._turn(positions, x, None if self.rest is None else self.rest.squeeze(1))

    def _turn(self, positions: Tensor, x: Tensor, rest: Tensor | None) -> Turns:
        cos, sin = (positions * self.cos_freqs).cos(), (positions * self.sin_freqs).sin()
        if rest is not None:
            rest = gather(x, torch.zeros(1, dtype=torch.int32), axis=x.ndim - 1) * rest
            rest = self.precision.narrow(rest, "turns")
        return Turns(self.precision.narrow(cos, "turns"), self.precision.narrow(sin, "turns"), rest)


class Heads(nn.Module):
    """Turn the shared projection into the rotated heads ``quad_q, lin_q, quad_k, lin_k``."""

    def __init__(
        self, offset_scale: OffsetScale, factors: list[float], order: RotaryOrder, precision: Precision = FP32
    ) -> None:
        """Fold a factor for each head into the affine maps."""
        super().__init__()
        self.factors, self.precision = factors, precision
        gamma, beta = fold_heads(offset_scale, order.columns, factors)
        self.gamma, self.beta = (nn.Buffer(precision.narrow(x, "heads").unsqueeze(1)) for x in (gamma, beta))
        self.crossing = nn.Buffer(order.crossing.to(self.gamma.dtype))

    def forward(self, z: Float[Tensor, "*b 1 c s"], turns: Turns) -> Float[Tensor, "*b h c s"]:
        """Return the heads of each token, beside each other where z has an axis of 1."""
        return self._rotate(z, turns, self.gamma, self.beta)

    def rotate_few(self, z: Float[Tensor, "*b 1 s"], turns: Turns) -> Float[Tensor, "*b h s"]:
        """Return the heads of few tokens on the axis before the channels: beside each other, once those are joined."""
        return self._rotate(z, turns, self.gamma.squeeze(1), self.beta.squeeze(1))

    def _rotate(self, z: Tensor, turns: Turns, gamma: Tensor, beta: Tensor) -> Tensor:
        """Apply the affine maps and RoPE to all heads at once."""
        heads = self.precision.narrow(self._align(z) * gamma + beta, "heads")
        crossed = (heads @ self.crossing) * self._align(turns.sin)
        if turns.rest is not None:
            crossed = torch.cat((crossed, self._align(turns.rest)), dim=-1)
        return self.precision.narrow(heads * self._align(turns.cos) + crossed, "heads")

    def _align(self, x: Tensor) -> Tensor:
        """Return x in fp32 where the heads are."""
        return widen(x) if self.gamma.dtype == torch.float32 else x
