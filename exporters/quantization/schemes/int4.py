"""``int4``: weights alone, in blocks of inputs that share a scale; the product is one of real numbers.

Axes: k input, n output, b block of inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from flash_export.exporters.quantization.numbers import QuantizedWeight, compute_scale
from flash_export.exporters.quantization.recipe import ProductRecipe, Scheme
from flash_export.exporters.quantization.rounding import Rounding

if TYPE_CHECKING:
    from jaxtyping import Float

    from flash_export.config import QuantizeOptions
    from flash_export.exporters.quantization.rewrite import Place
    from flash_export.exporters.quantization.rounding import ProductSample

INT4_MAX = 7
# By which a block's scale is shortened, to see whether its largest weight may be cut for the sake of the others.
_SHORTENED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


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
        candidate = compute_scale(largest * np.float32(share), INT4_MAX)
        rounded = np.clip(np.rint(blocks / candidate), -INT4_MAX - 1, INT4_MAX)
        error = np.square(rounded * candidate - blocks).sum(axis=1, keepdims=True)
        is_better = error < best
        best, scale = np.where(is_better, error, best), np.where(is_better, candidate, scale)
        values = np.where(is_better, rounded.astype(np.int8), values)
    return QuantizedWeight(values.reshape(k, n).astype(ml_dtypes.int4), scale[:, 0].astype(np.float32), block_size)


def _list_roundings(sample: ProductSample, options: QuantizeOptions) -> tuple[Rounding, ...]:
    if len(sample.weight) % options.block_size:
        return ()
    error = sample.measure_error(sample.x, round_to_int4(sample.weight, options.block_size))
    return (Rounding(ProductRecipe(SCHEME, block_size=options.block_size), error),)


def _rewrite(place: Place, recipe: ProductRecipe) -> None:
    assert recipe.block_size is not None  # a recipe of this scheme has one
    place.replace_output(place.multiply(place.activation, round_to_int4(place.weight, recipe.block_size)))


# Operators: DequantizeLinear of int4, and of blocks.
SCHEME: Scheme = Scheme("int4", _list_roundings, _rewrite, opset=21, has_blocks=True)
