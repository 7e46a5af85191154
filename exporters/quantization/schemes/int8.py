"""``int8``: weights and activations, the scales of the latter known beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.exporters.quantization.numbers import INT8
from flash_export.exporters.quantization.recipe import ProductRecipe, Scheme
from flash_export.exporters.quantization.rounding import Rounding, compute_peak

if TYPE_CHECKING:
    import onnx_ir as ir

    from flash_export.config import QuantizeOptions
    from flash_export.exporters.quantization.rewrite import Place
    from flash_export.exporters.quantization.rounding import ProductSample

_FINER = 2 * INT8.max  # steps of the second term in one of the first


def _list_roundings(sample: ProductSample, options: QuantizeOptions) -> tuple[Rounding, ...]:
    return sample.round_smoothed(SCHEME, INT8, smoothing=options.smoothing), _round_in_two_terms(sample)


def _round_in_two_terms(sample: ProductSample) -> Rounding:
    """Round the activation, and once more what that left."""
    peak = compute_peak(sample.max_abs)
    step = peak / INT8.max
    first = INT8.round_activation(sample.x, step)
    rest = INT8.round_activation(sample.x - first, step / _FINER)
    error = sample.measure_error(first + rest, INT8.round_weight(sample.weight))
    return Rounding(ProductRecipe(SCHEME, peak, terms=2), error)


def _rewrite(place: Place, recipe: ProductRecipe) -> None:
    if recipe.terms == 1:
        place.round_factors(recipe, INT8)
    else:
        step = recipe.compute_step(INT8)
        place.replace_output(multiply_terms(place, round_terms(place, place.activation, step, np.int8(0)), step))


def round_terms(place: Place, x: ir.Value, step: np.float32, zero: np.generic) -> ir.Value:
    """Return an activation in whole steps, and below that what is left of it, negative and in finer ones.

    Before: ``x``. After: ``Concat(whole, finer rest) -> QuantizeLinear -> DequantizeLinear``.
    """
    scaled = place.insert("Mul", [x, place.add("inverse_step", np.float32(1) / step)])
    whole = place.insert("Round", [scaled])
    rest = place.insert("Sub", [whole, scaled])
    finer = place.insert("Mul", [rest, place.add("finer", np.float32(_FINER))])
    return place.round_activation(place.insert("Concat", [whole, finer], axis=0), "terms", np.float32(1), zero)


def multiply_terms(place: Place, terms: ir.Value, step: np.float32) -> ir.Value:
    """Make one product of twice the rows, ``MatMul(int8 weight) -> Split -> Sub``, and return what it gives.

    The weight has one reader, because onnxruntime, where it makes unsigned numbers of it (see
    ``session.x64quantprecision`` in ``runtime/ort.py``), fails at the second.
    """
    product = place.multiply(terms, INT8.round_weight(place.weight * step))
    product.shape = None  # it has twice the rows
    first, second = place.insert_many("Split", [product], 2, axis=0, num_outputs=2)
    small = place.insert("Mul", [second, place.add("inverse_finer", np.float32(1 / _FINER))])
    for value in (first, second, small):
        value.shape, value.type = place.output.shape, product.type
    return place.insert("Sub", [first, small])


SCHEME: Scheme = Scheme("int8", _list_roundings, _rewrite, has_range=True, max_terms=2)
