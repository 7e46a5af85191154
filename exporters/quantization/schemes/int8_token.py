"""``int8-token``: weights and activations, with a scale for each token that is measured in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.exporters.quantization.numbers import INT8
from flash_export.exporters.quantization.recipe import ProductRecipe, Scheme
from flash_export.exporters.quantization.rounding import Rounding
from flash_export.exporters.quantization.schemes.int8 import multiply_terms, round_terms

if TYPE_CHECKING:
    import onnx_ir as ir

    from flash_export.exporters.quantization.rewrite import Place

_STEP = np.float32(1 / INT8.max)  # of a token whose largest magnitude is 1
# Unsigned, because onnxruntime on x86 makes no product of a signed activation that several products read.
_ZERO = np.uint8(128)


def _rewrite(place: Place, recipe: ProductRecipe) -> None:
    """Divide each token by its largest magnitude, and multiply what the product gives with it.

    Before: ``x -> MatMul(weight)``.
    After: ``x -> Div(size) -> QuantizeLinear -> DequantizeLinear -> MatMul(int8 weight) -> Mul(size)``.
    """
    x = place.activation
    size = place.share(x, "size", lambda: _measure_size(place))
    unit = place.share(x, "unit", lambda: place.insert("Div", [x, size]))
    scale = place.share(x, "scale", lambda: _add_what_is_not_finite(place, size, unit))
    if recipe.terms == 1:
        rounded = place.share(x, "rounded", lambda: place.round_activation(unit, "input", _STEP, _ZERO))
        product = place.multiply(rounded, INT8.round_weight(place.weight))
    else:
        rounded = place.share(x, "terms", lambda: round_terms(place, unit, _STEP, _ZERO))
        product = multiply_terms(place, rounded, _STEP)
    place.replace_output(place.insert("Mul", [product, scale]))


def _measure_size(place: Place) -> ir.Value:
    """Return the largest magnitude of each token; of one that is all zeros the least that can be divided by."""
    channels = place.add_shared("channels", np.array([-1]))
    largest, smallest = (
        place.insert(f"Reduce{end}", [place.activation, channels], keepdims=1) for end in ("Max", "Min")
    )
    floor = place.add_shared("floor", np.finfo(np.float32).tiny)
    return place.insert("Max", [largest, place.insert("Neg", [smallest]), floor])


def _add_what_is_not_finite(place: Place, size: ir.Value, unit: ir.Value) -> ir.Value:
    """Return the sizes, and NaN for a token that holds NaN or infinity.

    onnxruntime's ReduceMax drops a NaN, and QuantizeLinear makes a number of it. A sum does neither: of numbers up to 1
    it is finite, and infinity divided by itself is NaN.
    """
    total = place.insert("ReduceSum", [unit, place.add_shared("channels", np.array([-1]))], keepdims=1)
    nothing = place.insert("Mul", [total, place.add_shared("nothing", np.float32(0))])
    return place.insert("Add", [size, nothing])


SCHEME: Scheme = Scheme(
    "int8-token",
    list_roundings=lambda *_: tuple(Rounding(ProductRecipe(SCHEME, terms=terms)) for terms in (1, 2)),
    rewrite=_rewrite,
    max_terms=2,
    reads_activations=False,
)
