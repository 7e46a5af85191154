"""Numbers in few bits, and the scales that make real ones of them.

Axes: k input, n output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight ``(k, n)`` in few bits.

    Attributes:
        values: int8, int4 or float8_e4m3fn, ``(k, n)``.
        scale: What they are multiplied with, float32: ``(n,)``, or ``(k / block_size, n)``.
        block_size: Inputs that share a scale; None: all of them.
    """

    values: np.ndarray
    scale: Float[np.ndarray, ...]
    block_size: int | None = None

    def dequantize(self) -> Float[np.ndarray, "k n"]:
        """Return the weight that the graph computes with."""
        scale = self.scale if self.block_size is None else np.repeat(self.scale, self.block_size, axis=0)
        return self.values.astype(np.float32) * scale


@dataclass(frozen=True)
class NumberFormat:
    """Whole numbers or short floats that both factors of a product are rounded to.

    Attributes:
        dtype: What NumPy calls them.
        min: The least that an activation becomes.
        max: The largest; weights are from ``-max`` to ``max``, because TensorRT knows symmetric scales alone.
    """

    dtype: np.dtype
    min: float
    max: float

    def round_weight(self, weight: Float[np.ndarray, "k n"]) -> QuantizedWeight:
        """Round a weight, with a scale for each output."""
        scale = compute_scale(np.abs(weight).max(axis=0), self.max)
        return QuantizedWeight(self._round(weight / scale, -self.max).astype(self.dtype), scale)

    def round_activation(self, x: Float[np.ndarray, ...], scale: float) -> Float[np.ndarray, ...]:
        """Return what a pair of QuantizeLinear and DequantizeLinear makes of an activation."""
        return self._round(x / scale, self.min) * np.float32(scale)

    def _round(self, steps: Float[np.ndarray, ...], least: float) -> Float[np.ndarray, ...]:
        cut = np.clip(steps, least, self.max)
        return np.rint(cut) if self.dtype.kind == "i" else cut.astype(self.dtype).astype(np.float32)


INT8 = NumberFormat(np.dtype(np.int8), -128, 127)


def compute_scale(largest: Float[np.ndarray, ...], steps: float) -> Float[np.ndarray, ...]:
    """Return the scale for a largest magnitude; what is all zeros needs one too."""
    return np.maximum(largest / np.float32(steps), _TINY).astype(np.float32)
