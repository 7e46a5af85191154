"""``int8``: weights and activations, the scales of the latter known beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.exporters.quantization.numbers import INT8
from flash_export.exporters.quantization.recipe import ProductRecipe, Scheme
from flash_export.exporters.quantization.rewrite import compute_step
from flash_export.exporters.quantization.rounding import Rounding, compute_peak

if TYPE_CHECKING:
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
        _split_activation(place, compute_step(recipe, INT8))


def _split_activation(place: Place, step: np.float32) -> None:
    """Make one product of twice the rows: the activation in whole steps, then what is left of it, in finer ones.

    Before: ``activation -> MatMul(weight)``. After: ``Concat(whole, finer rest) -> Quantize -> MatMul(int8 weight) ->
    Split -> Sub``. The weight has one reader, because onnxruntime, where it makes unsigned numbers of it (see
    ``session.x64quantprecision`` in ``runtime/ort.py``), fails at the second.
    """
    scaled = place.insert("Mul", [place.activation, place.add("inverse_step", np.float32(1) / step)])
    whole = place.insert("Round", [scaled])
    finer = np.float32(_FINER)
    rest = place.insert("Mul", [place.insert("Sub", [whole, scaled]), place.add("finer", finer)], number=1)
    terms = place.insert("Concat", [whole, rest], axis=0)
    rounded = place.round_activation(terms, "terms", np.float32(1), INT8.dtype)
    weight = place.dequantize_weight(INT8.round_weight(place.weight * step))
    product = place.insert("MatMul", [rounded, weight])
    product.type = place.output.type
    first, second = place.insert_many("Split", [product], 2, axis=0, num_outputs=2)
    small = place.insert("Mul", [second, place.add("inverse_finer", 1 / finer)], number=2)
    for value in (first, second, small):
        value.shape, value.type = place.output.shape, place.output.type
    place.replace_output(place.insert("Sub", [first, small], number=1))


SCHEME: Scheme = Scheme("int8", _list_roundings, _rewrite, has_range=True, max_terms=2)
