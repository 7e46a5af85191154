"""Weights in 8 and 4 bits: whole numbers or short floats, and the scales that make real numbers of them.

Axes: k input, n output, b block of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

INT8_MAX, INT4_MAX, FP8_MAX = 127, 7, 448.0
# By which a block's scale is shortened, to see whether its largest weight may be cut for the sake of the others.
_SHORTENED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
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


def round_to_int8(weight: Float[np.ndarray, "k n"]) -> QuantizedWeight:
    """Round to int8, with a scale for each output; symmetric, because TensorRT knows no other."""
    scale = _divide(np.abs(weight).max(axis=0), INT8_MAX)
    return QuantizedWeight(np.clip(np.rint(weight / scale), -INT8_MAX, INT8_MAX).astype(np.int8), scale)


def round_to_fp8(weight: Float[np.ndarray, "k n"]) -> QuantizedWeight:
    """Round to float8_e4m3fn, with a scale for each output."""
    scale = _divide(np.abs(weight).max(axis=0), FP8_MAX)
    return QuantizedWeight((weight / scale).astype(ml_dtypes.float8_e4m3fn), scale)


def round_to_int4(weight: Float[np.ndarray, "k n"], block_size: int) -> QuantizedWeight:
    """Round to int4, with a scale for each block of inputs of an output: the one with the least squared error.

    The largest of ``block_size`` weights is far from the others, and with 15 steps it is often better to cut it.
    """
    k, n = weight.shape
    blocks = weight.reshape(k // block_size, block_size, n)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    best = np.full(largest.shape, np.inf, np.float32)
    scale, values = np.empty_like(largest), np.empty(blocks.shape, np.int8)
    for share in _SHORTENED:
        candidate = _divide(largest * np.float32(share), INT4_MAX)
        rounded = np.clip(np.rint(blocks / candidate), -INT4_MAX - 1, INT4_MAX)
        error = np.square(rounded * candidate - blocks).sum(axis=1, keepdims=True)
        is_better = error < best
        best, scale = np.where(is_better, error, best), np.where(is_better, candidate, scale)
        values = np.where(is_better, rounded.astype(np.int8), values)
    return QuantizedWeight(values.reshape(k, n).astype(ml_dtypes.int4), scale[:, 0].astype(np.float32), block_size)


def round_activation(x: Float[np.ndarray, ...], scale: float, *, is_float: bool) -> Float[np.ndarray, ...]:
    """Return what a pair of QuantizeLinear and DequantizeLinear makes of an activation, to int8 or to fp8."""
    if is_float:
        return np.clip(x / scale, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    return np.clip(np.rint(x / scale), -INT8_MAX - 1, INT8_MAX) * np.float32(scale)


def _divide(largest: Float[np.ndarray, ...], steps: float) -> Float[np.ndarray, ...]:
    """Return the scale for a largest magnitude; what is all zeros needs one too."""
    return np.maximum(largest / np.float32(steps), _TINY).astype(np.float32)
