"""``int8-dynamic``: weights and activations, the scales of the latter measured in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from flash_export.exporters.quantization.numbers import INT8
from flash_export.exporters.quantization.recipe import Scheme

if TYPE_CHECKING:
    from flash_export.exporters.quantization.recipe import ProductRecipe
    from flash_export.exporters.quantization.rewrite import Place


def _rewrite(place: Place, recipe: ProductRecipe) -> None:
    """Make the product one of whole numbers, and multiply it with both scales."""
    place.smooth(recipe)
    weight = INT8.round_weight(place.weight)
    values, scale = place.add("quantized", weight.values), place.add("scale", weight.scale)
    zero = place.add("zero_point", np.zeros((), np.int8))
    rounded, step, offset = place.insert_many("DynamicQuantizeLinear", [place.activation], 3)
    total = place.insert("MatMulInteger", [rounded, values, offset, zero])
    total = place.insert("Cast", [total], to=int(ir.DataType.FLOAT))
    factor = place.insert("Mul", [step, scale], number=1)
    place.replace_output(place.insert("Mul", [total, factor], number=2))


SCHEME: Scheme = Scheme(
    "int8-dynamic",
    # Judged by the range of all data, which that of a run is within.
    list_roundings=lambda sample, options: (sample.round_smoothed(SCHEME, INT8, smoothing=options.smoothing),),
    rewrite=_rewrite,
)
